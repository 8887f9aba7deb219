#define _GNU_SOURCE
#include "engine.h"

#include <string.h>
#include <sys/mman.h>

Fake fakes[FUNCTIONS];
Script guest_script;
void (*guest_starts)(void);

static Fake *running;
static char start, initialize, allocate, handle;
static char entered[1]; /* the outer module's function */

static const char *const NAMES[] = {
    "fd_write", "fd_read", "fd_write", "fd_read", "args_sizes_get", "args_get", "environ_sizes_get", "environ_get",
    "clock_res_get", "clock_time_get", "random_get", "proc_exit", "proc_raise", "sched_yield", "fd_close",
    "fd_fdstat_get", "fd_seek", "fd_sync", "fd_readdir", "path_open", "fd_prestat_get", "sock_recv", "poll_oneoff", "sql", "sql", "result",
};
enum { HOST_FUNCTIONS = sizeof NAMES / sizeof *NAMES };

static struct {
    const char *name;
    void *function, *data;
} hosts[HOST_FUNCTIONS];

uint8_t script_byte(Script *script) {
    if (!script->left) return 0;
    script->left--;
    return *script->at++;
}

static uint32_t bytes(Script *script, int count) {
    uint32_t number = 0;
    for (int i = 0; i < count; i++) number |= (uint32_t)script_byte(script) << 8 * i;
    return number;
}

/* A number, more often one at an edge of something. */
uint32_t script_word(Script *script) {
    uint32_t pages = running ? running->memory.pages : 1;
    switch (script_byte(script) % 8) {
        case 0: return script_byte(script);
        case 1: return bytes(script, 2);
        case 2: return bytes(script, 4);
        case 3: return pages * PAGE - script_byte(script);
        case 4: return 0u - script_byte(script);
        case 5: return pages * PAGE + script_byte(script);
        default: return 1024u + script_byte(script);
    }
}

/* What is Python's: never called while a guest runs. */
static uint32_t pythons(void *data, const void *frame, const Value *in, Value *out) {
    (void)data, (void)frame, (void)in, (void)out;
    FAIL("a host function of the loop's was called as Python's");
    return 0;
}

/* What the loop wrote for a guest that isn't the same each time: clocks of the call's own, and bytes of chance. */
static void check_written(const char *name, const uint32_t arguments[5], const uint8_t before[16]) {
    const uint8_t *base = running->memory.base;
    if (!strcmp(name, "clock_time_get")) {
        uint64_t time;
        memcpy(&time, base + arguments[2], 8);
        if (arguments[0])
            CHECK(time && time < 600000000000u);
        else
            CHECK(time > 1700000000000000000u);
    }
    if (!strcmp(name, "random_get") && arguments[1] >= 16) CHECK(memcmp(base + arguments[0], before, 16));
}

static uint32_t call_number(size_t number, const uint32_t arguments[5], uint32_t *answer) {
    if (!hosts[number].function) {
        hosts[number].function = skerry_host_function(NAMES[number], (void *)pythons, &hosts[number].data);
        CHECK(hosts[number].function && hosts[number].data);
    }
    Value in[5] = {{{0}, {0}, {0}}}, out = {{7, 0}, {0}, {0}};
    for (int i = 0; i < 5; i++) in[i].value[0] = arguments[i];
    uint32_t (*function)(void *, const void *, const Value *, Value *) =
        (uint32_t(*)(void *, const void *, const Value *, Value *))hosts[number].function;
    uint8_t before[16] = {0};
    uint64_t size = (uint64_t)running->memory.pages * PAGE;
    if (arguments[0] + (uint64_t)16 <= size) memcpy(before, running->memory.base + arguments[0], 16);
    uint32_t result = function(hosts[number].data, NULL, in, &out);
    *answer = (uint32_t)out.value[0];
    if (!result && !out.value[0]) check_written(NAMES[number], arguments, before);
    CHECK(result || out.value[0] < 77 || !strcmp(NAMES[number], "sql"));
    if (!strcmp(NAMES[number], "result")) CHECK(out.value[0] == 7);
    return result;
}

uint32_t host_call(const char *name, const uint32_t arguments[5], uint32_t *answer) {
    for (size_t i = 0; i < HOST_FUNCTIONS; i++)
        if (!strcmp(NAMES[i], name)) return call_number(i, arguments, answer);
    FAIL("no host function of this name");
    return 0;
}

static void write_guest(uint32_t at, const void *from, uint32_t size) {
    Memory *memory = &running->memory;
    if ((uint64_t)at + size <= (uint64_t)memory->pages * PAGE && size) memcpy(memory->base + at, from, size);
}

static void grow(uint32_t more) {
    Memory *memory = &running->memory;
    if (more > running->function.most - memory->pages) return;
    CHECK(!mprotect(memory->base + (size_t)memory->pages * PAGE, (size_t)more * PAGE, PROT_READ | PROT_WRITE));
    memory->pages += more;
}

/* An answer as it should be, of a body with `size` bytes; its header lines are one of a few. */
static uint32_t answer_well(uint8_t kind, uint32_t size, Value *out) {
    static const char *const LINES[] = {"content-type: text/plain\n", "content-type: a/b\r\nx: y\n", "x: y\r\n", ""};
    const char *lines = LINES[kind % 4];
    uint32_t length = (uint32_t)strlen(lines), numbers[2] = {200u + kind, length}, answer;
    uint8_t body[1200];
    size = size < sizeof body ? size : sizeof body;
    memset(body, 'b', sizeof body);
    if (out) {
        write_guest(2048, numbers, 8);
        write_guest(2056, lines, length);
        write_guest(2056 + length, body, size);
        out->value[0] = (uint64_t)2048 << 32 | (8 + length + size);
        return 0;
    }
    uint32_t vectors[6] = {2048, length, 2048 + length, 1 + (kind & 64 ? 1 : 0), 2048 + length + 2, size};
    const char *blank = kind & 64 ? "\r\n" : "\n\n";
    write_guest(2048, lines, length);
    write_guest(2048 + length, blank, 2);
    write_guest(2048 + length + 2, body, size);
    write_guest(1024, vectors, sizeof vectors);
    return host_call("fd_write", (const uint32_t[5]){1, 1024, 3, 512, 0}, &answer);
}

/* Runs the guest until it returns, is ended or traps. */
static uint32_t run(Value *out, bool starting) {
    Script *script = &guest_script;
    for (int steps = 0; steps < 100; steps++) {
        uint8_t todo = script_byte(script);
        uint32_t at, size, arguments[5], answer, result;
        uint8_t piece[255];
        switch (todo % 12) {
            case 0: case 1: case 2: case 3:
                at = script_byte(script) % HOST_FUNCTIONS;
                for (int i = 0; i < 5; i++) arguments[i] = script_word(script);
                if (todo & 16) arguments[0] %= 4;
                if (todo & 32) arguments[2] %= 20;
                if ((result = call_number(at, arguments, &answer))) return result;
                break;
            case 4:
                at = script_word(script), size = script_byte(script);
                for (uint32_t i = 0; i < size; i++) piece[i] = script_byte(script);
                write_guest(at, piece, size);
                break;
            case 5: case 6:
                size = script_byte(script) % 20, at = 1024;
                for (uint32_t i = 0; i < size; i++, at += 8) {
                    uint32_t vector[2] = {script_word(script), script_word(script)};
                    if (todo & 64) vector[1] %= 2000;
                    write_guest(at, vector, 8);
                }
                break;
            case 7:
                grow(script_byte(script) % 16);
                /* As if it were another version's memory, which can't be made smaller. */
                if (todo & 128 && todo & 64) running->memory.most++;
                break;
            case 8:
                if (todo & 128) return TRAPPED;
                break;
            case 9:
                if (starting) return 0;
                if (out && out->value[1]) out->value[1] = 0, out->value[0] = (uint64_t)script_word(script) << 32;
                if (out) out->value[0] |= script_word(script);
                return 0;
            default:
                if (starting || todo & 16) return 0;
                /* `skerry_alloc` answers with a place of its own. */
                if (out && !out->value[1]) {
                    out->value[0] = todo & 32 ? script_word(script) : 4096;
                    return 0;
                }
                if (out) out->value[1] = 0;
                size = script_word(script);
                return answer_well(script_byte(script), size, out);
        }
    }
    return 0;
}

/* The engine */

static uint32_t instantiate(void *executor, void **instance, void *store, const void *module) {
    running = executor;
    CHECK(store == &running->memory && module == running);
    Memory *memory = &running->memory;
    CHECK(memory->pages == running->function.pages);
    for (size_t i = 0; i < (size_t)memory->pages * PAGE; i += 8) {
        uint64_t word;
        memcpy(&word, memory->base + i, 8);
        CHECK(!word);
    }
    guest_starts();
    running->runs++;
    uint32_t result = run(NULL, true);
    running->failed = result != 0;
    if (!result) *instance = running;
    return result;
}

static void delete_instance(void *instance) {
    CHECK(instance == running);
    running = NULL;
}

static const void *find_function(const void *instance, Name name) {
    CHECK(instance == running);
    if (name.size == 6 && !memcmp(name.at, "_start", 6)) return &start;
    if (name.size == 11 && !memcmp(name.at, "_initialize", 11)) return &initialize;
    if (name.size == 12 && !memcmp(name.at, "skerry_alloc", 12)) return &allocate;
    CHECK(name.size == 13 && !memcmp(name.at, "skerry_handle", 13));
    return &handle;
}

static uint32_t invoke(void *executor, const void *function, const Value *in, uint32_t count, Value *out,
                       uint32_t results) {
    if (executor == entered) return skerry_entered(NULL, NULL, NULL, NULL);
    CHECK(executor == running);
    bool wagi = running->function.wagi;
    if (function == &start || function == &initialize) {
        CHECK(!count && !out && !results && (wagi || function == &initialize));
        return run(NULL, function == &initialize);
    }
    CHECK(!wagi && out && results == 1 && count == (function == &handle ? 2 : 1));
    for (uint32_t i = 0; i < count; i++) CHECK(!memcmp(in[i].type, fake_engine.type_i32, 8));
    CHECK(!memcmp(out->type, function == &handle ? fake_engine.type_i64 : fake_engine.type_i32, 8));
    out->value[0] = 0;
    out->value[1] = function == &handle;
    return run(out, false);
}

static uint32_t pages_of(const void *memory) { return ((const Memory *)memory)->pages; }

Engine fake_engine = {
    (void *)instantiate, (void *)invoke, (void *)delete_instance, (void *)find_function, (void *)pages_of,
    {1, 2, 3, 4, 5, 6, 7, 8}, {8, 7, 6, 5, 4, 3, 2, 1},
};

/* Functions */

static void reserve(Memory *memory) {
    size_t size = (size_t)(MOST_PAGES + 2) * PAGE;
    uint8_t *base = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(base != MAP_FAILED);
    /* What lies before and behind a guest's memory can't be read. */
    memory->base = base + PAGE;
}

/* Makes a memory as it is before any call. */
void fake_renew(Fake *fake) {
    Memory *memory = &fake->memory;
    int flags = MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_NORESERVE;
    CHECK(mmap(memory->base, (size_t)MOST_PAGES * PAGE, PROT_NONE, flags, -1, 0) == memory->base);
    memory->pages = fake->function.pages;
    memory->most = fake->function.most;
    CHECK(!mprotect(memory->base, (size_t)memory->pages * PAGE, PROT_READ | PROT_WRITE));
}

void fakes_reset(void) {
    static const Function LIKE[FUNCTIONS] = {
        {.pages = 1, .most = 3, .log_bytes = 200, .response_bytes = 1000},
        {.wagi = 1, .sql = 1, .pages = 1, .most = 2, .log_bytes = 300, .response_bytes = 1000},
        {.wagi = 1, .initializes = 1, .pages = 2, .most = 12, .log_bytes = 10, .response_bytes = 64},
        {.initializes = 1, .sql = 1, .pages = 6, .most = 12, .log_bytes = 3000, .response_bytes = 9000},
    };
    static const uint8_t SETTINGS[] = "GREETING=hello\0EMPTY=";
    fake_engine.type_i32[0] = 1;
    running = NULL;
    for (int i = 0; i < FUNCTIONS; i++) {
        Fake *fake = &fakes[i];
        uint8_t *base = fake->memory.base;
        bool grown = fake->memory.pages != LIKE[i].pages;
        fake->function = LIKE[i];
        fake->memory = (Memory){.pages = LIKE[i].pages, .most = LIKE[i].most, .base = base};
        if (!base) reserve(&fake->memory), grown = true;
        Function *function = &fake->function;
        function->executor = function->module = fake;
        function->store = function->memory = &fake->memory;
        function->base = fake->memory.base;
        function->name = (const uint8_t *)"fake";
        function->name_size = 4;
        function->settings = SETTINGS;
        function->settings_size = i % 2 ? sizeof SETTINGS : 0;
        function->ready = 1;
        fake->runs = 0;
        fake->failed = false;
        if (grown)
            fake_renew(fake);
        else
            memset(function->base, 0, (size_t)function->pages * PAGE);
    }
}

void *fake_outer(void) { return entered; }
