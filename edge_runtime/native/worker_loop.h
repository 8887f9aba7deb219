/* The worker's loop for plain calls: of functions of the ABIs `direct` and WAGI that are granted no HTTP.

   Everything else is left to the caller, which is Python: a frame that is no plain call, a guest that asks for more than
   the loop offers, a guest that fails, an answer whose header lines haven't been checked yet. This file is read by C
   and, as declarations, by cffi; so it has nothing in it that either doesn't know. */

/* WasmEdge's functions, and values' types, as the C API of 0.14.1 has them. */
typedef struct {
    void *instantiate, *invoke, *delete_instance, *find_function, *memory_pages;
    uint8_t type_i32[8], type_i64[8];
} Engine;

/* Pages of the processor's: from the first to before the second. */
typedef struct {
    uint32_t start, end;
} Run;

/* A function that is loaded. What its fields point to is the caller's, and must outlive `ready`. */
typedef struct {
    uint32_t ready;       /* 1: the loop may call it */
    uint32_t foreign;     /* calls to be run by the caller before it is ready again: set by the loop, for the caller to
                             count down, where the guest has asked for what the loop hasn't */
    uint32_t wagi;        /* 1: WAGI, 0: `direct` */
    uint32_t initializes; /* 1: `_initialize` is called before anything else */
    void *executor, *store, *module, *memory;
    uint8_t *base;        /* where its memory begins */
    const uint8_t *image; /* what its memory starts with; NULL: zeros */
    uint32_t pages, most; /* of the memory, 64 KiB each: at the start, and at most */
    uint32_t restored;    /* how often the memory was made its image again; the caller sets it to 0 with `image` */
    uint32_t hot_count;   /* likewise */
    Run hot[64];          /* MOST_RUNS: what calls were seen to write, and is copied from the image */
    uint32_t log_bytes;
    uint64_t response_bytes;
    const uint8_t *name;
    uint32_t name_size;
    const uint8_t *settings; /* NAME=value, each ended by NUL */
    uint32_t settings_size;
    uint32_t sql; /* 1: it is granted SQL, and `ask` and `settle` are called for it */
    uint64_t used; /* the loop's number of the call that was its last one */
} Function;

/* The functions of a release, by their index; `serial` is the front's number for it. */
typedef struct {
    uint32_t serial, count;
    Function **functions;
} Release;

/* The SQL of the call that runs, which is the caller's. `ask` is given a statement, as the guest wrote it; its answer is
   what `sql_answer` points to, until it is called again or the call has ended. `settle` is called when the guest has
   answered, whether it has asked or not: it commits what was written, or undoes it. It is called for a function without
   SQL too where the front asks for the times of the call: it sends them. Both return 0 where the call can't go on;
   nothing else may be called meanwhile. */
typedef uint32_t (*Ask)(const uint8_t *request, uint32_t size);
typedef uint32_t (*Settle)(uint32_t status);

typedef struct {
    int socket;
    uint8_t *slot; /* the worker's slot of the progress page */
    uint32_t log_at, log_bytes, claims_at, claims;
    uint32_t head_limit;          /* bytes of an answer's header lines */
    void *executor, *outer;       /* of the outer module, whose function calls `skerry_entered`; NULL: called directly */
    Engine engine;
    Ask ask;
    Settle settle;
} Setup;

/* Why the loop has returned. */
typedef struct {
    uint64_t calls;         /* of the worker so far; the caller sets it, and the loop counts on */
    uint32_t kind;
    uint32_t request;       /* the call that it is about */
    const uint8_t *bytes;   /* FRAME, CLOSED: what has been received and not used; RETURNED: the call's frame */
    uint64_t size;
    Function *function;
    uint32_t result;        /* FAILED: WasmEdge's, or 0 */
    uint32_t stop;          /* FAILED: why it was ended, one of the numbers below */
    uint32_t exit_code;
    uint32_t address, length; /* what the guest gave: for the request, or as its answer */
    uint32_t pages;         /* of the memory at the end */
    uint32_t unclear;       /* 1: the memory couldn't be made as it was */
    uint32_t uninstantiated; /* 1: there is no instance, and its store must be made anew */
    const uint8_t *out;     /* UNCHECKED: the answer */
    uint64_t out_size;
    const uint8_t *log;     /* what the guest wrote to stderr */
    uint32_t log_size;
    uint64_t started_ns;
    uint32_t serial, index; /* of the function: its release, and its place there */
    const uint8_t *method;  /* the request's */
    uint32_t method_size;
    uint32_t timed;         /* 1: the front asks for the times of the call */
    const uint8_t *sql_answer; /* set by `ask`; NULL once the guest has it */
    uint32_t sql_answer_size;
} Event;

enum {
    EVENT_FRAME = 1,     /* a frame that isn't the loop's */
    EVENT_CLOSED = 2,    /* the front has closed the socket, or it failed */
    EVENT_RETURNED = 3,  /* a call that is claimed, and must be run again from its start */
    EVENT_FAILED = 4,    /* the guest failed */
    EVENT_UNCHECKED = 5, /* the guest has answered; nothing of the answer but its place was checked */
    EVENT_UNCLEAR = 6,   /* a call is answered, and the memory of its function couldn't be made as it was */
    EVENT_BROKEN = 7,    /* WasmEdge ended the loop itself: `result` */
    EVENT_QUIET = 8,     /* nothing has come for `quiet_ms` */
    EVENT_UNSETTLED = 9  /* `settle` has returned 0; the guest's answer is gone */
};
enum { FOREIGN_CALLS = 100 };
enum { LOOP_ROOM = 262144 }; /* bytes of frames that the loop can have at once */
enum { STOP_NONE = 0, STOP_EXIT = 1, STOP_OUTPUT = 2, STOP_FOREIGN = 3, STOP_ROOM = 4, STOP_ASK = 5 };

typedef struct Loop Loop;
Loop *skerry_loop_new(const Setup *setup);
void skerry_loop_free(Loop *loop);
void skerry_loop_serve(Loop *loop, const Release *releases, uint32_t count);
int skerry_loop_give(Loop *loop, const uint8_t *bytes, uint64_t size);
int skerry_loop_keep(Loop *loop, uint32_t wagi, const uint8_t *block, uint32_t block_size, uint32_t status,
                     uint32_t has_type, const uint8_t *lines, uint32_t lines_size);
uint32_t skerry_loop_run(Loop *loop, Event *event, uint32_t quiet_ms);
void *skerry_host_function(const char *name, void *python, void **data);
uint32_t skerry_entered(void *data, const void *frame, const void *in, void *out);
