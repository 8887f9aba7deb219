/* A function of the ABI `direct` with as much state as a snapshot has. It answers what it finds of that, after it has
 * written over it and grown its memory; the body says how much of it, and how the call ends. */
#include "skerry.h"
#include "skerry_direct.h"

enum { SIZE = 320 * 1024 };
static unsigned char table[SIZE] = {[0 ... SIZE - 1] = 7};
static unsigned calls;
static char *kept;

skerry_answer skerry_main(const skerry_request *r) {
  unsigned mode = 0, seed = 0, count = 0, sum = 0;
  char answer[100];
  sscanf(r->body, "%u %u %u", &mode, &seed, &count);
  for (int i = 0; i < SIZE; i++) sum = sum * 31 + table[i];
  snprintf(answer, sizeof answer, "%u %u %d\n", sum, ++calls, kept != NULL);
  kept = malloc(1 + count * 100);
  memset(kept, 1, 1 + count * 100);
  for (unsigned i = 0; i < count; i++) {
    seed = seed * 1664525 + 1013904223;
    table[seed % SIZE] ^= 1 + (seed >> 24) % 200;
  }
  if (mode == 1) __builtin_trap();
  if (mode == 2) exit(3);
  return skerry_respond_text(200, "Content-Type: text/plain\n", answer);
}
