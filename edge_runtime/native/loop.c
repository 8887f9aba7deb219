/* The loop: frames in, the claim of each call, the worker's words on the progress page, the guest, the answer out. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "parts.h"

Loop *skerry_loop;

/* The progress page, which the front reads while we write: each word whole, and in this order. */

static void mark(Loop *loop, int word, uint64_t value) {
    __atomic_store_n((uint64_t *)(void *)loop->setup.slot + word, value, __ATOMIC_RELEASE);
}

static uint64_t *log_count(const Loop *loop) { return (uint64_t *)(void *)(loop->setup.slot + loop->setup.log_at); }

static uint64_t *lost_count(const Loop *loop) {
    return (uint64_t *)(void *)(loop->setup.slot + loop->setup.log_at + 8 + loop->setup.log_bytes);
}

static void mark_start(Loop *loop, uint32_t request) {
    /* No request, as long as the times may be those of either call. */
    mark(loop, SLOT_STATE, NO_REQUEST);
    loop->call.started_ns = now_ns();
    mark(loop, SLOT_STARTED, loop->call.started_ns);
    mark(loop, SLOT_WAITED, 0);
    __atomic_store_n(log_count(loop), 0, __ATOMIC_RELEASE);
    __atomic_store_n(lost_count(loop), 0, __ATOMIC_RELEASE);
    mark(loop, SLOT_STATE, (uint64_t)STATE_RUNNING << 32 | request);
}

/* Notes in the page what the running call has written to its log: the byte N at N modulo the log's size. */
void log_note(Loop *loop, const uint8_t *bytes, uint32_t size) {
    uint32_t room = loop->setup.log_bytes, kept = size < room ? size : room;
    uint64_t written = *log_count(loop) + size;
    uint8_t *text = loop->setup.slot + loop->setup.log_at + 8;
    uint32_t at = (uint32_t)((written - kept) % room), first = kept < room - at ? kept : room - at;
    memcpy(text + at, bytes + size - kept, first);
    memcpy(text, bytes + size - kept + first, kept - first);
    __atomic_store_n(log_count(loop), written, __ATOMIC_RELEASE);
}

/* Notes that the running call has written so many bytes more than its function may log. */
void log_lose(Loop *loop, uint64_t size) {
    __atomic_store_n(lost_count(loop), *lost_count(loop) + size, __ATOMIC_RELEASE);
}

static bool claim(Loop *loop, uint32_t request) {
    sem_t *claims = (sem_t *)(void *)(loop->setup.slot + loop->setup.claims_at);
    return sem_trywait(&claims[request % loop->setup.claims]) == 0;
}

/* Sending */

static bool send_all(Loop *loop, const uint8_t *bytes, uint64_t size) {
    while (size) {
        ssize_t sent = send(loop->setup.socket, bytes, size, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EINTR) continue;
            return false;
        }
        bytes += sent;
        size -= (uint64_t)sent;
    }
    return true;
}

/* Sends a frame: in one system call, unless it is large. */
static bool send_frame(Loop *loop, uint32_t request, uint32_t kind, Bytes head, const uint8_t *body, uint64_t size) {
    uint8_t out[HEADER_BYTES + KEPT_LINES + 4096];
    uint32_t length = (uint32_t)(head.size + size);
    uint16_t kinds[2] = {(uint16_t)kind, (uint16_t)head.size};
    memcpy(out, &length, 4);
    memcpy(out + 4, &request, 4);
    memcpy(out + 8, kinds, 4);
    if (head.size) memcpy(out + HEADER_BYTES, head.at, head.size);
    uint32_t first = HEADER_BYTES + head.size;
    uint64_t fits = size < sizeof out - first ? size : sizeof out - first;
    if (fits) memcpy(out + first, body, fits);
    return send_all(loop, out, first + fits) && send_all(loop, body + fits, size - fits);
}

/* Calls */

static Function *find(const Loop *loop, const Head *head) {
    for (uint32_t i = 0; i < loop->release_count; i++) {
        const Release *release = &loop->releases[i];
        if (release->serial == head->serial)
            return head->function < release->count ? release->functions[head->function] : NULL;
    }
    return NULL;
}

static void begin(Loop *loop, Function *function, const Head *head, const Frame *frame) {
    Call *call = &loop->call;
    *call = (Call){
        .function = function, .head = head, .body = frame->body, .streams = {0, 1, 2},
        /* A library has its request in its memory, and nothing on stdin. */
        .body_at = function->wagi ? 0 : frame->body.size,
        .memory_size = (uint64_t)function->pages * PAGE,
        .out_room = function->response_bytes + loop->setup.head_limit, .log_room = function->log_bytes,
    };
    loop->arguments.made = loop->environment.made = false;
    loop->out.size = loop->log.size = 0;
    mark_start(loop, frame->request);
    *loop->event = (Event){.request = frame->request, .function = function, .started_ns = call->started_ns,
                           .serial = head->serial, .index = head->function,
                           .method = head->text[METHOD].at, .method_size = head->text[METHOD].size,
                           .timed = frame->kind == CALL_TIMED};
}

/* Frees what large outputs took. */
static void end(Loop *loop) {
    Output *outputs[2] = {&loop->out, &loop->log};
    for (int i = 0; i < 2; i++)
        if (outputs[i]->room > ROOM) {
            free(outputs[i]->bytes);
            *outputs[i] = (Output){NULL, 0, 0};
        }
}

static bool clear(Loop *loop, Function *function) {
    if (memory_clear(function, &loop->setup.engine)) return true;
    function->ready = 0;
    loop->event->unclear = 1;
    return false;
}

/* Runs a claimed call. Returns 0 where it is answered, else the event that the caller must handle. */
static uint32_t run_call(Loop *loop, Function *function, const Head *head, const Frame *frame) {
    Event *event = loop->event;
    Answer answer;
    begin(loop, function, head, frame);
    Ending ending = head_fits(head) ? guest_call(loop, &answer) : FOREIGN;
    log_close(loop);
    event->stop = loop->call.stop;
    event->exit_code = loop->call.exit_code;
    event->log = loop->log.bytes;
    event->log_size = (uint32_t)loop->log.size;
    switch (ending) {
        case FOREIGN:
            if (event->stop == STOP_FOREIGN) function->foreign = FOREIGN_CALLS, function->ready = 0;
            if (!event->uninstantiated) clear(loop, function);
            event->bytes = frame->whole.at;
            event->size = frame->whole.size;
            return EVENT_RETURNED;
        case FAILED:
            loop->calls++;
            /* Where the request or the answer was to be may lie beyond the memory; the caller says so by its size. */
            if (!event->uninstantiated) clear(loop, function);
            return EVENT_FAILED;
        case UNCHECKED:
            loop->calls++;
            loop->unclear = function;
            return EVENT_UNCHECKED;
        case ANSWERED:
            break;
    }
    function->used = ++loop->calls;
    if ((function->sql || event->timed) && !loop->setup.settle(answer.status)) {
        clear(loop, function);
        return EVENT_UNSETTLED;
    }
    Bytes none = {NULL, 0};
    bool sent = !loop->log.size || send_frame(loop, frame->request, LOG, none, loop->log.bytes, loop->log.size);
    sent = sent && send_frame(loop, frame->request, answer.status, answer.lines, answer.body, answer.body_size);
    end(loop);
    bool cleared = clear(loop, function);
    mark(loop, SLOT_STATE, frame->request);
    if (!sent) return EVENT_CLOSED;
    return cleared ? 0 : EVENT_UNCLEAR;
}

static uint32_t give_back(Loop *loop, uint32_t kind) {
    loop->event->bytes = loop->in + loop->at;
    loop->event->size = loop->have - loop->at;
    loop->at = loop->have = 0;
    return kind;
}

static uint32_t serve(Loop *loop) {
    for (;;) {
        Frame frame;
        Head head;
        int found;
        while ((found = frame_read(loop, &frame)) == 1) {
            Function *function = NULL;
            bool call = frame.kind == CALL || frame.kind == CALL_TIMED;
            if (call && head_read(frame.head, &head)) function = find(loop, &head);
            if (!function || !function->ready) return give_back(loop, EVENT_FRAME);
            loop->at += frame.whole.size;
            /* Otherwise the front has taken the call back. */
            if (!claim(loop, frame.request)) continue;
            uint32_t event = run_call(loop, function, &head, &frame);
            if (event) return event;
        }
        if (found < 0) return give_back(loop, EVENT_FRAME);
        if (loop->at) memmove(loop->in, loop->in + loop->at, loop->have - loop->at);
        loop->have -= loop->at;
        loop->at = 0;
        struct pollfd wait = {loop->setup.socket, POLLIN, 0};
        if (loop->quiet_ms && !poll(&wait, 1, (int)loop->quiet_ms)) return EVENT_QUIET;
        ssize_t got = recv(loop->setup.socket, loop->in + loop->have, ROOM - loop->have, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return give_back(loop, EVENT_CLOSED);
        loop->have += (uint32_t)got;
    }
}

/* The host function of the outer module. */
uint32_t skerry_entered(void *data, const void *frame, const void *in, void *out) {
    (void)data, (void)frame, (void)in, (void)out;
    skerry_loop->event->kind = serve(skerry_loop);
    return 0;
}

/* Serves calls until there is something for the caller to do, and returns what, as `event->kind`. What `event` points
   to is valid until the next call of a function of this library. With `quiet_ms`, it returns when nothing has come for
   so long. */
uint32_t skerry_loop_run(Loop *loop, Event *event, uint32_t quiet_ms) {
    loop->calls = event->calls;
    loop->quiet_ms = quiet_ms;
    *event = (Event){0};
    loop->event = event;
    skerry_loop = loop;
    Function *unclear = loop->unclear;
    loop->unclear = NULL;
    end(loop);
    if (unclear && !clear(loop, unclear)) {
        event->function = unclear;
        event->kind = EVENT_UNCLEAR;
    } else if (!loop->setup.outer) {
        skerry_entered(NULL, NULL, NULL, NULL);
    } else {
        Invoke invoke = (Invoke)loop->setup.engine.invoke;
        uint32_t result = invoke(loop->setup.executor, loop->setup.outer, NULL, 0, NULL, 0);
        if (result) {
            event->result = result;
            event->kind = EVENT_BROKEN;
        }
    }
    loop->event = NULL;
    event->calls = loop->calls;
    return event->kind;
}

/* Has the loop read these bytes before all that comes. Returns 0 where they don't fit. */
int skerry_loop_give(Loop *loop, const uint8_t *bytes, uint64_t size) {
    if (size > ROOM || loop->have != loop->at) return 0;
    if (size) memcpy(loop->in, bytes, size);
    loop->at = 0;
    loop->have = (uint32_t)size;
    return 1;
}

/* Sets the releases whose functions may be called; they are the caller's, and must outlive their use. */
void skerry_loop_serve(Loop *loop, const Release *releases, uint32_t count) {
    loop->releases = releases;
    loop->release_count = count;
}

Loop *skerry_loop_new(const Setup *setup) {
    Loop *loop = calloc(1, sizeof *loop);
    if (loop) loop->setup = *setup;
    return loop;
}

void skerry_loop_free(Loop *loop) {
    if (skerry_loop == loop) skerry_loop = NULL;
    if (loop) free(loop->out.bytes), free(loop->log.bytes);
    free(loop);
}
