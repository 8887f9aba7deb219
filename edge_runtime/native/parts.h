/* What the files of the library share. */
#ifndef SKERRY_PARTS_H
#define SKERRY_PARTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "worker_loop.h"

enum {
    PAGE = 65536,
    SMALL = 4 * PAGE,      /* bytes of a memory up to which zeros are cheaper than fresh pages */
    ROOM = LOOP_ROOM,      /* bytes of the buffers: for frames, a guest's output, its environment */
    MOST_STRINGS = 512,    /* arguments or variables; a call with more is left to the caller */
    TEXTS = 8,             /* texts of a request, in the order of `Text` */
    HEADER_BYTES = 12,     /* of a frame */
    PREFIX_BYTES = 12,     /* of a call's head, before the caller's name */
    FIRST_LOOK = 4,        /* the call after which hot pages of an image are looked for first */
    MOST_RUNS = 64,        /* runs of hot pages of a memory */
    MOST_HOT = 512,        /* hot pages of a memory */
    GAP = 2,               /* the most pages between two hot ones that are copied too */
    KEPT = 32,             /* header lines of answers that were checked */
    KEPT_BYTES = 1024,     /* bytes of such lines as the guest wrote them */
    KEPT_LINES = 1152,     /* and as they are sent */
    CALL = 1,              /* the kind of frame that is a plain call */
    CALL_TIMED = 18,       /* and of one whose times the front asks for */
    LOG = 31,              /* the kind of frame that has what a guest logged */
    SLOT_STARTED = 0, SLOT_WAITED = 1, SLOT_STATE = 3, /* words of the progress page */
    STATE_RUNNING = 1
};
#define NO_REQUEST 0xFFFFFFFFu

typedef enum { METHOD, PATH, QUERY, HEADERS, SCRIPT, ROUTE, PARAMS, CLIENT } Text;

typedef struct {
    const uint8_t *at;
    uint32_t size;
} Bytes;

/* A call's head. */
typedef struct {
    uint32_t serial, function;
    bool https;
    Bytes caller, auth_type, block, text[TEXTS];
} Head;

typedef struct {
    uint32_t request, kind;
    Bytes head, body, whole;
} Frame;

/* Strings as WASI gives them to a guest, each ended by NUL. */
typedef struct {
    bool made;
    uint32_t size, count;
    uint32_t starts[MOST_STRINGS];
    uint8_t bytes[ROOM];
} Strings;

typedef struct {
    uint8_t *bytes;
    uint64_t size, room;
} Output;

/* The call that runs. */
typedef struct {
    Function *function;
    const Head *head;
    Bytes body;
    uint32_t body_at;
    uint64_t memory_size; /* bytes of the guest's memory, as far as is known */
    uint8_t streams[3];   /* what the descriptors 0, 1 and 2 are: 0, 1, 2, or CLOSED_STREAM */
    uint64_t out_room;
    uint32_t log_room;
    uint64_t log_lost;    /* bytes that the guest wrote to its log beyond `log_room` */
    uint64_t started_ns;
    uint32_t stop, exit_code;
} Call;
#define CLOSED_STREAM 3
#define LOST_LINE 96 /* more than the bytes of the line that ends a log of which something was left out */

/* Header lines of an answer that were checked: as a guest wrote them, and as they are sent. */
typedef struct {
    uint32_t wagi, block_size, status, has_type, lines_size;
    uint8_t block[KEPT_BYTES], lines[KEPT_LINES];
} Kept;

struct Loop {
    Setup setup;
    const Release *releases;
    uint32_t release_count;
    uint32_t at, have; /* in `in`: what is used, and what has come */
    uint8_t in[ROOM];
    Call call;
    bool running;      /* a guest runs, and host functions are the loop's */
    Function *unclear; /* whose memory has an answer in it yet */
    Strings arguments, environment;
    Output out, log;
    Kept kept[KEPT];
    uint32_t kept_next, kept_count;
    uint64_t calls;
    uint32_t quiet_ms;
    Event *event;
};

/* WasmEdge's value of the C API: 16 bytes of value, 8 of type, 8 of padding. */
typedef struct {
    _Alignas(16) uint64_t value[2];
    uint8_t type[8];
    uint8_t padding[8];
} Value;
typedef struct {
    uint32_t size;
    const char *at;
} Name;

typedef uint32_t (*Invoke)(void *, const void *, const Value *, uint32_t, Value *, uint32_t); /* the engine's `invoke` */

extern Loop *skerry_loop; /* the process's only one, while it runs */

/* memory.c */
uint8_t *guest_bytes(Loop *loop, uint64_t start, uint64_t size);
bool memory_clear(Function *function, const Engine *engine);
uint32_t memory_pages(const Function *function, const Engine *engine);
bool output_add(Output *output, const uint8_t *bytes, uint64_t size);

/* head.c */
bool head_read(Bytes bytes, Head *head);
int frame_read(const Loop *loop, Frame *frame);

/* strings.c */
bool arguments_make(Strings *strings, const Head *head, const Function *function);
bool environment_make(Strings *strings, const Head *head, const Function *function, uint32_t body_size);
bool head_fits(const Head *head);

/* guest.c */
typedef enum { ANSWERED, UNCHECKED, FAILED, FOREIGN } Ending;
typedef struct {
    uint32_t status;
    Bytes lines;
    const uint8_t *body;
    uint64_t body_size;
} Answer;
Ending guest_call(Loop *loop, Answer *answer);

/* answers.c */
Ending answer_direct(Loop *loop, uint32_t start, uint32_t size, Answer *answer);
Ending answer_wagi(Loop *loop, Answer *answer);

/* wasi.c */
void log_note(Loop *loop, const uint8_t *bytes, uint32_t size);
void log_lose(Loop *loop, uint64_t size);
void log_close(Loop *loop);
uint64_t now_ns(void);
uint32_t arg(const Value *values, int position);
uint32_t stop(Loop *loop, uint32_t why);

/* sql.c */
uint32_t host_sql(Loop *loop, const Value *in, uint32_t *answer);
uint32_t host_result(Loop *loop, const Value *in, uint32_t *answer);

#endif
