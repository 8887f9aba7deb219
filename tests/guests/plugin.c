/* An Extism plug-in with everything that one can do, by the imports themselves. Its exports say what. */
#include <stdio.h>
#include <stdlib.h>

#include "extism_host.h"

#define USER(name) __attribute__((import_module("extism:host/user"), import_name(#name)))

USER(sql) extern handle user_sql(handle);
USER(http) extern handle user_http(handle);

static int begun;
static int calls;

__attribute__((constructor)) static void begin(void) { begun = 7; }

static handle text(const char *data) { return block(data, strlen(data)); }

static char *content(handle from) {
  size_t size = length(from), at = 0;
  char *data = malloc(size + 1);
  for (; at + 8 <= size; at += 8) {
    uint64_t word = load_u64(from + at);
    memcpy(data + at, &word, 8);
  }
  for (; at < size; at++) data[at] = (char)load_u8(from + at);
  data[size] = 0;
  return data;
}

static char *input(void) {
  size_t size = input_length(), at = 0;
  char *data = malloc(size + 1);
  for (; at + 8 <= size; at += 8) {
    uint64_t word = input_load_u64(at);
    memcpy(data + at, &word, 8);
  }
  for (; at < size; at++) data[at] = (char)input_load_u8(at);
  data[size] = 0;
  return data;
}

static int output(const char *data, size_t size) {
  output_set(block(data, size), size);
  return 0;
}

static int say(const char *data) { return output(data, strlen(data)); }

ENTRY(echo) { return output(input(), input_length()); }
ENTRY(own_input) { output_set(input_offset(), length(input_offset())); return 0; }
__attribute__((export_name("nothing"))) void nothing(void) {}
ENTRY(state) {
  char data[64];
  snprintf(data, sizeof data, "begun %d, calls %d", begun, ++calls);
  return say(data);
}

ENTRY(fail) { error_set(input_length() ? input_offset() : text("a message")); return 1; }
ENTRY(fail_at_length) { error_set(alloc(3 << 20)); return 1; }
ENTRY(fail_though_0) { error_set(text("a message")); return 0; }
ENTRY(fail_silently) { return -3; }
ENTRY(trap) { __builtin_trap(); }
ENTRY(fail_and_trap) { error_set(text("last words")); __builtin_trap(); }
ENTRY(leave) { say("said before"); exit(atoi(input())); }

ENTRY(config) {
  handle found = config_get(text(input()));
  return found ? say(content(found)) : say("none");
}

ENTRY(vars) {
  char data[256];
  var_set(text("one"), text("first"));
  var_set(text("two"), text("2"));
  var_set(text("one"), text("second"));
  var_set(text("two"), 0);
  char *one = content(var_get(text("one")));
  snprintf(data, sizeof data, "one %s, two %llu, three %llu", one, var_get(text("two")), var_get(text("three")));
  return say(data);
}

ENTRY(fill_vars) {
  char name[32], *data = calloc(1, 100000);
  for (int number = 0; number < atoi(input()); number++) {
    snprintf(name, sizeof name, "%d", number);
    var_set(text(name), block(data, 100000));
  }
  return say("filled");
}

/* The host gives back the names, we the values: 20 MB of both, in a memory of less. */
ENTRY(many_vars) {
  char *data = calloc(1, 2000);
  var_set(block(data, 2000), block(data, 2000));
  for (int number = 0; number < 5000; number++) give_back(var_get(block(data, 2000)));
  return say("done");
}

ENTRY(logs) {
  char level[16];
  snprintf(level, sizeof level, "%d", get_log_level());
  log_trace(text("one")), log_debug(text("two")), log_info(text("three"));
  log_warn(text("four")), log_error(text(level)), log_info(0);
  puts("stdout");
  fflush(stdout);
  fputs("stderr\n", stderr);
  return say("logged");
}

ENTRY(fetch) {
  char *request = input(), *body = strchr(request, '\n'), data[1000];
  if (body) *body++ = 0;
  handle answer = http_request(text(request), body ? text(body) : 0);
  snprintf(data, sizeof data, "%d %s %s", http_status_code(), content(http_headers()), content(answer));
  return say(data);
}

ENTRY(sql) { return say(content(user_sql(text(input())))); }
ENTRY(ask) { return say(content(user_http(text(input())))); }

ENTRY(large) {
  size_t size = (size_t)atoi(input());
  output_set(alloc(size), size);
  return 0;
}

ENTRY(hog) {
  char data[64];
  unsigned long blocks = 0;
  while (alloc(1 << 20)) blocks++;
  snprintf(data, sizeof data, "%lu blocks", blocks);
  return say(data);
}

/* Whatever is in the kernel's memory beside the input: of another call, it would be somewhere. */
ENTRY(traces) {
  unsigned long found = 0;
  handle most = alloc(1 << 20);
  for (handle at = most; at < most + (1 << 20); at += 8) found += load_u64(at) != 0;
  char data[64];
  snprintf(data, sizeof data, "%lu", found);
  return say(data);
}

ENTRY(soil) {
  handle most = alloc(1 << 20);
  for (handle at = most; at < most + (1 << 20); at += 8) store_u64(at, ~0ull);
  return say("soiled");
}

ENTRY(output_outside) { output_set(strtoull(input(), 0, 10), 100); return 0; }
ENTRY(error_outside) { error_set(strtoull(input(), 0, 10)); return 1; }
ENTRY(bad_handle) { return (int)config_get(strtoull(input(), 0, 10)); }
ENTRY(spoil) {
  handle made = text("name"), other = text("other");
  for (handle at = 0; at < 2000; at++) store_u8(at, 0xff);
  give_back(made), give_back(other);
  log_info(made);
  return say("still here");
}
ENTRY(loop) { for (;;) if (load_u8(0)) return 1; }
