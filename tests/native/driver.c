/* Runs the loop on bytes: what comes from the front, and what guests do. Whatever the bytes are, each call is answered
   once, no guest sees what another has left, and nothing is written where it must not be. */
#define _GNU_SOURCE
#include "driver.h"

#include <semaphore.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine.h"

enum { MOST_CALLS = 8, CLAIMS = 64, CLAIMS_AT = 1024, LOG_AT = 4096, SLOT_BYTES = LOG_AT + 8 + LOGS + 8, HEAD_LIMIT = 300 };

static _Alignas(4096) uint8_t slot[SLOT_BYTES + 64];

/* SQL, of which the loop asks: each answer is bytes of its own, as many as the statement's first byte says. */

static Event event;
static uint8_t *sql_answer;
static uint32_t refuse; /* 1: each statement, 2: each end */

static uint32_t ask(const uint8_t *request, uint32_t size) {
    CHECK(event.method_size && event.function->sql);
    uint32_t sum = 0, answer_size = size ? request[0] * 3u : 0;
    for (uint32_t i = 0; i < size; i++) sum += request[i];
    if (sum % 16 == 5 || refuse == 1) return 0;
    free(sql_answer);
    sql_answer = malloc(answer_size + 1);
    CHECK(sql_answer);
    memset(sql_answer, 's', answer_size + 1);
    event.sql_answer = sql_answer;
    event.sql_answer_size = answer_size;
    return 1;
}

static uint32_t settle(uint32_t status) {
    CHECK((event.function->sql || event.timed) && status >= 200 && status <= 599);
    free(sql_answer);
    sql_answer = NULL;
    return refuse != 2;
}

/* The progress page. What others leave there, of the call before, is what the loop has to set anew. */

static uint64_t slot_word(size_t at) {
    uint64_t word;
    memcpy(&word, slot + at, 8);
    return word;
}

static void set_slot_word(size_t at, uint64_t word) { memcpy(slot + at, &word, 8); }

static void leave_words(uint32_t request) {
    set_slot_word(8 * SLOT_STARTED, 1);
    set_slot_word(8 * SLOT_WAITED, 99);
    set_slot_word(8 * SLOT_STATE, request);
    set_slot_word(LOG_AT, 77);
}

static void check_running(void) {
    CHECK(slot_word(8 * SLOT_STATE) == ((uint64_t)STATE_RUNNING << 32 | event.request));
    CHECK(slot_word(8 * SLOT_STARTED) == event.started_ns && event.started_ns > 1 && !slot_word(8 * SLOT_WAITED));
    CHECK(!slot_word(LOG_AT));
}

/* What became of the calls. */
typedef struct {
    uint32_t calls, claimed, next;
    bool heads[256]; /* by request: the method is HEAD */
    bool damaged; /* frames aren't as the front makes them: what becomes of them isn't known */
    uint32_t answers, returned, faults, passed;
} Tally;

static uint8_t frames[150000];
static uint32_t frames_size;

static void add(const void *bytes, uint32_t size) {
    if (size > sizeof frames - frames_size) return;
    if (size) memcpy(frames + frames_size, bytes, size);
    frames_size += size;
}

static void add_header(uint32_t request, uint16_t kind, uint32_t head, uint32_t body) {
    uint32_t length = head + body;
    uint16_t head_size = (uint16_t)head;
    add(&length, 4), add(&request, 4), add(&kind, 2), add(&head_size, 2);
}

static void add_some(Script *script, uint32_t size, bool text) {
    static const uint8_t LETTERS[] = "a&=:%2F\n x-Host:cOOkie;9/";
    for (uint32_t i = 0; i < size; i++) {
        uint8_t byte = script_byte(script);
        add(text ? &LETTERS[byte % (sizeof LETTERS - 1)] : &byte, 1);
    }
}

/* Adds a call's frame; returns where it begins. */
static uint32_t add_call(Script *script, Tally *tally) {
    uint32_t begin = frames_size, function = script_byte(script) % (FUNCTIONS + 1), options = script_byte(script);
    uint32_t sizes[TEXTS], body = options & 64 ? 200u * script_byte(script) : script_byte(script) % 32u, head = 12 + 32 + 8;
    uint32_t caller = options & 4 ? 6 : 0, how = options & 4 ? 3 : 0;
    for (int i = 0; i < TEXTS; i++) {
        sizes[i] = options & 32 ? script_byte(script) % 40u : 0;
        if (i == METHOD) sizes[i] = 4;
        head += sizes[i];
    }
    head += caller + how;
    add_header(tally->next, options & 8 ? CALL_TIMED : CALL, head, body);
    uint32_t serial = options & 128 ? 1 : 7;
    uint8_t prefix[12] = {0};
    memcpy(prefix, &serial, 4);
    prefix[4] = (uint8_t)function;
    prefix[6] = options & 1;
    prefix[7] = (uint8_t)how, prefix[8] = (uint8_t)caller;
    add(prefix, 12);
    add("till-3", caller), add("JWT", how);
    add(sizes, 32);
    for (int i = 0; i < TEXTS; i++) {
        if (i == METHOD)
            add(options & 2 ? "HEAD" : "POST", 4), tally->heads[tally->next % 256] = options & 2;
        else
            add_some(script, sizes[i], true);
        add("", 1);
    }
    add_some(script, body, false);
    return begin;
}

static void claimable(Tally *tally, bool is) {
    sem_t *claims = (sem_t *)(void *)(slot + CLAIMS_AT);
    tally->calls++;
    if (is) {
        tally->claimed++;
        CHECK(!sem_post(&claims[tally->next % CLAIMS]));
    }
    tally->next++;
}

/* Makes what the front sends. */
static void write_frames(Script *script, Tally *tally) {
    frames_size = 0;
    for (uint32_t i = 0; i < MOST_CALLS && script->left; i++) {
        uint8_t todo = script_byte(script);
        uint32_t begin, size = script_byte(script);
        switch (todo % 10) {
            case 0:
                add_some(script, size, false);
                tally->damaged = true;
                break;
            case 1:
                add_header(tally->next, (uint16_t)(2 + todo), 0, size);
                add_some(script, size, false);
                claimable(tally, false);
                break;
            case 2:
                begin = add_call(script, tally);
                /* A byte of the header, the head or the body is another one. */
                uint32_t at = begin + (size < 200 ? size : script_word(script)) % (frames_size - begin);
                frames[at] = script_byte(script);
                tally->damaged = true;
                claimable(tally, true);
                break;
            default:
                add_call(script, tally);
                claimable(tally, todo < 240);
        }
    }
    if (script->left == 0 && frames_size && tally->damaged) frames_size -= script_byte(script) % frames_size;
}

static uint32_t u32(const uint8_t *at) {
    uint32_t number;
    memcpy(&number, at, 4);
    return number;
}

static void handle_failed(Fake *fake) {
    CHECK(event.uninstantiated == fake->failed);
    fake->failed = false;
    if (event.uninstantiated || event.unclear) fake_renew(fake);
    fake->function.foreign = 0;
    fake->function.ready = 1;
}

/* Reads all of these bytes, which shall be there. */
static uint32_t sum(const uint8_t *bytes, uint64_t size) {
    uint32_t found = 0;
    for (uint64_t i = 0; i < size; i++) found = found * 31 + bytes[i];
    return found;
}

/* Keeps the header lines of a direct answer, or of a WAGI one, as Python does where they can be sent. */
static void keep(Loop *loop) {
    const uint8_t *out = event.out;
    if (!event.function->wagi) {
        if (event.out_size < 8 || u32(out + 4) > event.out_size - 8) return;
        uint32_t size = u32(out + 4);
        int kept = skerry_loop_keep(loop, 0, out + 8, size, 0, size > 14, (const uint8_t *)"direct\r\n", 8);
        CHECK(kept == (size <= KEPT_BYTES));
        return;
    }
    const uint8_t *end = memmem(out, event.out_size, "\n\n", 2);
    if (end) skerry_loop_keep(loop, 1, out, (uint32_t)(end + 1 - out), 201, 1, (const uint8_t *)"wagi\r\n", 6);
}

/* Does what Python does when the loop returns; returns whether the loop goes on. */
static bool handle(Loop *loop, Tally *tally) {
    static uint8_t left[ROOM];
    Fake *fake = (Fake *)(void *)event.function;
    /* A call that the loop has ended itself is told to be; those of the other events are the caller's to end. */
    if (event.kind == EVENT_CLOSED || event.kind == EVENT_FRAME || event.kind == EVENT_UNCLEAR)
        CHECK(!(slot_word(8 * SLOT_STATE) >> 32));
    else if (!tally->damaged)
        CHECK(event.method_size == 4 && !memcmp(event.method, tally->heads[event.request % 256] ? "HEAD" : "POST", 4));
    leave_words(event.request);
    /* The line that says how much was left out comes on top. */
    if (event.log_size) CHECK(event.log_size <= event.function->log_bytes + LOST_LINE);
    sum(event.log, event.log_size);
    switch (event.kind) {
        case EVENT_CLOSED:
            return false;
        case EVENT_FRAME: {
            if (event.size < HEADER_BYTES) return false;
            uint64_t size = HEADER_BYTES + (uint64_t)u32(event.bytes);
            if (size > event.size) return false;
            tally->passed++;
            for (int i = 0; i < FUNCTIONS; i++) fakes[i].function.ready = 1;
            memcpy(left, event.bytes + size, event.size - size);
            CHECK(skerry_loop_give(loop, left, event.size - size));
            return true;
        }
        case EVENT_RETURNED:
            tally->returned++;
            CHECK(event.size >= HEADER_BYTES && event.size == HEADER_BYTES + u32(event.bytes));
            CHECK(u32(event.bytes + 4) == event.request);
            if (event.stop == STOP_FOREIGN) CHECK(fake->function.foreign == FOREIGN_CALLS && !fake->function.ready);
            handle_failed(fake);
            return true;
        case EVENT_FAILED:
            tally->faults++;
            CHECK(event.result || event.stop == STOP_ROOM);
            handle_failed(fake);
            return true;
        case EVENT_UNSETTLED:
            CHECK(refuse == 2 && (event.function->sql || event.timed));
            tally->faults++;
            handle_failed(fake);
            return true;
        case EVENT_UNCHECKED:
            tally->answers++;
            sum(event.out, event.out_size);
            if (event.out_size) keep(loop);
            return true;
        case EVENT_UNCLEAR:
            CHECK(!fake->function.ready);
            fake_renew(fake);
            fake->function.ready = 1;
            return true;
    }
    FAIL("an event of this kind");
    return false;
}

/* Reads what the loop has sent: each answer is one, with lines that were checked. */
static void read_answers(int front, Tally *tally) {
    static uint8_t in[MOST_CALLS * 20000];
    size_t size = 0;
    ssize_t got;
    while ((got = recv(front, in + size, sizeof in - size, MSG_DONTWAIT)) > 0) size += (size_t)got;
    for (size_t at = 0; at < size;) {
        CHECK(size - at >= HEADER_BYTES);
        uint16_t kind, head;
        memcpy(&kind, in + at + 8, 2);
        memcpy(&head, in + at + 10, 2);
        uint32_t length = u32(in + at);
        CHECK(length <= size - at - HEADER_BYTES && head <= length);
        const uint8_t *lines = in + at + HEADER_BYTES;
        at += HEADER_BYTES + length;
        if (kind == LOG) {
            CHECK(!head && length && length <= 3000);
            continue;
        }
        CHECK(kind >= 200 && kind <= 599 && length - head <= 9000);
        CHECK((head == 8 && !memcmp(lines, "direct\r\n", 8)) || (head == 6 && !memcmp(lines, "wagi\r\n", 6)));
        CHECK(head == 8 || kind == 201);
        CHECK(length == head || !(kind == 204 || kind == 205 || kind == 304));
        tally->answers++;
    }
}

static void check_slot(void) {
    sem_t *claims = (sem_t *)(void *)(slot + CLAIMS_AT);
    for (size_t i = 32; i < CLAIMS_AT; i++) CHECK(!slot[i]);
    for (size_t i = CLAIMS_AT + CLAIMS * sizeof *claims; i < LOG_AT; i++) CHECK(!slot[i]);
    for (size_t i = SLOT_BYTES; i < sizeof slot; i++) CHECK(slot[i] == 0xAA);
}

static int run(const uint8_t *bytes, size_t size) {
    if (size < 4) return 0;
    size_t front_size = (bytes[0] | (size_t)bytes[1] << 8) % (size - 2);
    Script front = {bytes + 2, front_size};
    guest_script = (Script){bytes + 2 + front_size, size - 2 - front_size};
    Tally tally = {.next = 1 + bytes[0]};

    sem_t *claims = (sem_t *)(void *)(slot + CLAIMS_AT);
    memset(slot, 0, SLOT_BYTES);
    memset(slot + SLOT_BYTES, 0xAA, sizeof slot - SLOT_BYTES);
    for (int i = 0; i < CLAIMS; i++) CHECK(!sem_init(&claims[i], 1, 0));
    fakes_reset();
    write_frames(&front, &tally);

    int sockets[2];
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, sockets));
    uint32_t room = 400000;
    for (int i = 0; i < 2; i++) CHECK(!setsockopt(sockets[i], SOL_SOCKET, SO_SNDBUF, &room, sizeof room));
    for (uint32_t at = 0; at < frames_size;) {
        ssize_t sent = send(sockets[0], frames + at, frames_size - at, MSG_DONTWAIT);
        CHECK(sent > 0);
        at += (uint32_t)sent;
    }
    CHECK(!shutdown(sockets[0], SHUT_WR));
    Setup setup = {
        .socket = sockets[1], .slot = slot, .log_at = LOG_AT, .log_bytes = LOGS, .claims_at = CLAIMS_AT,
        .claims = CLAIMS, .head_limit = HEAD_LIMIT, .engine = fake_engine, .ask = ask, .settle = settle,
    };
    if (bytes[1] & 1) setup.executor = setup.outer = fake_outer();
    Loop *loop = skerry_loop_new(&setup);
    CHECK(loop);
    if (bytes[1] & 16) {
        /* Lines that `answer_well` writes: as if such answers had been checked before. */
        const uint8_t *block = (const uint8_t *)"content-type: text/plain\n";
        CHECK(skerry_loop_keep(loop, 0, block, 25, 0, 1, (const uint8_t *)"direct\r\n", 8));
        CHECK(skerry_loop_keep(loop, 1, block, 25, 201, 1, (const uint8_t *)"wagi\r\n", 6));
    }
    Function *functions[FUNCTIONS];
    for (int i = 0; i < FUNCTIONS; i++) functions[i] = &fakes[i].function;
    Release releases[2] = {{.serial = 7, .count = FUNCTIONS, .functions = functions}, {.serial = 1}};
    skerry_loop_serve(loop, releases, 2);
    event = (Event){.calls = 5};
    refuse = bytes[1] >> 2 & 3;
    leave_words(0);
    guest_starts = check_running;
    uint64_t before;
    do {
        before = event.calls;
        CHECK(skerry_loop_run(loop, &event, bytes[1] & 2 ? 1000 : 0) == event.kind);
        CHECK(event.calls >= before);
    } while (handle(loop, &tally));
    skerry_loop_free(loop);
    close(sockets[1]);
    read_answers(sockets[0], &tally);
    close(sockets[0]);
    check_slot();
    if (!tally.damaged) {
        CHECK(tally.answers + tally.faults + tally.returned + tally.passed <= tally.calls);
        uint32_t runs = 0;
        for (int i = 0; i < FUNCTIONS; i++) runs += fakes[i].runs;
        CHECK(runs <= tally.claimed);
        CHECK(tally.answers + tally.faults <= runs && runs <= tally.answers + tally.faults + tally.returned);
        CHECK(tally.answers + tally.faults + tally.returned + tally.passed >= tally.claimed);
    }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) { return run(bytes, size); }
