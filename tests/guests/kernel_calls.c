/* An Extism plug-in that makes the calls of a script, which is the beginning of its input. What writes scripts and reads
 * traces is tests/support/kernel_scripts.py.
 *
 * The input: the script's length (4 bytes), the script, and whatever follows. A step of the script is the number of an
 * operation (a byte) and its arguments: a slot (a byte; 255 for none) and a number (8 bytes) that is added to what the
 * slot has. A text is its length (2 bytes) and its bytes. Each step puts its result into the next slot.
 *
 * Addresses are each host's own, so the trace has none: of a handle it has the first slot with the same one, and what
 * the block has in it. */
#include <stdlib.h>

#include "extism_host.h"

__attribute__((import_module("wasi_snapshot_preview1"), import_name("proc_exit"))) extern void proc_exit(uint32_t);

#define SLOTS 250
#define TRACE 65536

static uint64_t slots[SLOTS];
static uint8_t handles[SLOTS]; /* 1: what the slot has is a handle */
static int used;
static uint8_t trace[TRACE];
static size_t traced_bytes;
static const uint8_t *at;

static void note(uint64_t number) {
  if (traced_bytes + 8 > TRACE) __builtin_trap();
  memcpy(trace + traced_bytes, &number, 8);
  traced_bytes += 8;
}

static uint64_t fixed(int bytes) {
  uint64_t number = 0;
  memcpy(&number, at, (size_t)bytes);
  at += bytes;
  return number;
}

static uint64_t argument(void) {
  uint8_t slot = *at++;
  return (slot == 255 ? 0 : slots[slot]) + fixed(8);
}

static void number(uint64_t value) {
  slots[used++] = value;
  note(value);
}

/* The slot that had this handle first, or its own where none had; 0 for no handle. */
static void known(handle value) {
  int slot = 0;
  while (slot < used && !(handles[slot] && slots[slot] == value)) slot++;
  handles[used] = 1;
  slots[used++] = value;
  note(value ? (uint64_t)slot + 1 : 0);
}

/* A handle that the host has given, with its block's length and a sum of the bytes. */
static void answer(handle value) {
  known(value);
  uint64_t size = length(value), sum = 14695981039346656037u;
  for (uint64_t byte = 0; byte < size; byte++) sum = (sum ^ load_u8(value + byte)) * 1099511628211u;
  note(size);
  note(sum);
}

/* One step; returns whether it was the last, with the function's result in `code`. */
static int step(int32_t *code) {
  uint64_t first, second;
  switch (*at++) {
    case 0: known(alloc(argument())); break;
    case 1: give_back(argument()); number(0); break;
    case 2: number(length(argument())); break;
    case 3: number(length_unsafe(argument())); break;
    case 4: number(load_u8(argument())); break;
    case 5: number(load_u64(argument())); break;
    case 6: first = argument(), second = argument(); store_u8(first, (uint8_t)second); number(0); break;
    case 7: first = argument(), second = argument(); store_u64(first, second); number(0); break;
    case 8: number(input_length()); break;
    case 9: answer(input_offset()); break;
    case 10: number(input_load_u8(argument())); break;
    case 11: number(input_load_u64(argument())); break;
    case 12: first = argument(), second = argument(); output_set(first, second); number(0); break;
    case 13: error_set(argument()); number(0); break;
    case 14: answer(config_get(argument())); break;
    case 15: answer(var_get(argument())); break;
    case 16: first = argument(), second = argument(); var_set(first, second); number(0); break;
    case 17: first = argument(), second = argument(); answer(http_request(first, second)); break;
    case 18: number((uint32_t)http_status_code()); break;
    case 19: answer(http_headers()); break;
    case 20: number((uint32_t)get_log_level()); break;
    case 21: log_trace(argument()); number(0); break;
    case 22: log_debug(argument()); number(0); break;
    case 23: log_info(argument()); number(0); break;
    case 24: log_warn(argument()); number(0); break;
    case 25: log_error(argument()); number(0); break;
    case 26: first = fixed(2); known(block(at, first)); at += first; break;
    case 27: answer(argument()); break;
    case 28: *code = (int32_t)argument(); return 1;
    case 29: __builtin_trap();
    case 30: proc_exit((uint32_t)argument()); break;
    case 31: first = alloc(argument()); handles[used] = 1; slots[used++] = first; note(first != 0); break;
    default: abort();
  }
  return 0;
}

static int32_t run(void) {
  int32_t code = 0;
  uint64_t size = (uint32_t)input_load_u64(0);
  uint8_t *script = malloc(size + 8);
  for (uint64_t byte = 0; byte < size; byte++) script[byte] = input_load_u8(4 + byte);
  at = script;
  while (at < script + size && !step(&code)) {}
  return code;
}

/* Ends as the script says. */
ENTRY(plain) { return run(); }

/* Answers the trace, where the script lets it come so far. */
ENTRY(traced) {
  run();
  error_set(0);
  output_set(block(trace, traced_bytes), traced_bytes);
  return 0;
}

/* Returns nothing. */
__attribute__((export_name("silent"))) void silent(void) { run(); }
