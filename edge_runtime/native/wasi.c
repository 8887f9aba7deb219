/* WASI preview 1 for the loop's calls: what guests/wasi.py is in Python, as far as calls commonly use it. While the loop
   runs no guest, each function is Python's. A guest that asks for more than there is here is ended, and its call is
   run again by Python: a plain call has done nothing yet that lasts. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "parts.h"

enum { SUCCESS = 0, BADF = 8, FAULT = 21, INVAL = 28, NOTDIR = 54, NOTSOCK = 57, NOTSUP = 58, SPIPE = 70 };
enum { ENDED = 1 }; /* the result that makes WasmEdge end the guest */
enum { CLOCKS = 4, MOST_VECTORS = 1024, RANDOM_PIECE = 65536 };

typedef uint32_t (*HostFunction)(void *, const void *, const Value *, Value *);
/* What a host function of ours returns to the guest goes into *answer; the result is WasmEdge's. */
typedef uint32_t (*Body)(Loop *, const Value *, uint32_t *answer);
typedef struct {
    Body body;
    HostFunction python;
} Hook;

uint32_t arg(const Value *values, int position) { return (uint32_t)values[position].value[0]; }

uint32_t stop(Loop *loop, uint32_t why) {
    if (loop->call.stop == STOP_NONE) loop->call.stop = why;
    return ENDED;
}

static bool is_open(const Loop *loop, uint32_t descriptor) {
    return descriptor < 3 && loop->call.streams[descriptor] != CLOSED_STREAM;
}

static void put32(uint8_t *to, uint32_t number) { memcpy(to, &number, 4); }
static void put64(uint8_t *to, uint64_t number) { memcpy(to, &number, 8); }

uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Arguments and environment, which are made when they are first asked for. */

static const Strings *made_strings(Loop *loop, bool environment) {
    const Call *call = &loop->call;
    Strings *strings = environment ? &loop->environment : &loop->arguments;
    if (strings->made) return strings;
    bool made = environment ? environment_make(strings, call->head, call->function, call->body.size)
                            : arguments_make(strings, call->head, call->function);
    return made ? strings : NULL;
}

static uint32_t sizes(Loop *loop, const Value *in, uint32_t *answer, bool environment) {
    const Strings *strings = made_strings(loop, environment);
    if (!strings) return stop(loop, STOP_FOREIGN);
    uint8_t *count = guest_bytes(loop, arg(in, 0), 4), *size = guest_bytes(loop, arg(in, 1), 4);
    if (!count || !size) {
        *answer = FAULT;
        return 0;
    }
    put32(count, strings->count);
    put32(size, strings->size);
    return 0;
}

static uint32_t get(Loop *loop, const Value *in, uint32_t *answer, bool environment) {
    const Strings *strings = made_strings(loop, environment);
    if (!strings) return stop(loop, STOP_FOREIGN);
    if (!strings->count) return 0;
    uint8_t *pointers = guest_bytes(loop, arg(in, 0), (uint64_t)4 * strings->count);
    uint8_t *bytes = guest_bytes(loop, arg(in, 1), strings->size);
    if (!pointers || !bytes) {
        *answer = FAULT;
        return 0;
    }
    memcpy(bytes, strings->bytes, strings->size);
    for (uint32_t i = 0; i < strings->count; i++) put32(pointers + (size_t)4 * i, arg(in, 1) + strings->starts[i]);
    return 0;
}

static uint32_t args_sizes_get(Loop *loop, const Value *in, uint32_t *answer) { return sizes(loop, in, answer, false); }
static uint32_t args_get(Loop *loop, const Value *in, uint32_t *answer) { return get(loop, in, answer, false); }
static uint32_t environ_sizes_get(Loop *loop, const Value *in, uint32_t *answer) {
    return sizes(loop, in, answer, true);
}
static uint32_t environ_get(Loop *loop, const Value *in, uint32_t *answer) { return get(loop, in, answer, true); }

/* Clocks, random bytes, the process */

static uint32_t clock_value(Loop *loop, uint32_t clock, uint32_t start, uint64_t value) {
    if (clock >= CLOCKS) return INVAL;
    uint8_t *to = guest_bytes(loop, start, 8);
    if (!to) return FAULT;
    put64(to, value);
    return SUCCESS;
}

static uint32_t clock_res_get(Loop *loop, const Value *in, uint32_t *answer) {
    *answer = clock_value(loop, arg(in, 0), arg(in, 1), 1);
    return 0;
}

static uint32_t clock_time_get(Loop *loop, const Value *in, uint32_t *answer) {
    /* All clocks but the real one count from the start of the call: the host's uptime is nothing for guests. */
    uint64_t value = now_ns() - loop->call.started_ns + 1;
    if (!arg(in, 0)) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        value = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    }
    *answer = clock_value(loop, arg(in, 0), arg(in, 2), value);
    return 0;
}

static uint32_t random_get(Loop *loop, const Value *in, uint32_t *answer) {
    uint32_t size = arg(in, 1);
    if (!size) return 0;
    uint8_t *to = guest_bytes(loop, arg(in, 0), size);
    if (!to) {
        *answer = FAULT;
        return 0;
    }
    for (uint32_t at = 0; at < size;) {
        uint32_t piece = size - at < RANDOM_PIECE ? size - at : RANDOM_PIECE;
        ssize_t got = getrandom(to + at, piece, 0);
        if (got <= 0) return stop(loop, STOP_FOREIGN);
        at += (uint32_t)got;
    }
    return 0;
}

static uint32_t proc_exit(Loop *loop, const Value *in, uint32_t *answer) {
    (void)answer;
    loop->call.exit_code = arg(in, 0);
    return stop(loop, STOP_EXIT);
}

static uint32_t nothing(Loop *loop, const Value *in, uint32_t *answer) {
    (void)loop, (void)in, (void)answer;
    return 0;
}

static uint32_t no_signals(Loop *loop, const Value *in, uint32_t *answer) {
    (void)loop, (void)in;
    *answer = NOTSUP;
    return 0;
}

/* stdio */

static uint32_t read_vectors(Loop *loop, uint32_t vectors, uint32_t count, uint32_t result) {
    Call *call = &loop->call;
    if (count > MOST_VECTORS) return INVAL;
    if (!guest_bytes(loop, vectors, (uint64_t)8 * count) || !guest_bytes(loop, result, 4)) return FAULT;
    uint32_t position = call->body_at;
    for (uint32_t i = 0; i < count; i++) {
        /* Looked up anew each time: the guest may have put a vector where bytes are read to. */
        const uint8_t *vector = guest_bytes(loop, vectors + (uint64_t)8 * i, 8);
        uint32_t start, length, left = call->body.size - position;
        memcpy(&start, vector, 4);
        memcpy(&length, vector + 4, 4);
        if (length && !left) break;
        uint32_t piece = length < left ? length : left;
        if (!piece) continue;
        uint8_t *to = guest_bytes(loop, start, piece);
        if (!to) return FAULT;
        memcpy(to, call->body.at + position, piece);
        position += piece;
    }
    put32(guest_bytes(loop, result, 4), position - call->body_at);
    call->body_at = position;
    return SUCCESS;
}

static uint32_t fd_read(Loop *loop, const Value *in, uint32_t *answer) {
    bool readable = is_open(loop, arg(in, 0)) && loop->call.streams[arg(in, 0)] == 0;
    *answer = readable ? read_vectors(loop, arg(in, 1), arg(in, 2), arg(in, 3)) : BADF;
    return 0;
}

/* Adds to the log, as far as there is room, and to the copy that outlives this process. */
static bool log_add(Loop *loop, const uint8_t *bytes, uint32_t size) {
    Call *call = &loop->call;
    uint32_t kept = size < call->log_room ? size : call->log_room;
    call->log_room -= kept;
    if (kept < size) {
        call->log_lost += size - kept;
        log_lose(loop, size - kept);
    }
    if (!kept) return true;
    log_note(loop, bytes, kept);
    return output_add(&loop->log, bytes, kept);
}

/* Ends the log of a call with a line that says how much was left out, if anything was (edge_runtime.ipc.log_lines). */
void log_close(Loop *loop) {
    unsigned long long lost = loop->call.log_lost;
    if (!lost) return;
    char line[LOST_LINE];
    bool whole = !loop->log.size || loop->log.bytes[loop->log.size - 1] == '\n';
    int size = snprintf(line, sizeof line, "\n<4>[skerry: %llu bytes of this log were left out here]\n", lost);
    output_add(&loop->log, (const uint8_t *)line + whole, (uint64_t)size - whole);
    loop->call.log_lost = 0;
}

static uint32_t fd_write(Loop *loop, const Value *in, uint32_t *answer) {
    Call *call = &loop->call;
    uint32_t descriptor = arg(in, 0), vectors = arg(in, 1), count = arg(in, 2), result = arg(in, 3);
    uint64_t written = 0;
    *answer = BADF;
    if (!is_open(loop, descriptor) || !call->streams[descriptor]) return 0;
    bool answers = call->streams[descriptor] == 1 && call->function->wagi;
    *answer = INVAL;
    if (count > MOST_VECTORS) return 0;
    *answer = FAULT;
    if (!guest_bytes(loop, vectors, (uint64_t)8 * count) || !guest_bytes(loop, result, 4)) return 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *vector = guest_bytes(loop, vectors + (uint64_t)8 * i, 8);
        uint32_t start, length;
        memcpy(&start, vector, 4);
        memcpy(&length, vector + 4, 4);
        if (!length) continue;
        const uint8_t *bytes = guest_bytes(loop, start, length);
        if (!bytes) {
            /* The guest is told what was written before this vector; otherwise it would write that again. */
            if (!written) return 0;
            break;
        }
        if (answers) {
            if (length > call->out_room) return stop(loop, STOP_OUTPUT);
            call->out_room -= length;
            if (!output_add(&loop->out, bytes, length)) return stop(loop, STOP_FOREIGN);
        } else if (!log_add(loop, bytes, length)) {
            return stop(loop, STOP_FOREIGN);
        }
        written += length;
    }
    put32(guest_bytes(loop, result, 4), (uint32_t)written);
    *answer = SUCCESS;
    return 0;
}

static uint32_t fd_close(Loop *loop, const Value *in, uint32_t *answer) {
    if (is_open(loop, arg(in, 0)))
        loop->call.streams[arg(in, 0)] = CLOSED_STREAM;
    else
        *answer = BADF;
    return 0;
}

static uint32_t fd_fdstat_get(Loop *loop, const Value *in, uint32_t *answer) {
    *answer = BADF;
    if (!is_open(loop, arg(in, 0))) return 0;
    uint8_t *to = guest_bytes(loop, arg(in, 1), 24);
    *answer = FAULT;
    if (!to) return 0;
    /* No kind of file (0): a libc takes it for no terminal. The rights are fd_read's or fd_write's. */
    uint64_t rights = loop->call.streams[arg(in, 0)] ? 1u << 6 : 1u << 1;
    memset(to, 0, 8);
    put64(to + 8, rights);
    put64(to + 16, rights);
    *answer = SUCCESS;
    return 0;
}

/* What files can do and streams can't. */
static uint32_t refused(Loop *loop, const Value *in, uint32_t *answer, uint32_t with) {
    *answer = is_open(loop, arg(in, 0)) ? with : BADF;
    return 0;
}
static uint32_t no_seek(Loop *loop, const Value *in, uint32_t *answer) { return refused(loop, in, answer, SPIPE); }
static uint32_t no_file(Loop *loop, const Value *in, uint32_t *answer) { return refused(loop, in, answer, INVAL); }
static uint32_t no_folder(Loop *loop, const Value *in, uint32_t *answer) { return refused(loop, in, answer, NOTDIR); }
static uint32_t no_socket(Loop *loop, const Value *in, uint32_t *answer) { return refused(loop, in, answer, NOTSOCK); }
static uint32_t no_more_folders(Loop *loop, const Value *in, uint32_t *answer) {
    (void)loop, (void)in;
    *answer = BADF;
    return 0;
}

static uint32_t foreign(Loop *loop, const Value *in, uint32_t *answer) {
    (void)in, (void)answer;
    return stop(loop, STOP_FOREIGN);
}

static const struct {
    const char *name;
    Body body;
} OFFERED[] = {
    {"args_sizes_get", args_sizes_get}, {"args_get", args_get},
    {"environ_sizes_get", environ_sizes_get}, {"environ_get", environ_get},
    {"clock_res_get", clock_res_get}, {"clock_time_get", clock_time_get},
    {"random_get", random_get}, {"proc_exit", proc_exit},
    {"proc_raise", no_signals}, {"sched_yield", nothing},
    {"fd_read", fd_read}, {"fd_write", fd_write},
    {"fd_close", fd_close}, {"fd_fdstat_get", fd_fdstat_get},
    {"fd_seek", no_seek}, {"fd_tell", no_seek},
    {"fd_pread", no_seek}, {"fd_pwrite", no_seek},
    {"fd_sync", no_file}, {"fd_datasync", no_file},
    {"fd_readdir", no_folder}, {"fd_prestat_dir_name", no_folder},
    {"path_open", no_folder}, {"path_filestat_get", no_folder},
    {"fd_prestat_get", no_more_folders}, {"sock_accept", no_socket},
    {"sock_recv", no_socket}, {"sock_send", no_socket},
    {"sock_shutdown", no_socket},
    {"sql", host_sql}, {"result", host_result},
};

static uint32_t call_hook(void *data, const void *frame, const Value *in, Value *out) {
    const Hook *hook = data;
    Loop *loop = skerry_loop;
    if (!loop || !loop->running) return hook->python(NULL, frame, in, out);
    uint32_t answer = SUCCESS, result = hook->body(loop, in, &answer);
    /* `result` has no result; nor have those that always end the guest, and nowhere to put one. */
    if (!result && hook->body != host_result) out->value[0] = answer;
    return result;
}

/* Returns the C function for a host function, and in `data` what it is called with; both live as long as the process.
   `python` is called where the loop runs no guest. NULL where there is no memory. */
void *skerry_host_function(const char *name, void *python, void **data) {
    Hook *hook = malloc(sizeof *hook);
    if (!hook) return NULL;
    *hook = (Hook){foreign, (HostFunction)python};
    for (size_t i = 0; i < sizeof OFFERED / sizeof *OFFERED; i++)
        if (!strcmp(OFFERED[i].name, name)) hook->body = OFFERED[i].body;
    *data = hook;
    return (void *)call_hook;
}
