/* The memory of a guest: the one check of what a guest gives as a place in it, and its clearing after a call. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "parts.h"

/* The first fields of WasmEdge 0.14.1's object of a memory: no function of its C API makes a memory smaller. */
typedef struct {
    uint8_t kind;
    uint32_t pages, most;
    uint8_t *base;
} Inside;

uint32_t memory_pages(const Function *function, const Engine *engine) {
    uint32_t (*pages)(const void *) = (uint32_t(*)(const void *))engine->memory_pages;
    return pages(function->memory);
}

/* Every place and length that a guest gives becomes an address of ours here, and nowhere else. Returns NULL where not
   all of these bytes are the guest's. `start` and `size` have 32 bits as the guest gave them, so their sum can't wrap. */
uint8_t *guest_bytes(Loop *loop, uint64_t start, uint64_t size) {
    Call *call = &loop->call;
    if (start + size > call->memory_size) {
        /* The guest may have grown it. */
        call->memory_size = (uint64_t)memory_pages(call->function, &loop->setup.engine) * PAGE;
        if (start + size > call->memory_size) return NULL;
    }
    return call->function->base + start;
}

/* Takes away the pages by which the guest has grown its memory; their addresses stay reserved. */
static bool shrink(const Function *function, uint32_t pages) {
    Inside *inside = function->memory;
    if (inside->pages != pages || inside->most != function->most || inside->base != function->base) return false;
    uint8_t *end = function->base + (size_t)function->pages * PAGE;
    size_t more = (size_t)(pages - function->pages) * PAGE;
    int flags = MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_NORESERVE;
    if (mmap(end, more, PROT_NONE, flags, -1, 0) != end) return false;
    inside->pages = function->pages;
    return true;
}

/* Notes the runs of pages that differ from the image, as `image.py` does. */
static void look(Function *function, size_t size, size_t page) {
    uint32_t runs = 0, hot = 0;
    for (size_t start = 0; start < size; start += PAGE) {
        if (!memcmp(function->base + start, function->image + start, PAGE)) continue;
        for (size_t at = start; at < start + PAGE && hot < MOST_HOT; at += page) {
            if (!memcmp(function->base + at, function->image + at, page)) continue;
            uint32_t number = (uint32_t)(at / page);
            if (runs && number - function->hot[runs - 1].end <= GAP) {
                hot += number + 1 - function->hot[runs - 1].end;
                function->hot[runs - 1].end = number + 1;
            } else if (runs < MOST_RUNS) {
                hot++;
                function->hot[runs++] = (Run){number, number + 1};
            }
        }
    }
    function->hot_count = runs;
}

/* Makes the memory its image again: copies pages that calls were seen to write, and gives all others back. */
static bool restore(Function *function, size_t size) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), at = 0;
    uint32_t calls = ++function->restored;
    if (calls >= FIRST_LOOK && !(calls & (calls - 1))) look(function, size, page);
    for (uint32_t i = 0; i < function->hot_count; i++) {
        size_t start = function->hot[i].start * page, end = function->hot[i].end * page;
        if (start > at && madvise(function->base + at, start - at, MADV_DONTNEED)) return false;
        memcpy(function->base + start, function->image + start, end - start);
        at = end;
    }
    return at == size || madvise(function->base + at, size - at, MADV_DONTNEED) == 0;
}

/* Zeros the memory, or makes it its image again, and reduces it to the pages that it started with. Returns whether that
   was possible. */
bool memory_clear(Function *function, const Engine *engine) {
    uint32_t pages = memory_pages(function, engine);
    if (pages != function->pages) {
        if (pages < function->pages || !shrink(function, pages)) return false;
        if (memory_pages(function, engine) != function->pages) return false;
    }
    size_t size = (size_t)function->pages * PAGE;
    if (function->image) return restore(function, size);
    if (size <= SMALL) {
        memset(function->base, 0, size);
        return true;
    }
    return madvise(function->base, size, MADV_DONTNEED) == 0;
}

/* Adds to what a guest has written. Returns false where there is no memory for it. */
bool output_add(Output *output, const uint8_t *bytes, uint64_t size) {
    uint64_t need = output->size + size;
    if (need > output->room) {
        uint64_t room = output->room ? output->room : 4096;
        while (room < need) room *= 2;
        uint8_t *made = realloc(output->bytes, room);
        if (!made) return false;
        output->bytes = made;
        output->room = room;
    }
    if (size) memcpy(output->bytes + output->size, bytes, size);
    output->size = need;
    return true;
}
