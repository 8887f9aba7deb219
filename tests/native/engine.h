/* An engine in WasmEdge's place, for the C library's own tests: its guest does what bytes say. */
#ifndef SKERRY_TEST_ENGINE_H
#define SKERRY_TEST_ENGINE_H

#include <stdio.h>
#include <stdlib.h>

#include "parts.h"

/* Ends the process where something isn't as it must be. */
#define CHECK(fact) \
    do { \
        if (!(fact)) fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #fact), abort(); \
    } while (0)

#define FAIL(text) (fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, text), abort())

enum { FUNCTIONS = 4, TRAPPED = 0x89, LOGS = 1024, MOST_PAGES = 12 };

/* Bytes that are read from the front; zeros behind the end. */
typedef struct {
    const uint8_t *at;
    size_t left;
} Script;

/* The first fields are those of WasmEdge's memory. */
typedef struct {
    uint8_t kind;
    uint32_t pages, most;
    uint8_t *base;
} Memory;

typedef struct {
    Function function;
    Memory memory;
    uint32_t runs;
    bool failed; /* no instance could be made for the last call */
} Fake;

extern Fake fakes[FUNCTIONS];
extern Engine fake_engine;
extern Script guest_script;
extern void (*guest_starts)(void); /* called when an instance is made */

uint8_t script_byte(Script *script);
uint32_t script_word(Script *script);
void fakes_reset(void);
void fake_renew(Fake *fake);
void *fake_outer(void);
/* Calls a host function as a guest does; returns the engine's result, and the guest's in *answer. */
uint32_t host_call(const char *name, const uint32_t arguments[5], uint32_t *answer);

#endif
