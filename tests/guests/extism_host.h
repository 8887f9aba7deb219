/* What an Extism plug-in finds at its host, by the imports themselves, for test guests. */
#pragma once
#include <stdint.h>
#include <string.h>

typedef uint64_t handle;

#define ENV(name) __attribute__((import_module("extism:host/env"), import_name(#name)))
#define ENTRY(name) __attribute__((export_name(#name))) int32_t name(void)

ENV(alloc) extern handle alloc(uint64_t length);
ENV(free) extern void give_back(handle);
ENV(length) extern uint64_t length(handle);
ENV(length_unsafe) extern uint64_t length_unsafe(handle);
ENV(load_u8) extern uint8_t load_u8(uint64_t at);
ENV(load_u64) extern uint64_t load_u64(uint64_t at);
ENV(store_u8) extern void store_u8(uint64_t at, uint8_t);
ENV(store_u64) extern void store_u64(uint64_t at, uint64_t);
ENV(input_length) extern uint64_t input_length(void);
ENV(input_offset) extern handle input_offset(void);
ENV(input_load_u8) extern uint8_t input_load_u8(uint64_t at);
ENV(input_load_u64) extern uint64_t input_load_u64(uint64_t at);
ENV(output_set) extern void output_set(uint64_t at, uint64_t length);
ENV(error_set) extern void error_set(handle);
ENV(config_get) extern handle config_get(handle);
ENV(var_get) extern handle var_get(handle);
ENV(var_set) extern void var_set(handle, handle);
ENV(http_request) extern handle http_request(handle, handle);
ENV(http_status_code) extern int32_t http_status_code(void);
ENV(http_headers) extern handle http_headers(void);
ENV(get_log_level) extern int32_t get_log_level(void);
ENV(log_trace) extern void log_trace(handle);
ENV(log_debug) extern void log_debug(handle);
ENV(log_info) extern void log_info(handle);
ENV(log_warn) extern void log_warn(handle);
ENV(log_error) extern void log_error(handle);

/* A new block with these bytes; 0 where there is no room. */
static handle block(const void *data, size_t size) {
  const uint8_t *bytes = data;
  handle made = alloc(size);
  size_t at = 0;
  if (!made) return 0;
  for (; at + 8 <= size; at += 8) {
    uint64_t word;
    memcpy(&word, bytes + at, 8);
    store_u64(made + at, word);
  }
  for (; at < size; at++) store_u8(made + at, bytes[at]);
  return made;
}
