/* The memory of a guest: the one check of what a guest gives as a place in it, and its clearing after a call. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

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

/* Zeros the memory, and reduces it to the pages that it started with. Returns whether that was possible. */
bool memory_clear(Function *function, const Engine *engine) {
    uint32_t pages = memory_pages(function, engine);
    if (pages != function->pages) {
        if (pages < function->pages || !shrink(function, pages)) return false;
        if (memory_pages(function, engine) != function->pages) return false;
    }
    size_t size = (size_t)function->pages * PAGE;
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
