/* Frames and call heads as the front writes them (edge_runtime/ipc/frames.py, request_head.py): numbers are
   little-endian, as on every machine that this runs on. */
#include <string.h>

#include "parts.h"

static uint32_t u16(const uint8_t *at) {
    uint16_t number;
    memcpy(&number, at, 2);
    return number;
}

static uint32_t u32(const uint8_t *at) {
    uint32_t number;
    memcpy(&number, at, 4);
    return number;
}

/* Finds the next frame in the buffer. Returns 1; 0 where more must come first; -1 where it doesn't fit the buffer, or
   its numbers don't fit each other. */
int frame_read(const Loop *loop, Frame *frame) {
    uint32_t have = loop->have - loop->at;
    if (have < HEADER_BYTES) return 0;
    const uint8_t *at = loop->in + loop->at;
    uint32_t length = u32(at), head = u16(at + 10);
    frame->request = u32(at + 4);
    frame->kind = u16(at + 8);
    if (head > length || length > ROOM - HEADER_BYTES) return -1;
    if (have - HEADER_BYTES < length) return 0;
    frame->whole = (Bytes){at, HEADER_BYTES + length};
    frame->head = (Bytes){at + HEADER_BYTES, head};
    frame->body = (Bytes){at + HEADER_BYTES + head, length - head};
    return 1;
}

/* Reads a call's head. Returns whether its lengths add up. */
bool head_read(Bytes bytes, Head *head) {
    const uint8_t *at = bytes.at;
    if (bytes.size < PREFIX_BYTES || at[6] > 1 || u16(at + 10)) return false;
    head->serial = u32(at);
    head->function = u16(at + 4);
    head->https = at[6] == 1;
    uint32_t auth = at[7], caller = u16(at + 8), left = bytes.size - PREFIX_BYTES;
    at += PREFIX_BYTES;
    if (caller + auth > left) return false;
    head->caller = (Bytes){at, caller};
    head->auth_type = (Bytes){at + caller, auth};
    at += caller + auth;
    left -= caller + auth;
    head->block = (Bytes){at, left};
    if (left < 4 * TEXTS) return false;
    const uint8_t *lengths = at;
    at += (size_t)4 * TEXTS;
    left -= 4 * TEXTS;
    for (size_t i = 0; i < TEXTS; i++) {
        uint32_t size = u32(lengths + 4 * i);
        if (size >= left || at[size]) return false;
        head->text[i] = (Bytes){at, size};
        at += size + 1;
        left -= size + 1;
    }
    return left == 0;
}
