/* A guest's answer: where it is well-formed and its header lines have been checked before, it can be sent as it is. Any
   other answer is UNCHECKED, for the caller to look at. */
#include <string.h>

#include "parts.h"

static bool is_bodiless(uint32_t status) { return status == 204 || status == 205 || status == 304; }

/* Finds header lines that were checked before. */
static const Kept *find(const Loop *loop, uint32_t wagi, const uint8_t *block, uint32_t size) {
    for (uint32_t i = 0; i < loop->kept_count; i++) {
        const Kept *kept = &loop->kept[i];
        if (kept->block_size == size && kept->wagi == wagi && !memcmp(kept->block, block, size)) return kept;
    }
    return NULL;
}

static Ending complete(const Kept *kept, uint32_t status, const uint8_t *body, uint64_t size, Answer *answer) {
    if (!kept || (size && (!kept->has_type || is_bodiless(status)))) return UNCHECKED;
    *answer = (Answer){status, {kept->lines, kept->lines_size}, body, size};
    return ANSWERED;
}

/* The answer of a `direct` guest: status, size of the header lines, the lines, the body. */
Ending answer_direct(Loop *loop, uint32_t start, uint32_t size, Answer *answer) {
    uint64_t most = loop->call.function->response_bytes;
    const uint8_t *at = guest_bytes(loop, start, size);
    loop->event->out = at;
    loop->event->out_size = at ? size : 0;
    if (!at || size < 8 || size > most + loop->setup.head_limit) return UNCHECKED;
    uint32_t status, lines;
    memcpy(&status, at, 4);
    memcpy(&lines, at + 4, 4);
    if (status < 200 || status > 599 || lines > KEPT_BYTES || lines > size - 8 || size - 8 - lines > most)
        return UNCHECKED;
    const Kept *kept = find(loop, 0, at + 8, lines);
    return complete(kept, status, at + 8 + lines, size - 8 - lines, answer);
}

/* The answer of a WAGI guest: header lines, a blank line, the body. */
Ending answer_wagi(Loop *loop, Answer *answer) {
    const Output *out = &loop->out;
    loop->event->out = out->bytes;
    loop->event->out_size = out->size;
    if (!out->size) return UNCHECKED;
    const uint8_t *at = out->bytes, *end = at + out->size;
    if (*at == '\n' || (out->size > 1 && at[0] == '\r' && at[1] == '\n')) return UNCHECKED;
    const uint8_t *limit = out->size > KEPT_BYTES + 2 ? at + KEPT_BYTES + 2 : end, *line = at;
    while ((line = memchr(line, '\n', (size_t)(limit - line)))) {
        line++;
        const uint8_t *body = line < end && *line == '\r' ? line + 1 : line;
        if (body >= end || *body != '\n') continue;
        body++;
        uint64_t size = (uint64_t)(end - body), block = (uint64_t)(line - at);
        if (block > KEPT_BYTES || size > loop->call.function->response_bytes) return UNCHECKED;
        const Kept *kept = find(loop, 1, at, (uint32_t)block);
        return complete(kept, kept ? kept->status : 0, body, size, answer);
    }
    return UNCHECKED;
}

/* Keeps header lines that were checked: `lines` is what is sent for `block`. `has_type`: with them the answer may have a
   body. `status` is a WAGI answer's. Returns 0 where they are too long to be kept. */
int skerry_loop_keep(Loop *loop, uint32_t wagi, const uint8_t *block, uint32_t block_size, uint32_t status,
                     uint32_t has_type, const uint8_t *lines, uint32_t lines_size) {
    if (block_size > KEPT_BYTES || lines_size > KEPT_LINES) return 0;
    if (find(loop, wagi, block, block_size)) return 1;
    Kept *kept = &loop->kept[loop->kept_next];
    loop->kept_next = (loop->kept_next + 1) % KEPT;
    if (loop->kept_count < KEPT) loop->kept_count++;
    kept->wagi = wagi;
    kept->block_size = block_size;
    kept->status = status;
    kept->has_type = has_type;
    kept->lines_size = lines_size;
    if (block_size) memcpy(kept->block, block, block_size);
    if (lines_size) memcpy(kept->lines, lines, lines_size);
    return 1;
}
