/* What the parts of the library say of certain numbers: the edges of a memory, heads and frames that lie. */
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine.h"

void cases_run(void);

/* Bytes that lie right before what can't be read. */
static uint8_t *at_the_edge(const void *bytes, size_t size) {
    static uint8_t *end;
    if (!end) {
        uint8_t *base = mmap(NULL, 5 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(base != MAP_FAILED);
        end = base + 4 * PAGE;
        CHECK(!mprotect(end, PAGE, PROT_NONE));
    }
    if (size) memcpy(end - size, bytes, size);
    return end - size;
}

static void places_of_a_guest(void) {
    fakes_reset();
    Fake *fake = &fakes[0];
    uint8_t *base = fake->memory.base;
    Setup setup = {.socket = -1, .engine = fake_engine};
    Loop *loop = skerry_loop_new(&setup);
    CHECK(loop);
    loop->call = (Call){.function = &fake->function, .memory_size = PAGE};
    CHECK(guest_bytes(loop, 0, 0) == base);
    CHECK(guest_bytes(loop, 0, PAGE) == base);
    CHECK(guest_bytes(loop, PAGE - 1, 1) == base + PAGE - 1);
    CHECK(guest_bytes(loop, PAGE, 0) == base + PAGE);
    static const uint32_t OUTSIDE[][2] = {
        {PAGE, 1}, {PAGE - 1, 2}, {0, PAGE + 1}, {PAGE + 1, 0}, {0xFFFFFFFF, 0}, {0xFFFFFFFF, 1}, {1, 0xFFFFFFFF},
        {0xFFFFFFFF, 0xFFFFFFFF}, {0x80000000, 0x80000000}, {0xFFFF0001, 0xFFFF}, {3 * PAGE - 1, 2},
    };
    for (size_t i = 0; i < sizeof OUTSIDE / sizeof *OUTSIDE; i++) {
        CHECK(!guest_bytes(loop, OUTSIDE[i][0], OUTSIDE[i][1]));
        CHECK(loop->call.memory_size == PAGE);
    }
    /* What the guest has grown is its own at once, and no more than that. */
    fake->memory.pages = 2;
    CHECK(guest_bytes(loop, PAGE, PAGE) == base + PAGE && loop->call.memory_size == 2 * PAGE);
    CHECK(!guest_bytes(loop, PAGE, PAGE + 1));
    skerry_loop_free(loop);
    fake_renew(fake);
}

static void a_memory_is_cleared(void) {
    fakes_reset();
    for (int i = 0; i < FUNCTIONS; i++) {
        Fake *fake = &fakes[i];
        size_t size = (size_t)fake->function.pages * PAGE;
        uint8_t *base = fake->memory.base;
        memset(base, 0xAA, size);
        CHECK(!mprotect(base + size, PAGE, PROT_READ | PROT_WRITE));
        base[size] = 0xAA;
        fake->memory.pages++;
        CHECK(memory_clear(&fake->function, &fake_engine));
        CHECK(fake->memory.pages == fake->function.pages);
        for (size_t at = 0; at < size; at++) CHECK(!base[at]);
        /* A page by which it grows later is a new one. */
        CHECK(!mprotect(base + size, PAGE, PROT_READ | PROT_WRITE));
        CHECK(!base[size]);
        CHECK(!mprotect(base + size, PAGE, PROT_NONE));
        /* Not what 0.14.1 has there: it isn't touched. */
        fake->memory.pages++, fake->memory.most++;
        CHECK(!memory_clear(&fake->function, &fake_engine));
        fake->memory.pages = fake->function.pages - 1;
        CHECK(!memory_clear(&fake->function, &fake_engine));
        fake_renew(fake);
    }
}

static void a_memory_is_its_image_again(void) {
    fakes_reset();
    Fake *fake = &fakes[3];
    Function *function = &fake->function;
    size_t size = (size_t)function->pages * PAGE, page = (size_t)sysconf(_SC_PAGESIZE);
    uint8_t *base = fake->memory.base, *image = malloc(size);
    CHECK(image);
    for (size_t at = 0; at < size; at++) image[at] = (uint8_t)(at / page + at);
    FILE *file = tmpfile();
    CHECK(file && fwrite(image, 1, size, file) == size && !fflush(file));
    int flags = MAP_PRIVATE | MAP_FIXED;
    CHECK(mmap(base, size, PROT_READ | PROT_WRITE, flags, fileno(file), 0) == base);
    function->image = image;
    /* Every page, every third, the last, none, more runs than are kept, and others than were hot at the last look. */
    static const size_t STEPS[] = {1, 3, 0, 2, 2, 5, 4, 96};
    for (uint32_t call = 0; call < 40; call++) {
        size_t step = STEPS[call % 8];
        for (size_t at = 0; step && at < size; at += step * page) base[at] ^= 1, base[at + page - 1] ^= 1;
        base[size - 1] ^= (uint8_t)(call & 1);
        CHECK(!mprotect(base + size, PAGE, PROT_READ | PROT_WRITE));
        fake->memory.pages++;
        CHECK(memory_clear(function, &fake_engine));
        CHECK(fake->memory.pages == function->pages && !memcmp(base, image, size));
        CHECK(function->hot_count <= MOST_RUNS && (function->restored >= FIRST_LOOK) >= (function->hot_count != 0));
    }
    CHECK(function->restored == 40);
    fclose(file);
    free(image);
    fake_renew(fake);
}

/* A head with these texts, whose last is the client's address. */
static uint32_t head_of(uint8_t *to, const char *const texts[TEXTS], const char *caller, const char *how) {
    uint8_t *at = to + PREFIX_BYTES;
    memset(to, 0, PREFIX_BYTES);
    to[0] = 7, to[4] = 1, to[7] = (uint8_t)strlen(how), to[8] = (uint8_t)strlen(caller);
    memcpy(at, caller, to[8]), at += to[8];
    memcpy(at, how, to[7]), at += to[7];
    uint8_t *lengths = at;
    at += 4 * TEXTS;
    for (int i = 0; i < TEXTS; i++) {
        uint32_t size = (uint32_t)strlen(texts[i]);
        memcpy(lengths + 4 * i, &size, 4);
        memcpy(at, texts[i], size + 1), at += size + 1;
    }
    return (uint32_t)(at - to);
}

static const char *const TEXTS_OF_A_CALL[TEXTS] = {
    "GET", "/a%20b%2", "x&&y=%41", "host: shop:80\naccept: a\naccept: b\nx_y: 1\n", "/things", "", "id=a%2Fb&n=%e9", "::1",
};

static void heads(void) {
    uint8_t bytes[512];
    uint32_t size = head_of(bytes, TEXTS_OF_A_CALL, "till-3", "Bearer");
    Head head;
    CHECK(head_read((Bytes){at_the_edge(bytes, size), size}, &head));
    CHECK(head.serial == 7 && head.function == 1 && !head.https);
    CHECK(head.caller.size == 6 && !memcmp(head.caller.at, "till-3", 6));
    CHECK(head.auth_type.size == 6 && !memcmp(head.auth_type.at, "Bearer", 6));
    CHECK(head.text[CLIENT].size == 3 && !memcmp(head.text[CLIENT].at, "::1", 3));
    CHECK(head.block.size == size - PREFIX_BYTES - 12);
    /* Too short or too long by any number of bytes. */
    for (uint32_t cut = 0; cut < size; cut++) CHECK(!head_read((Bytes){at_the_edge(bytes, cut), cut}, &head));
    CHECK(!head_read((Bytes){at_the_edge(bytes, size + 1), size + 1}, &head));
    /* Each length another one, also such that sums of 32 bits wrap. */
    for (uint32_t at = 7; at < PREFIX_BYTES + 12 + 4 * TEXTS; at++) {
        if (at == 12) at = PREFIX_BYTES + 12;
        for (uint32_t value = 0; value < 256; value++) {
            uint8_t *changed = at_the_edge(bytes, size);
            if (changed[at] == value) continue;
            changed[at] = (uint8_t)value;
            CHECK(!head_read((Bytes){changed, size}, &head) || at == 7);
        }
    }
    for (int i = 0; i < TEXTS; i++) {
        uint8_t *changed = at_the_edge(bytes, size);
        memset(changed + PREFIX_BYTES + 12 + 4 * i, 0xFF, 4);
        CHECK(!head_read((Bytes){changed, size}, &head));
    }
    /* Each text is ended by NUL. */
    for (uint32_t i = 0, end = PREFIX_BYTES + 12 + 4 * TEXTS; i < TEXTS; i++, end++) {
        end += (uint32_t)strlen(TEXTS_OF_A_CALL[i]);
        uint8_t *changed = at_the_edge(bytes, size);
        CHECK(!changed[end]);
        changed[end] = 'x';
        CHECK(!head_read((Bytes){changed, size}, &head));
    }
    /* What Python refuses too. */
    bytes[6] = 2;
    CHECK(!head_read((Bytes){at_the_edge(bytes, size), size}, &head));
    bytes[6] = 1, bytes[10] = 1;
    CHECK(!head_read((Bytes){at_the_edge(bytes, size), size}, &head));
}

static void frames(void) {
    static Loop loop;
    Frame frame;
    const uint8_t numbers[HEADER_BYTES] = {5, 0, 0, 0, 9, 0, 0, 0, 1, 0, 2, 0};
    memcpy(loop.in, numbers, sizeof numbers);
    for (loop.have = 0; loop.have < HEADER_BYTES + 5; loop.have++) CHECK(!frame_read(&loop, &frame));
    CHECK(frame_read(&loop, &frame) == 1);
    CHECK(frame.request == 9 && frame.kind == 1 && frame.head.size == 2 && frame.body.size == 3);
    CHECK(frame.whole.size == HEADER_BYTES + 5 && frame.body.at == loop.in + HEADER_BYTES + 2);
    loop.in[10] = 6;
    CHECK(frame_read(&loop, &frame) == -1);
    loop.in[10] = 2;
    uint32_t most = ROOM - HEADER_BYTES;
    memcpy(loop.in, &most, 4);
    CHECK(frame_read(&loop, &frame) == 0);
    loop.have = ROOM;
    CHECK(frame_read(&loop, &frame) == 1 && frame.body.at + frame.body.size == loop.in + ROOM);
    most++;
    memcpy(loop.in, &most, 4);
    CHECK(frame_read(&loop, &frame) == -1);
    most = 0xFFFFFFFF;
    memcpy(loop.in, &most, 4);
    CHECK(frame_read(&loop, &frame) == -1);
}

static void strings_of_a_call(void) {
    static Strings strings;
    fakes_reset();
    uint8_t bytes[4096];
    Head head;
    uint32_t size = head_of(bytes, TEXTS_OF_A_CALL, "", "");
    CHECK(head_read((Bytes){at_the_edge(bytes, size), size}, &head) && head_fits(&head));
    CHECK(arguments_make(&strings, &head, &fakes[1].function) && strings.count == 3);
    CHECK(!memcmp(strings.bytes, "/things/a%20b%2\0x\0y=%41", strings.size) && strings.starts[2] == 18);
    CHECK(environment_make(&strings, &head, &fakes[1].function, 5));
    static const char *const WANTED[] = {
        "PATH_INFO=/a b%2", "HTTP_ACCEPT=a, b", "CONTENT_LENGTH=5", "SERVER_PORT=80", "SERVER_NAME=shop",
        "X_MATCHED_ROUTE=/things/...", "PATH_PARAM_ID=a/b", "PATH_PARAM_N=\xe9", "REMOTE_HOST=::1", "EMPTY=",
        "X_FULL_URL=http://shop:80/things/a%20b%2?x&&y=%41",
    };
    for (size_t i = 0; i < sizeof WANTED / sizeof *WANTED; i++)
        CHECK(memmem(strings.bytes, strings.size, WANTED[i], strlen(WANTED[i]) + 1));
    CHECK(strings.starts[strings.count] == strings.size && !memmem(strings.bytes, strings.size, "X_Y", 3));
    /* More strings than there is room for, and two parameters of one name: not the loop's, however often one asks. */
    const char *texts[TEXTS];
    memcpy(texts, TEXTS_OF_A_CALL, sizeof texts);
    texts[PARAMS] = "id=1&ID=2";
    size = head_of(bytes, texts, "", "");
    CHECK(head_read((Bytes){bytes, size}, &head));
    CHECK(!environment_make(&strings, &head, &fakes[1].function, 0) && !strings.made);
    char query[2 * MOST_STRINGS + 1];
    for (uint32_t count = MOST_STRINGS - 2; count <= MOST_STRINGS; count++) {
        for (uint32_t i = 0; i < count; i++) memcpy(query + 2 * i, "a&", 3);
        texts[QUERY] = query;
        size = head_of(bytes, texts, "", "");
        CHECK(head_read((Bytes){bytes, size}, &head));
        CHECK(arguments_make(&strings, &head, &fakes[1].function) == (count + 1 < MOST_STRINGS));
        CHECK(strings.made == (count + 1 < MOST_STRINGS));
    }
    /* What no variable can hold, or no ASCII. */
    texts[QUERY] = "%00";
    size = head_of(bytes, texts, "", "");
    CHECK(head_read((Bytes){bytes, size}, &head) && !head_fits(&head));
    size = head_of(bytes, TEXTS_OF_A_CALL, "st\xc3\xa4lle", "JWT");
    CHECK(head_read((Bytes){bytes, size}, &head) && !head_fits(&head));
}

/* Strings of as many bytes as there are, and one more. */
static void strings_that_are_long(void) {
    static Strings strings;
    static uint8_t name[ROOM];
    memset(name, 'n', sizeof name);
    Function function = {.name = name};
    Head head = {.serial = 0};
    for (function.name_size = ROOM - 2; function.name_size <= ROOM; function.name_size++)
        CHECK(arguments_make(&strings, &head, &function) == (function.name_size < ROOM));
}

static void header_lines_are_kept(void) {
    Setup setup = {.socket = -1};
    Loop *loop = skerry_loop_new(&setup);
    static uint8_t block[KEPT_BYTES + 1], lines[KEPT_LINES + 1];
    CHECK(loop && !skerry_loop_keep(loop, 0, block, KEPT_BYTES + 1, 0, 0, lines, 0));
    CHECK(!skerry_loop_keep(loop, 0, block, 0, 0, 0, lines, KEPT_LINES + 1));
    for (uint32_t i = 0; i < 3 * KEPT; i++) {
        block[0] = (uint8_t)i;
        CHECK(skerry_loop_keep(loop, i % 2, block, KEPT_BYTES, i, 1, lines, KEPT_LINES));
        CHECK(skerry_loop_keep(loop, i % 2, block, KEPT_BYTES, i + 1, 1, lines, 1));
    }
    CHECK(loop->kept_count == KEPT);
    for (uint32_t i = 0; i < KEPT; i++) CHECK(loop->kept[i].status == 2 * KEPT + i && loop->kept[i].lines_size == KEPT_LINES);
    uint8_t *bytes = block;
    CHECK(!skerry_loop_give(loop, bytes, ROOM + 1));
    CHECK(skerry_loop_give(loop, bytes, 5) && !skerry_loop_give(loop, bytes, 5));
    skerry_loop_free(loop);
}

/* What a large output took is given back. */
static void large_outputs(void) {
    static uint8_t piece[ROOM + 1];
    Setup setup = {.socket = -1};
    Event event = {.calls = 3};
    Loop *loop = skerry_loop_new(&setup);
    CHECK(loop && output_add(&loop->out, piece, sizeof piece) && output_add(&loop->log, piece, 10));
    CHECK(skerry_loop_run(loop, &event, 0) == EVENT_CLOSED && event.calls == 3);
    CHECK(!loop->out.room && !loop->out.bytes && loop->log.room);
    skerry_loop_free(loop);
}

void cases_run(void) {
    places_of_a_guest();
    a_memory_is_cleared();
    a_memory_is_its_image_again();
    heads();
    frames();
    strings_of_a_call();
    strings_that_are_long();
    header_lines_are_kept();
    large_outputs();
}
