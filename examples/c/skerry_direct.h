/* skerry_direct.h: the ABI `direct` in C. The fastest one: the request comes in one piece, and so does the answer.
 *
 * Write one function, in one file:
 *
 *   #include "skerry_direct.h"
 *   skerry_answer skerry_main(const skerry_request *request) {
 *     return skerry_respond(200, "Content-Type: text/plain\n", request->body, request->body_size);
 *   }
 *
 *   python -m ziglang cc -target wasm32-wasi -O2 -s -Wl,-z,stack-size=63488 -o echo.wasm echo.c
 *
 * getenv has the manifest's config and secrets, stdout and stderr go to the log, and skerry.h (beside this file) has SQL
 * and skerry_value. There is one call in an instance, so nothing needs to be freed.
 */
#ifndef SKERRY_DIRECT_H
#define SKERRY_DIRECT_H

#include <stdint.h>

#include "skerry.h"

/* All texts end with a NUL. */
typedef struct {
  const char *method;
  const char *path;    /* below the function's route, percent-encoded: "" or from a slash on */
  const char *query;   /* as it was sent, without the question mark: skerry_value reads it */
  const char *headers; /* lines, "name: value\n", names in lower case */
  const char *script;  /* what comes before the path */
  const char *route;   /* the manifest's route that the call came by, "" where none */
  const char *params;  /* the route's parameters, as in a query: id=7&name=x%20y */
  const char *client;  /* address of the caller */
  const char *body;
  size_t body_size;
} skerry_request;

/* Where the answer is (the upper half), and its size. */
typedef uint64_t skerry_answer;

/* Yours. */
skerry_answer skerry_main(const skerry_request *request);

/* Room for `size` bytes; NULL where memory ran out. The first 56 KiB of a call cost no memory.grow. */
static inline void *skerry_room(size_t size) {
  static struct {
    _Alignas(16) size_t used;
    _Alignas(16) char bytes[57344];
  } room;
  size = (size + 15) & ~(size_t)15;
  if (size > sizeof room.bytes - room.used) return malloc(size);
  room.used += size;
  return room.bytes + room.used - size;
}

/* An answer: a status, header lines (each ended by a line break), a body. */
static inline skerry_answer skerry_respond(unsigned status, const char *headers, const void *body, size_t size) {
  uint32_t lengths[2] = {status, (uint32_t)strlen(headers)};
  size_t whole = sizeof lengths + lengths[1] + size;
  char *answer = skerry_room(whole);
  if (!answer) __builtin_trap();
  memcpy(answer, lengths, sizeof lengths);
  memcpy(answer + sizeof lengths, headers, lengths[1]);
  memcpy(answer + sizeof lengths + lengths[1], body, size);
  return (uint64_t)(uintptr_t)answer << 32 | whole;
}

/* The same, of a text. */
static inline skerry_answer skerry_respond_text(unsigned status, const char *headers, const char *body) {
  return skerry_respond(status, headers, body, strlen(body));
}

/* Copy the value of a header (its name in lower case), cut to `size` - 1 bytes; false where there is none. */
static inline bool skerry_header(const skerry_request *request, const char *name, char *out, size_t size) {
  size_t length = strlen(name);
  for (const char *line = request->headers; *line && size; line = strchr(line, '\n') + 1) {
    if (strncmp(line, name, length) || line[length] != ':') continue;
    const char *value = line + length + 2;
    size_t got = (size_t)(strchr(value, '\n') - value);
    if (got > size - 1) got = size - 1;
    memcpy(out, value, got);
    out[got] = 0;
    return true;
  }
  return false;
}

/* What the node calls: first for room, then with the request in it. The first of them starts the C library, as `_start`
 * would; a program wants a `main`, which nobody calls. */
extern void __wasm_call_ctors(void);

int main(void) { return 0; }

__attribute__((export_name("skerry_alloc"))) void *skerry_alloc(size_t size) {
  __wasm_call_ctors();
  return skerry_room(size);
}

__attribute__((export_name("skerry_handle"))) skerry_answer skerry_handle(const char *piece, size_t size) {
  uint32_t lengths[8];
  const char *texts[8], *at = piece + sizeof lengths;
  memcpy(lengths, piece, sizeof lengths);
  for (int i = 0; i < 8; i++) {
    texts[i] = at;
    at += lengths[i] + 1;
  }
  skerry_request request = {texts[0], texts[1], texts[2], texts[3], texts[4],
                            texts[5], texts[6], texts[7], at,       size - (size_t)(at - piece)};
  return skerry_main(&request);
}

#endif
