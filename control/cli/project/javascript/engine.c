/* engine.c: the JavaScript engine of functions, QuickJS-ng behind the ABI `direct` (docs/functions.md).
 *
 * `skerry_init` is run once, when a function is built: it evaluates the web's APIs (runtime/, which is in this module) and
 * then the function's bundled ES module. It reads that from stdin, and after it a NUL and what the build knows: JSON with
 * `map` (a source map) and `secrets` (names). The snapshot of the memory that it leaves is the
 * function. Each call begins with that snapshot: `skerry_alloc`, then `skerry_handle`.
 *
 * While a function is built there is no clock (it stands at 0), no randomness, no SQL and no HTTP: a snapshot would repeat
 * in each call what it got. `building` is what tells the two apart. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
#include <wasi/api.h>

#include "ada_c.h"
#include "quickjs.h"

#define IMPORT(name) __attribute__((import_module("skerry"), import_name(#name)))
#define EXPORT(name) __attribute__((export_name(#name)))
#define COUNT(list) (sizeof(list) / sizeof *(list))

IMPORT(sql) unsigned host_sql(const char *request, size_t size);
IMPORT(http) unsigned host_http(const char *request, size_t size);
IMPORT(result) void host_result(char *answer);

/* hash.zig */
size_t skerry_digest(unsigned kind, const uint8_t *data, size_t size, uint8_t *out);
size_t skerry_hmac(unsigned kind, const uint8_t *key, size_t key_size, const uint8_t *data, size_t size, uint8_t *out);

static bool building = true;
static JSRuntime *runtime;
static JSContext *context;
/* What runtime/main.js gives: `entry` answers a request, `finish` makes [status, headers, body] of a Response, `timers`
 * runs the next timer, `report` logs an error. */
static JSValue entry, finish, timers, report;

/* ---- Memory: size classes over a region that only grows. `seal` drops the free lists and begins a new region, so that
 * what a call allocates lies together and not between the snapshot's objects: it dirties few pages. */

#define CLASSES 108
typedef struct Block {
  struct Block *next;
} Block;
typedef struct {
  uint32_t size; /* that can be used */
  uint32_t class;
} Header;
static Block *lists[CLASSES];
static char *bump, *limit;

/* Sizes that can be used: 8, 24, 40 … 248 by 16, then by quarters of powers of two. */
static unsigned class_of(size_t size) {
  if (size <= 248) return (unsigned)((size + 7) >> 4);
  unsigned log = 31 - (unsigned)__builtin_clz((unsigned)(size + 7));
  return 16 + (log - 8) * 4 + ((unsigned)((size + 7) >> (log - 2)) & 3);
}

static size_t size_of(unsigned class) {
  if (class < 16) return (size_t)class * 16 + 8;
  return ((size_t)(5 + (class - 16) % 4) << ((class - 16) / 4 + 6)) - 8;
}

static bool grow(size_t need) {
  size_t pages = (need + 65535) / 65536 + 3, at = __builtin_wasm_memory_grow(0, pages);
  if (at == (size_t)-1) at = __builtin_wasm_memory_grow(0, pages -= 3);
  if (at == (size_t)-1) return false;
  char *start = (char *)(at * 65536);
  if (start != limit) bump = start;
  limit = start + pages * 65536;
  return true;
}

static Header *header_of(const void *place) { return (Header *)place - 1; }

void *malloc(size_t size) {
  if (size > 0x7fff0000) return NULL;
  unsigned class = class_of(size);
  Block *found = lists[class];
  if (found) {
    lists[class] = found->next;
    return found;
  }
  size_t room = size_of(class);
  if ((size_t)(limit - bump) < room + sizeof(Header) && !grow(room + sizeof(Header))) return NULL;
  Header *made = (Header *)bump;
  bump += room + sizeof(Header);
  made->size = (uint32_t)room;
  made->class = class;
  return made + 1;
}

void free(void *place) {
  if (!place) return;
  ((Block *)place)->next = lists[header_of(place)->class];
  lists[header_of(place)->class] = place;
}

void *calloc(size_t count, size_t size) {
  if (size && count > 0x7fff0000 / size) return NULL;
  void *made = malloc(count * size);
  return made ? memset(made, 0, count * size) : NULL;
}

void *realloc(void *place, size_t size) {
  if (!place) return malloc(size);
  if (size <= header_of(place)->size) return place;
  void *made = malloc(size);
  if (!made) return NULL;
  memcpy(made, place, header_of(place)->size);
  free(place);
  return made;
}

size_t malloc_usable_size(void *place) { return place ? header_of(place)->size : 0; }

static void seal(size_t pages) {
  memset(lists, 0, sizeof lists);
  bump = limit = NULL;
  size_t at = __builtin_wasm_memory_grow(0, pages);
  if (at == (size_t)-1) return;
  bump = (char *)(at * 65536);
  limit = bump + pages * 65536;
}

static void *m_calloc(void *opaque, size_t count, size_t size) { return calloc(count, size); }
static void *m_malloc(void *opaque, size_t size) { return malloc(size); }
static void m_free(void *opaque, void *place) { free(place); }
static void *m_realloc(void *opaque, void *place, size_t size) { return realloc(place, size); }
static size_t m_size(const void *place) { return malloc_usable_size((void *)place); }

/* ---- The clock and randomness, the C library's too (QuickJS's Date asks gettimeofday). */

static double now_ms(__wasi_clockid_t clock) {
  __wasi_timestamp_t time = 0;
  if (!building) (void)!__wasi_clock_time_get(clock, 1, &time);
  return (double)time / 1e6;
}

int gettimeofday(struct timeval *restrict to, void *restrict zone) {
  __wasi_timestamp_t time = 0;
  if (!building) (void)!__wasi_clock_time_get(__WASI_CLOCKID_REALTIME, 1, &time);
  *to = (struct timeval){(time_t)(time / 1000000000), (suseconds_t)(time / 1000 % 1000000)};
  return 0;
}

int clock_gettime(clockid_t id, struct timespec *to) {
  __wasi_timestamp_t time = 0;
  if (!building) (void)!__wasi_clock_time_get(__WASI_CLOCKID_MONOTONIC, 1, &time);
  *to = (struct timespec){(time_t)(time / 1000000000), (long)(time % 1000000000)};
  return 0;
}

static void random_bytes(uint8_t *to, size_t size) {
  if (size && __wasi_random_get(to, size)) __builtin_trap();
}

static JSValue no_random(JSContext *c) {
  return JS_ThrowPlainError(c, "there are no random numbers while a function is built: each call would have the same "
                               "ones. Ask for them in a handler");
}

static JSValue js_random(JSContext *c, JSValueConst self, int argc, JSValueConst *argv) {
  /* The state is in no snapshot: a call begins with one of its own. */
  static uint64_t state[2];
  if (building) return no_random(c);
  if (!state[0] && !state[1]) random_bytes((uint8_t *)state, sizeof state);
  uint64_t a = state[0], b = state[1];
  state[0] = b;
  a ^= a << 23;
  state[1] = a ^ b ^ (a >> 17) ^ (b >> 26);
  return JS_NewFloat64(c, (double)((state[1] + b) >> 11) / 9007199254740992.0);
}

/* ---- Texts and bytes */

typedef struct {
  char *bytes;
  size_t size, room;
  bool failed;
} Buffer;

static char *more(Buffer *to, size_t size) {
  if (to->room - to->size < size) {
    size_t room = (to->size + size) * 2 + 256;
    char *made = realloc(to->bytes, room);
    if (!made) {
      to->failed = true;
      return NULL;
    }
    to->bytes = made;
    to->room = room;
  }
  to->size += size;
  return to->bytes + to->size - size;
}

static void put(Buffer *to, const char *bytes, size_t size) {
  char *at = more(to, size);
  if (at) memcpy(at, bytes, size);
}

/* UTF-8 of a text, as the web wants it: a surrogate that stands alone is U+FFFD. Freed by JS_FreeCString. */
static char *utf8(JSContext *c, size_t *size, JSValueConst value) {
  char *text = (char *)JS_ToCStringLen(c, size, value);
  if (text)
    for (char *at = text, *end = text + *size; (at = memchr(at, 0xed, (size_t)(end - at))); at += 3)
      if ((uint8_t)at[1] >= 0xa0) memcpy(at, "\xef\xbf\xbd", 3);
  return text;
}

/* The bytes of an ArrayBuffer or a view of one; NULL where it is neither, with nothing thrown. */
static uint8_t *bytes_of(JSContext *c, size_t *size, JSValueConst value) {
  static uint8_t none[1];
  uint8_t *found;
  if (JS_IsArrayBuffer(value)) {
    found = JS_GetArrayBuffer(c, size, value);
  } else if (JS_GetTypedArrayType(value) >= 0) {
    size_t offset, length, whole;
    JSValue buffer = JS_GetTypedArrayBuffer(c, value, &offset, &length, NULL);
    if (JS_IsException(buffer)) goto none;
    found = JS_GetArrayBuffer(c, &whole, buffer);
    JS_FreeValue(c, buffer);
    if (found) found += offset;
    *size = length;
  } else {
    return NULL;
  }
  if (found || !*size) return found ? found : none;
none:
  JS_FreeValue(c, JS_GetException(c));
  return NULL;
}

/* A byte's place in WHATWG's decoder of UTF-8: the length of the valid sequence at `at`, or 0, and then `*bad` is the
 * length of what one U+FFFD stands for. `*cut`: whether the sequence only lacks its end. */
static size_t sequence(const uint8_t *at, const uint8_t *end, size_t *bad, bool *cut) {
  uint8_t first = *at, low = 0x80, high = 0xbf;
  size_t need = first < 0x80 ? 0 : first < 0xc2 ? 9 : first < 0xe0 ? 1 : first < 0xf0 ? 2 : first < 0xf5 ? 3 : 9;
  *cut = false;
  *bad = 1;
  if (need == 9) return 0;
  if (first == 0xe0) low = 0xa0;
  if (first == 0xed) high = 0x9f;
  if (first == 0xf0) low = 0x90;
  if (first == 0xf4) high = 0x8f;
  for (size_t n = 1; n <= need; n++, low = 0x80, high = 0xbf) {
    if (at + n == end) {
      *cut = true;
      return 0;
    }
    if (at[n] < low || at[n] > high) return 0;
    *bad = n + 1;
  }
  return need + 1;
}

/* A text of bytes in UTF-8; `*rest`, where given, is set to the bytes at the end that a stream may still complete. */
static JSValue text_of(JSContext *c, const uint8_t *bytes, size_t size, bool fatal, size_t *rest) {
  const uint8_t *at = bytes, *end = bytes + size, *from = at;
  Buffer made = {0};
  size_t bad, length;
  bool cut, broken = false;
  while (at < end) {
    if (*at < 0x80 && ++at) continue;
    if ((length = sequence(at, end, &bad, &cut))) {
      at += length;
      continue;
    }
    if (cut && rest) break;
    if (fatal) {
      free(made.bytes);
      return JS_ThrowTypeError(c, "The encoded data was not valid.");
    }
    broken = true;
    put(&made, (const char *)from, (size_t)(at - from));
    put(&made, "\xef\xbf\xbd", 3);
    from = at += bad;
  }
  if (rest) *rest = (size_t)(end - at);
  if (!broken) return JS_NewStringLen(c, (const char *)bytes, (size_t)(at - bytes));
  put(&made, (const char *)from, (size_t)(at - from));
  JSValue text = made.failed ? JS_ThrowOutOfMemory(c) : JS_NewStringLen(c, made.bytes, made.size);
  free(made.bytes);
  return text;
}

/* A text whose characters are the bytes, as header lines have them. */
static JSValue latin1_text(JSContext *c, const char *bytes, size_t size) {
  size_t at = 0;
  while (at < size && (uint8_t)bytes[at] < 0x80) at++;
  if (at == size) return JS_NewStringLen(c, bytes, size);
  Buffer made = {0};
  for (at = 0; at < size; at++) {
    uint8_t byte = (uint8_t)bytes[at];
    if (byte < 0x80) put(&made, bytes + at, 1);
    else put(&made, (char[]){(char)(0xc0 | byte >> 6), (char)(0x80 | (byte & 0x3f))}, 2);
  }
  JSValue text = made.failed ? JS_ThrowOutOfMemory(c) : JS_NewStringLen(c, made.bytes, made.size);
  free(made.bytes);
  return text;
}

/* The reverse, in place: UTF-8 of characters below 256 becomes bytes; returns the size. */
static size_t latin1_bytes(char *text, size_t size) {
  size_t to = 0;
  for (size_t at = 0; at < size; at++) {
    bool two = (uint8_t)text[at] >= 0x80;
    text[to++] = two ? (char)((text[at] & 3) << 6 | (text[at + 1] & 0x3f)) : text[at];
    at += two;
  }
  return to;
}

/* decode(bytes, fatal, stream): the text, or with `stream` [the text, how many bytes at the end are left]. */
static JSValue js_decode(JSContext *c, JSValueConst self, int argc, JSValueConst *argv) {
  size_t size, rest = 0;
  const uint8_t *bytes = bytes_of(c, &size, argv[0]);
  if (!bytes) return JS_ThrowTypeError(c, "not an ArrayBuffer or a view of one");
  bool stream = argc > 2 && JS_ToBool(c, argv[2]);
  JSValue text = text_of(c, bytes, size, argc > 1 && JS_ToBool(c, argv[1]), stream ? &rest : NULL);
  if (!stream || JS_IsException(text)) return text;
  JSValue pair = JS_NewArray(c);
  JS_DefinePropertyValueUint32(c, pair, 0, text, JS_PROP_C_W_E);
  JS_DefinePropertyValueUint32(c, pair, 1, JS_NewUint32(c, (uint32_t)rest), JS_PROP_C_W_E);
  return pair;
}

static JSValue js_encode(JSContext *c, JSValueConst self, int argc, JSValueConst *argv) {
  size_t size;
  char *text = utf8(c, &size, argv[0]);
  if (!text) return JS_EXCEPTION;
  JSValue made = JS_NewUint8ArrayCopy(c, (const uint8_t *)text, size);
  JS_FreeCString(c, text);
  return made;
}

/* A copy that may be written to: an ASCII text of JS_ToCStringLen is the JavaScript string's own memory. */
static char *own_text(JSContext *c, size_t *size, JSValueConst value) {
  char *text = utf8(c, size, value), *made = text ? malloc(*size + 1) : NULL;
  if (made) memcpy(made, text, *size + 1);
  else if (text) JS_ThrowOutOfMemory(c);
  if (text) JS_FreeCString(c, text);
  return made;
}

/* header_name(text): in lower case; undefined where it is no token. */
static JSValue js_header_name(JSContext *c, JSValueConst self, int argc, JSValueConst *argv) {
  size_t size;
  char *text = own_text(c, &size, argv[0]);
  if (!text) return JS_EXCEPTION;
  bool valid = size > 0, changed = false;
  for (size_t at = 0; at < size && valid; at++) {
    char x = text[at];
    if (x >= 'A' && x <= 'Z') {
      text[at] = (char)(x + 32);
      changed = true;
    } else {
      valid = (x >= 'a' && x <= 'z') || (x >= '0' && x <= '9') || (x && strchr("!#$%&'*+-.^_`|~", x));
    }
  }
  JSValue made = !valid ? JS_UNDEFINED
                 : changed || !JS_IsString(argv[0]) ? JS_NewStringLen(c, text, size)
                                                    : JS_DupValue(c, argv[0]);
  free(text);
  return made;
}

/* header_value(text): without blanks at its ends; undefined where it can't be in a header. */
static JSValue js_header_value(JSContext *c, JSValueConst self, int argc, JSValueConst *argv) {
  size_t size;
  const char *text = JS_ToCStringLen(c, &size, argv[0]);
  if (!text) return JS_EXCEPTION;
  const char *at = text, *end = text + size;
  while (at < end && strchr(" \t\r\n", *at) && *at) at++;
  while (end > at && strchr(" \t\r\n", end[-1]) && end[-1]) end--;
  bool valid = true;
  for (const char *x = at; x < end && valid; x++) valid = *x && *x != '\n' && *x != '\r' && (uint8_t)*x < 0xc4;
  JSValue made = !valid ? JS_UNDEFINED
                 : JS_IsString(argv[0]) && (size_t)(end - at) == size ? JS_DupValue(c, argv[0])
                                                                      : JS_NewStringLen(c, at, (size_t)(end - at));
  JS_FreeCString(c, text);
  return made;
}

/* ---- URLs, by ada */

/* url(text, base): its serialization; undefined where it is none. */
static JSValue js_url(JSContext *c, JSValueConst self, int argc, JSValueConst *argv) {
  size_t size, base_size = 0;
  char *text = utf8(c, &size, argv[0]), *base = NULL;
  if (!text) return JS_EXCEPTION;
  if (argc > 1 && !JS_IsUndefined(argv[1]) && !(base = utf8(c, &base_size, argv[1]))) {
    JS_FreeCString(c, text);
    return JS_EXCEPTION;
  }
  ada_url url = base ? ada_parse_with_base(text, size, base, base_size) : ada_parse(text, size);
  JSValue made = JS_UNDEFINED;
  if (ada_is_valid(url)) {
    ada_string href = ada_get_href(url);
    made = JS_NewStringLen(c, href.data, href.length);
  }
  ada_free(url);
  JS_FreeCString(c, text);
  if (base) JS_FreeCString(c, base);
  return made;
}

enum { HREF, PROTOCOL, USERNAME, PASSWORD, HOST, HOSTNAME, PORT, PATHNAME, SEARCH, HASH, ORIGIN };

/* url_part(href, which): a part of a URL. */
static JSValue js_url_part(JSContext *c, JSValueConst self, int argc, JSValueConst *argv) {
  static ada_string (*const parts[])(ada_url) = {ada_get_href, ada_get_protocol, ada_get_username, ada_get_password,
                                                 ada_get_host, ada_get_hostname, ada_get_port,     ada_get_pathname,
                                                 ada_get_search, ada_get_hash};
  size_t size;
  int32_t which = 0;
  const char *href = JS_ToCStringLen(c, &size, argv[0]);
  if (!href || JS_ToInt32(c, &which, argv[1])) return JS_EXCEPTION;
  ada_url url = ada_parse(href, size);
  JSValue made;
  if (which == ORIGIN) {
    ada_owned_string origin = ada_get_origin(url);
    made = JS_NewStringLen(c, origin.data, origin.length);
    ada_free_owned_string(origin);
  } else {
    ada_string part = parts[which](url);
    made = JS_NewStringLen(c, part.data, part.length);
  }
  ada_free(url);
  JS_FreeCString(c, href);
  return made;
}

/* url_with(href, which, value): the URL with a part set; undefined where the whole was set to what is no URL. */
static JSValue js_url_with(JSContext *c, JSValueConst self, int argc, JSValueConst *argv) {
  static bool (*const parts[])(ada_url, const char *, size_t) = {
      ada_set_href, ada_set_protocol, ada_set_username, ada_set_password,
      ada_set_host, ada_set_hostname, ada_set_port,     ada_set_pathname};
  size_t size, length;
  int32_t which = 0;
  if (JS_ToInt32(c, &which, argv[1])) return JS_EXCEPTION;
  char *value = utf8(c, &length, argv[2]);
  const char *href = value ? JS_ToCStringLen(c, &size, argv[0]) : NULL;
  if (!href) return JS_EXCEPTION;
  ada_url url = ada_parse(href, size);
  bool set = true;
  if (which == SEARCH) ada_set_search(url, value, length);
  else if (which == HASH) ada_set_hash(url, value, length);
  else set = parts[which](url, value, length);
  ada_string made = ada_get_href(url);
  JSValue text = !set && which == HREF ? JS_UNDEFINED : JS_NewStringLen(c, made.data, made.length);
  ada_free(url);
  JS_FreeCString(c, href);
  JS_FreeCString(c, value);
  return text;
}

static int hex(char x) {
  return x >= '0' && x <= '9' ? x - '0' : (x | 32) >= 'a' && (x | 32) <= 'f' ? (x | 32) - 'a' + 10 : -1;
}

/* One name or value of application/x-www-form-urlencoded, decoded in place. */
static JSValue form_text(JSContext *c, char *from, char *end) {
  char *to = from;
  for (char *at = from; at < end; at++) {
    if (*at == '+') *to++ = ' ';
    else if (*at == '%' && end - at > 2 && hex(at[1]) >= 0 && hex(at[2]) >= 0) {
      *to++ = (char)(hex(at[1]) << 4 | hex(at[2]));
      at += 2;
    } else *to++ = *at;
  }
  return text_of(c, (const uint8_t *)from, (size_t)(to - from), false, NULL);
}

/* form(text): [name, value, name, value …]. */
static JSValue js_form(JSContext *c, JSValueConst self, int argc, JSValueConst *argv) {
  size_t size;
  char *text = own_text(c, &size, argv[0]);
  if (!text) return JS_EXCEPTION;
  JSValue list = JS_NewArray(c);
  uint32_t count = 0;
  for (char *at = text, *stop = text + size; at < stop;) {
    char *end = memchr(at, '&', (size_t)(stop - at));
    if (!end) end = stop;
    if (end > at) {
      char *equals = memchr(at, '=', (size_t)(end - at));
      JSValue value = equals ? form_text(c, equals + 1, end) : JS_NewString(c, "");
      JS_DefinePropertyValueUint32(c, list, count++, form_text(c, at, equals ? equals : end), JS_PROP_C_W_E);
      JS_DefinePropertyValueUint32(c, list, count++, value, JS_PROP_C_W_E);
    }
    at = end + 1;
  }
  free(text);
  return list;
}

/* form_encode(list): the reverse. */
static JSValue js_form_encode(JSContext *c, JSValueConst self, int argc, JSValueConst *argv) {
  static const char digits[] = "0123456789ABCDEF";
  int64_t count;
  Buffer made = {0};
  if (JS_GetLength(c, argv[0], &count)) return JS_EXCEPTION;
  for (uint32_t n = 0; n < count; n++) {
    JSValue value = JS_GetPropertyUint32(c, argv[0], n);
    size_t size;
    char *text = utf8(c, &size, value);
    JS_FreeValue(c, value);
    if (!text) return JS_EXCEPTION;
    if (n) put(&made, n & 1 ? "=" : "&", 1);
    for (size_t at = 0; at < size; at++) {
      char x = text[at];
      if ((x >= '0' && x <= '9') || ((x | 32) >= 'a' && (x | 32) <= 'z') || (x && strchr("*-._", x))) put(&made, &x, 1);
      else if (x == ' ') put(&made, "+", 1);
      else put(&made, (char[]){'%', digits[(uint8_t)x >> 4], digits[x & 15]}, 3);
    }
    JS_FreeCString(c, text);
  }
  JSValue text = made.failed ? JS_ThrowOutOfMemory(c) : JS_NewStringLen(c, made.bytes ? made.bytes : "", made.size);
  free(made.bytes);
  return text;
}

/* ---- Bytes for crypto */

static JSValue js_entropy(JSContext *c, JSValueConst self, int argc, JSValueConst *argv) {
  size_t size;
  if (building) return no_random(c);
  uint8_t *bytes = bytes_of(c, &size, argv[0]);
  if (!bytes) return JS_ThrowTypeError(c, "not a typed array");
  random_bytes(bytes, size);
  return JS_UNDEFINED;
}

/* digest(kind, data), hmac(kind, key, data) */
static JSValue js_digest(JSContext *c, JSValueConst self, int argc, JSValueConst *argv) {
  uint8_t out[64];
  size_t size, key_size = 0;
  int32_t kind = 0;
  if (JS_ToInt32(c, &kind, argv[0])) return JS_EXCEPTION;
  const uint8_t *key = argc > 2 ? bytes_of(c, &key_size, argv[1]) : NULL;
  const uint8_t *data = bytes_of(c, &size, argv[argc > 2 ? 2 : 1]);
  if (!data) return JS_ThrowTypeError(c, "not an ArrayBuffer or a view of one");
  size_t made = key ? skerry_hmac((unsigned)kind, key, key_size, data, size, out)
                    : skerry_digest((unsigned)kind, data, size, out);
  return JS_NewArrayBufferCopy(c, out, made);
}

/* ---- The host's services */

static bool refused(JSContext *c, const char *what) {
  if (building)
    JS_ThrowPlainError(c, "there is no %s while a function is built, which is when code outside of handlers runs. Ask "
                          "for it in a handler", what);
  return building;
}

/* The host's answer, ended by a NUL. */
static char *answer_of(JSContext *c, size_t size) {
  char *text = malloc(size + 1);
  if (!text) {
    JS_ThrowOutOfMemory(c);
    return NULL;
  }
  host_result(text);
  text[size] = 0;
  return text;
}

/* http(request): the host's answer; both are JSON. */
static JSValue js_http(JSContext *c, JSValueConst self, int argc, JSValueConst *argv) {
  size_t size;
  if (refused(c, "HTTP")) return JS_EXCEPTION;
  char *text = utf8(c, &size, argv[0]);
  if (!text) return JS_EXCEPTION;
  size = host_http(text, size);
  JS_FreeCString(c, text);
  if (!(text = answer_of(c, size))) return JS_EXCEPTION;
  JSValue made = JS_ParseJSON(c, text, size, "<http>");
  free(text);
  return made;
}

static void put_json_text(Buffer *to, const char *text, size_t size) {
  put(to, "\"", 1);
  for (size_t at = 0, from = 0;; at++) {
    if (at < size && (uint8_t)text[at] >= 0x20 && text[at] != '"' && text[at] != '\\') continue;
    put(to, text + from, at - from);
    if (at == size) break;
    char escape[8];
    int length = text[at] == '"' || text[at] == '\\' ? snprintf(escape, sizeof escape, "\\%c", text[at])
                                                     : snprintf(escape, sizeof escape, "\\u%04x", (uint8_t)text[at]);
    put(to, escape, (size_t)length);
    from = at + 1;
  }
  put(to, "\"", 1);
}

static bool put_parameter(JSContext *c, Buffer *to, JSValueConst value) {
  char number[40];
  size_t size;
  double real;
  int64_t whole;
  if (JS_IsNull(value) || JS_IsUndefined(value)) {
    put(to, "null", 4);
  } else if (JS_IsBool(value)) {
    put(to, JS_ToBool(c, value) ? "1" : "0", 1);
  } else if (JS_IsNumber(value)) {
    JS_ToFloat64(c, &real, value);
    if (real != real || real - real != 0) {
      JS_ThrowTypeError(c, "a parameter of SQL can't be NaN or infinite");
      return false;
    }
    /* Whole numbers are integers, as far as a number holds each of them. */
    if (real == (double)(whole = real < 9.1e15 && real > -9.1e15 ? (int64_t)real : INT64_MAX) &&
        whole <= 9007199254740991 && whole >= -9007199254740991) {
      put(to, number, (size_t)snprintf(number, sizeof number, "%lld", (long long)whole));
    } else {
      int length = snprintf(number, sizeof number, "%.17g", real);
      put(to, number, (size_t)length);
      if (!strpbrk(number, ".e")) put(to, ".0", 2);
    }
  } else if (JS_IsBigInt(value)) {
    const char *text = JS_ToCStringLen(c, &size, value);
    bool fits = text && !JS_ToBigInt64(c, &whole, value) &&
                (size_t)snprintf(number, sizeof number, "%lld", (long long)whole) == size && !memcmp(number, text, size);
    if (fits) put(to, text, size);
    else JS_ThrowRangeError(c, "a parameter of SQL has at most 64 bits, not %s", text ? text : "");
    if (text) JS_FreeCString(c, text);
    return fits;
  } else if (JS_IsString(value)) {
    char *text = utf8(c, &size, value);
    if (!text) return false;
    put_json_text(to, text, size);
    JS_FreeCString(c, text);
  } else {
    const uint8_t *bytes = bytes_of(c, &size, value);
    if (!bytes) {
      JS_ThrowTypeError(c, "a parameter of SQL is null, a boolean, a number, a bigint, a string, or bytes (an "
                           "ArrayBuffer or a view of one)");
      return false;
    }
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    put(to, "{\"$blob\":\"", 10);
    for (size_t at = 0; at < size; at += 3) {
      uint32_t group = (uint32_t)bytes[at] << 16 | (uint32_t)(at + 1 < size ? bytes[at + 1] : 0) << 8 |
                       (at + 2 < size ? bytes[at + 2] : 0);
      char four[4] = {letters[group >> 18], letters[group >> 12 & 63], at + 1 < size ? letters[group >> 6 & 63] : '=',
                      at + 2 < size ? letters[group & 63] : '='};
      put(to, four, 4);
    }
    put(to, "\"}", 2);
  }
  return true;
}

/* The host's answer is JSON of a known form, without blanks: it is read here, and no object is made in between. */

static bool next_is(char **at, const char *word) {
  size_t size = strlen(word);
  if (strncmp(*at, word, size)) return false;
  *at += size;
  return true;
}

/* A string, unescaped in place: `*at` is behind its opening quote, and afterwards behind its closing one. */
static char *json_text(char **at, size_t *size) {
  char *from = *at, *to = from, *read = from;
  while (*read != '"') {
    if (*read != '\\') {
      *to++ = *read++;
      continue;
    }
    read += 2;
    switch (read[-1]) {
      case 'n': *to++ = '\n'; break;
      case 't': *to++ = '\t'; break;
      case 'r': *to++ = '\r'; break;
      case 'b': *to++ = '\b'; break;
      case 'f': *to++ = '\f'; break;
      case 'u': {
        uint32_t point = (uint32_t)(hex(read[0]) << 12 | hex(read[1]) << 8 | hex(read[2]) << 4 | hex(read[3]));
        read += 4;
        if (point >= 0xd800 && point < 0xdc00 && read[0] == '\\' && read[1] == 'u') {
          uint32_t low = (uint32_t)(hex(read[2]) << 12 | hex(read[3]) << 8 | hex(read[4]) << 4 | hex(read[5]));
          point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
          read += 6;
        }
        if (point < 0x80) *to++ = (char)point;
        else if (point < 0x800) *to++ = (char)(0xc0 | point >> 6);
        else if (point < 0x10000) *to++ = (char)(0xe0 | point >> 12);
        else *to++ = (char)(0xf0 | point >> 18), *to++ = (char)(0x80 | (point >> 12 & 63));
        if (point >= 0x800) *to++ = (char)(0x80 | (point >> 6 & 63));
        if (point >= 0x80) *to++ = (char)(0x80 | (point & 63));
        break;
      }
      default: *to++ = read[-1];
    }
  }
  *at = read + 1;
  *size = (size_t)(to - from);
  return from;
}

static JSValue json_blob(JSContext *c, char **at) {
  size_t size, made = 0;
  char *text = json_text(at, &size);
  uint32_t group = 0;
  int bits = 0;
  next_is(at, "}");
  for (size_t n = 0; n < size && text[n] != '='; n++) {
    char x = text[n];
    group = group << 6 | (uint32_t)(x >= 'a' ? x - 'a' + 26 : x >= 'A' ? x - 'A' : x == '+' ? 62 : x == '/' ? 63 : x - '0' + 52);
    if ((bits += 6) >= 8) text[made++] = (char)(group >> (bits -= 8));
  }
  return JS_NewUint8ArrayCopy(c, (const uint8_t *)text, made);
}

static JSValue json_cell(JSContext *c, char **at) {
  size_t size;
  if (next_is(at, "null")) return JS_NULL;
  if (next_is(at, "\"")) {
    char *text = json_text(at, &size);
    return JS_NewStringLen(c, text, size);
  }
  if (next_is(at, "{\"$blob\":\"")) return json_blob(c, at);
  char *from = *at, *end = from + strspn(from, "-0123456789");
  if (end == from) return JS_ThrowInternalError(c, "the host's answer can't be read");
  if (*end == '.' || *end == 'e' || *end == 'E') return JS_NewFloat64(c, strtod(from, at));
  int64_t whole = strtoll(from, at, 10);
  return whole > 9007199254740991 || whole < -9007199254740991 ? JS_NewBigInt64(c, whole) : JS_NewInt64(c, whole);
}

#define COLUMNS 2000 /* SQLite's own limit */

/* {columns, rows, changes, last_id}: each row an object, or with `raw` an array. */
static JSValue json_answer(JSContext *c, char *at, bool raw) {
  JSAtom names[COLUMNS];
  uint32_t columns = 0, rows = 0;
  size_t size;
  JSValue made = JS_NewObject(c), list = JS_NewArray(c), titles = JS_NewArray(c);
  JS_DefinePropertyValueStr(c, made, "columns", titles, JS_PROP_C_W_E);
  JS_DefinePropertyValueStr(c, made, "rows", list, JS_PROP_C_W_E);
  if (!next_is(&at, "{\"columns\":[")) goto unread;
  while (!next_is(&at, "]")) {
    next_is(&at, ",");
    if (!next_is(&at, "\"") || columns == COLUMNS) goto unread;
    char *text = json_text(&at, &size);
    names[columns] = JS_NewAtomLen(c, text, size);
    JS_DefinePropertyValueUint32(c, titles, columns, JS_AtomToString(c, names[columns]), JS_PROP_C_W_E);
    columns++;
  }
  if (!next_is(&at, ",\"rows\":[")) goto unread;
  while (!next_is(&at, "]")) {
    next_is(&at, ",");
    if (!next_is(&at, "[")) goto unread;
    JSValue row = raw ? JS_NewArray(c) : JS_NewObject(c);
    JS_DefinePropertyValueUint32(c, list, rows++, row, JS_PROP_C_W_E);
    for (uint32_t n = 0; !next_is(&at, "]"); n++) {
      next_is(&at, ",");
      JSValue cell = json_cell(c, &at);
      if (JS_IsException(cell) || n >= columns) goto failed;
      if (raw) JS_DefinePropertyValueUint32(c, row, n, cell, JS_PROP_C_W_E);
      else JS_DefinePropertyValue(c, row, names[n], cell, JS_PROP_C_W_E);
    }
  }
  if (!next_is(&at, ",\"changes\":")) goto unread;
  JS_DefinePropertyValueStr(c, made, "changes", json_cell(c, &at), JS_PROP_C_W_E);
  if (!next_is(&at, ",\"last_id\":")) goto unread;
  JS_DefinePropertyValueStr(c, made, "last_id", json_cell(c, &at), JS_PROP_C_W_E);
  for (uint32_t n = 0; n < columns; n++) JS_FreeAtom(c, names[n]);
  return made;
unread:
  JS_ThrowInternalError(c, "the host's answer can't be read");
failed:
  JS_FreeValue(c, made);
  return JS_EXCEPTION;
}

/* sql(statement, parameters, raw): the answer; an error is an object with `error`. */
static JSValue js_sql(JSContext *c, JSValueConst self, int argc, JSValueConst *argv) {
  size_t size;
  int64_t count;
  Buffer asked = {0};
  if (refused(c, "SQL") || JS_GetLength(c, argv[1], &count)) return JS_EXCEPTION;
  char *text = utf8(c, &size, argv[0]);
  if (!text) return JS_EXCEPTION;
  put(&asked, "{\"sql\":", 7);
  put_json_text(&asked, text, size);
  JS_FreeCString(c, text);
  put(&asked, ",\"params\":[", 11);
  for (uint32_t n = 0; n < count; n++) {
    JSValue value = JS_GetPropertyUint32(c, argv[1], n);
    if (n) put(&asked, ",", 1);
    bool fits = !JS_IsException(value) && put_parameter(c, &asked, value);
    JS_FreeValue(c, value);
    if (!fits) {
      free(asked.bytes);
      return JS_EXCEPTION;
    }
  }
  put(&asked, "]}", 2);
  if (asked.failed) return JS_ThrowOutOfMemory(c);
  size = host_sql(asked.bytes, asked.size);
  free(asked.bytes);
  if (!(text = answer_of(c, size))) return JS_EXCEPTION;
  JSValue made = strncmp(text, "{\"error\"", 8) ? json_answer(c, text, JS_ToBool(c, argv[2]))
                                               : JS_ParseJSON(c, text, size, "<sql>");
  free(text);
  return made;
}

/* environment(): config and secrets, as [name, value, …]. Read anew, past the C library, which would keep the build's. */
static JSValue js_environment(JSContext *c, JSValueConst self, int argc, JSValueConst *argv) {
  __wasi_size_t count = 0, size = 0;
  JSValue list = JS_NewArray(c);
  if (building || __wasi_environ_sizes_get(&count, &size) || !count) return list;
  uint8_t **places = malloc(count * sizeof *places), *room = malloc(size);
  if (!places || !room || __wasi_environ_get(places, room)) return list;
  for (uint32_t n = 0; n < count; n++) {
    char *text = (char *)places[n], *equals = strchr(text, '=');
    if (!equals) continue;
    JS_DefinePropertyValueUint32(c, list, n * 2, JS_NewStringLen(c, text, (size_t)(equals - text)), JS_PROP_C_W_E);
    JS_DefinePropertyValueUint32(c, list, n * 2 + 1, JS_NewString(c, equals + 1), JS_PROP_C_W_E);
  }
  return list;
}

/* log(level, text): each line to stderr, with its syslog level. */
static JSValue js_log(JSContext *c, JSValueConst self, int argc, JSValueConst *argv) {
  size_t size;
  int32_t level = 6;
  if (JS_ToInt32(c, &level, argv[0])) return JS_EXCEPTION;
  char *text = utf8(c, &size, argv[1]);
  if (!text) return JS_EXCEPTION;
  Buffer lines = {0};
  for (char *at = text, *stop = text + size;;) {
    char *end = memchr(at, '\n', (size_t)(stop - at));
    if (!end) end = stop;
    if (level != 6) put(&lines, (char[]){'<', (char)('0' + level), '>'}, 3);
    put(&lines, at, (size_t)(end - at));
    put(&lines, "\n", 1);
    if (end == stop) break;
    at = end + 1;
  }
  JS_FreeCString(c, text);
  if (!lines.failed) (void)!write(2, lines.bytes, lines.size);
  free(lines.bytes);
  return JS_UNDEFINED;
}

/* now(monotonic): milliseconds. */
static JSValue js_now(JSContext *c, JSValueConst self, int argc, JSValueConst *argv) {
  bool monotonic = argc > 0 && JS_ToBool(c, argv[0]);
  return JS_NewFloat64(c, now_ms(monotonic ? __WASI_CLOCKID_MONOTONIC : __WASI_CLOCKID_REALTIME));
}

static JSValue js_sleep(JSContext *c, JSValueConst self, int argc, JSValueConst *argv) {
  double ms = 0;
  if (JS_ToFloat64(c, &ms, argv[0])) return JS_EXCEPTION;
  __wasi_subscription_t asked = {0};
  __wasi_event_t event;
  __wasi_size_t count;
  asked.u.tag = __WASI_EVENTTYPE_CLOCK;
  asked.u.u.clock.id = __WASI_CLOCKID_MONOTONIC;
  asked.u.u.clock.timeout = (__wasi_timestamp_t)(ms * 1e6);
  if (ms > 0) (void)!__wasi_poll_oneoff(&asked, &event, 1, &count);
  return JS_UNDEFINED;
}

static JSValue js_building(JSContext *c, JSValueConst self, int argc, JSValueConst *argv) {
  return JS_NewBool(c, building);
}

/* lines(mappings): an Int32Array with the source's number and the line, from 1, of each line of what a source map is of;
 * both -1 where it has none. `mappings` is the map's: numbers in base64, each the difference to the one before. */
static JSValue js_lines(JSContext *c, JSValueConst self, int argc, JSValueConst *argv) {
  int32_t fields[4] = {0}, found[2] = {-1, -1};
  Buffer made = {0};
  const char *text = JS_ToCString(c, argv[0]);
  if (!text) return JS_EXCEPTION;
  for (const char *at = text;;) {
    int field = 0;
    for (; *at && *at != ',' && *at != ';'; field++) {
      uint32_t value = 0, shift = 0, digit;
      do {
        char x = *at++;
        digit = (uint32_t)(x >= 'a' ? x - 'a' + 26 : x >= 'A' ? x - 'A' : x == '+' ? 62 : x == '/' ? 63 : x - '0' + 52);
        value |= (digit & 31) << shift;
        shift += 5;
      } while (digit & 32 && *at && shift < 32);
      if (field < 4) fields[field] += value & 1 ? -(int32_t)(value >> 1) : (int32_t)(value >> 1);
    }
    if (field > 3 && found[0] < 0) found[0] = fields[1], found[1] = fields[2] + 1;
    if (*at == ',') {
      at++;
      continue;
    }
    put(&made, (char *)found, sizeof found);
    found[0] = found[1] = -1;
    if (!*at++) break;
  }
  JS_FreeCString(c, text);
  JSValue buffer = made.failed ? JS_ThrowOutOfMemory(c) : JS_NewArrayBufferCopy(c, (uint8_t *)made.bytes, made.size);
  free(made.bytes);
  if (JS_IsException(buffer)) return buffer;
  return JS_NewTypedArray(c, 1, &buffer, JS_TYPED_ARRAY_INT32);
}

static const struct {
  const char *name;
  JSCFunction *function;
  int length;
} natives[] = {
    {"building", js_building, 0},       {"decode", js_decode, 3},       {"digest", js_digest, 3},
    {"encode", js_encode, 1},           {"entropy", js_entropy, 1},     {"environment", js_environment, 0},
    {"form", js_form, 1},               {"formEncode", js_form_encode, 1}, {"headerName", js_header_name, 1},
    {"headerValue", js_header_value, 1}, {"http", js_http, 1},          {"lines", js_lines, 1},
    {"log", js_log, 2},                 {"now", js_now, 1},             {"random", js_random, 0},
    {"sleep", js_sleep, 1},             {"sql", js_sql, 3},             {"url", js_url, 2},
    {"urlPart", js_url_part, 2},        {"urlWith", js_url_with, 3},
};

/* ---- Running */

/* Log the error that was thrown, with its stack. */
static void complain(void) {
  JSValue error = JS_GetException(context);
  JSValue said = JS_Call(context, report, JS_UNDEFINED, 1, &error);
  if (JS_IsException(said)) {
    JS_FreeValue(context, JS_GetException(context));
    static const char plain[] = "<3>an error was thrown, and writing it failed\n";
    (void)!write(2, plain, sizeof plain - 1);
  }
}

/* Rejected promises that nothing handles: they are logged at the call's end. */
static struct {
  JSValue promise, reason;
} rejections[16];
static unsigned rejected;

static void track(JSContext *c, JSValueConst promise, JSValueConst reason, bool handled, void *opaque) {
  if (!handled && rejected < COUNT(rejections)) {
    rejections[rejected].promise = JS_DupValue(c, promise);
    rejections[rejected++].reason = JS_DupValue(c, reason);
  }
  if (!handled) return;
  for (unsigned n = 0; n < rejected; n++)
    if (JS_VALUE_GET_PTR(rejections[n].promise) == JS_VALUE_GET_PTR(promise)) {
      rejections[n] = rejections[--rejected];
      return;
    }
}

static void log_rejections(void) {
  for (unsigned n = 0; n < rejected; n++) {
    JS_Throw(context, rejections[n].reason);
    complain();
  }
  rejected = 0;
}

/* What a value resolves to; runs jobs and timers until then. An exception where it is rejected, or nothing is left to
 * run. Takes the value. */
static JSValue settled(JSValue value) {
  if (JS_IsException(value) || !JS_IsPromise(value)) return value;
  JS_PromiseMarkAsHandled(context, value);
  for (;;) {
    JSContext *c;
    int state;
    while (JS_PromiseState(context, value) == JS_PROMISE_PENDING && (state = JS_ExecutePendingJob(runtime, &c)))
      if (state < 0) complain();
    switch (JS_PromiseState(context, value)) {
      case JS_PROMISE_FULFILLED: return JS_PromiseResult(context, value);
      case JS_PROMISE_REJECTED: return JS_Throw(context, JS_PromiseResult(context, value));
      default: break;
    }
    JSValue ran = JS_Call(context, timers, JS_UNDEFINED, 0, NULL);
    if (JS_IsException(ran)) complain();
    else if (!JS_ToBool(context, ran))
      return JS_ThrowTypeError(context, "a promise is never settled: nothing is left that could do so");
  }
}

/* ---- Building */

extern void __wasm_call_ctors(void);

/* The modules of runtime/, each behind those that it imports: name, NUL, text, NUL, and so on. */
static char runtime_modules[] = {
#embed "runtime.modules" suffix(, 0)
};

static void fail(const char *what) {
  dprintf(2, "<3>%s\n", what);
  complain();
  exit(1);
}

static JSValue evaluated(const char *text, size_t size, const char *name) {
  JSValue module = JS_Eval(context, text, size, name, JS_EVAL_TYPE_MODULE | JS_EVAL_FLAG_COMPILE_ONLY);
  if (JS_IsException(module)) fail("the module can't be compiled");
  JSModuleDef *definition = JS_VALUE_GET_PTR(module);
  JSValue done = settled(JS_EvalFunction(context, module));
  if (JS_IsException(done)) fail("the module's code outside of its handlers failed");
  return JS_GetModuleNamespace(context, definition);
}

EXPORT(skerry_init) void skerry_init(void) {
  static const JSMallocFunctions functions = {m_calloc, m_malloc, m_free, m_realloc, m_size};
  __wasm_call_ctors();
  runtime = JS_NewRuntime2(&functions, NULL);
  JS_SetMaxStackSize(runtime, 512 * 1024);
  JS_SetHostPromiseRejectionTracker(runtime, track, NULL);
  context = JS_NewContext(runtime);
  JS_AddIntrinsicDOMException(context);
  report = timers = JS_UNDEFINED;
  JSValue global = JS_GetGlobalObject(context), host = JS_NewObject(context);
  for (size_t n = 0; n < COUNT(natives); n++)
    JS_SetPropertyStr(context, host, natives[n].name,
                      JS_NewCFunction(context, natives[n].function, natives[n].name, natives[n].length));
  JS_SetPropertyStr(context, global, "__skerry", host);
  JSValue names = JS_UNDEFINED;
  for (char *name = runtime_modules; *name;) {
    char *text = name + strlen(name) + 1;
    size_t size = strlen(text);
    names = evaluated(text, size, name);
    name = text + size + 1;
  }
  memset(runtime_modules, 0, sizeof runtime_modules);
  entry = JS_GetPropertyStr(context, names, "entry");
  finish = JS_GetPropertyStr(context, names, "finish");
  timers = JS_GetPropertyStr(context, names, "timers");
  report = JS_GetPropertyStr(context, names, "report");
  JSValue install = JS_GetPropertyStr(context, names, "install");

  Buffer source = {0};
  for (ssize_t got = 1; got > 0;) {
    char *room = more(&source, 65536);
    if (!room) exit(1);
    got = read(0, room, 65536);
    source.size -= 65536 - (size_t)(got > 0 ? got : 0);
  }
  put(&source, "", 1);
  size_t size = strlen(source.bytes);
  if (size + 1 == source.size) exit(2);
  JSValue given = evaluated(source.bytes, size, "function.js"), arguments[2];
  arguments[0] = JS_GetPropertyStr(context, given, "default");
  arguments[1] = JS_ParseJSON(context, source.bytes + size + 1, source.size - size - 2, "<build>");
  if (JS_IsException(JS_Call(context, install, JS_UNDEFINED, 2, arguments))) fail("the module has no handler");
  memset(source.bytes, 0, source.room);
  free(source.bytes);
  log_rejections();
  JS_RunGC(runtime);
  /* The garbage of most calls goes with their instance. */
  JS_SetGCThreshold(runtime, 8 << 20);
  seal(4);
  building = false;
}

/* ---- A call */

EXPORT(skerry_alloc) void *skerry_alloc(size_t size) { return malloc(size); }

static uint64_t respond(uint32_t status, const char *headers, size_t head, const void *body, size_t size) {
  uint32_t lengths[2] = {status, (uint32_t)head};
  char *made = malloc(sizeof lengths + head + size);
  if (!made) __builtin_trap();
  memcpy(made, lengths, sizeof lengths);
  memcpy(made + sizeof lengths, headers, head);
  memcpy(made + sizeof lengths + head, body, size);
  return (uint64_t)(uintptr_t)made << 32 | (sizeof lengths + head + size);
}

/* The address of the request, as the function sees it. `texts` and `lengths` are the request's. */
static JSValue address(const char *const texts[8], const uint32_t lengths[8]) {
  enum { PATH = 1, QUERY, HEADERS, SCRIPT, ROUTE };
  static const char local[] = "localhost";
  const char *host = local, *at = texts[HEADERS];
  size_t host_size = sizeof local - 1;
  for (const char *end; (end = strchr(at, '\n')); at = end + 1)
    if (!strncmp(at, "host: ", 6)) host = at + 6, host_size = (size_t)(end - host);
  Buffer made = {0};
  for (int attempt = 0; attempt < 2; attempt++, host = local, host_size = sizeof local - 1, made.size = 0) {
    put(&made, "http://", 7);
    put(&made, host, host_size);
    /* By its route the path is the whole one, by its name what follows the name: so a router works for both. */
    if (lengths[ROUTE]) put(&made, texts[SCRIPT], lengths[SCRIPT]);
    put(&made, texts[PATH], lengths[PATH]);
    if (lengths[QUERY]) put(&made, "?", 1), put(&made, texts[QUERY], lengths[QUERY]);
    if (made.failed) return JS_ThrowOutOfMemory(context);
    ada_url url = ada_parse(made.bytes, made.size);
    JSValue text = JS_UNDEFINED;
    if (ada_is_valid(url)) {
      ada_string href = ada_get_href(url);
      text = JS_NewStringLen(context, href.data, href.length);
    }
    ada_free(url);
    if (!JS_IsUndefined(text)) return text;
  }
  return JS_ThrowTypeError(context, "the request's address can't be read");
}

EXPORT(skerry_handle) uint64_t skerry_handle(char *piece, size_t size) {
  uint32_t lengths[8];
  const char *texts[8], *at = piece + sizeof lengths;
  memcpy(lengths, piece, sizeof lengths);
  JS_UpdateStackTop(runtime);
  for (int n = 0; n < 8; n++) {
    texts[n] = at;
    at += lengths[n] + 1;
  }
  size_t rest = size - (size_t)(at - piece);
  JSValue arguments[7] = {
      JS_NewStringLen(context, texts[0], lengths[0]),
      address(texts, lengths),
      latin1_text(context, texts[3], lengths[3]),
      JS_NewStringLen(context, texts[5], lengths[5]),
      JS_NewStringLen(context, texts[6], lengths[6]),
      JS_NewStringLen(context, texts[7], lengths[7]),
      /* The piece is the call's own, and stays. */
      rest ? JS_NewUint8Array(context, (uint8_t *)at, rest, NULL, NULL, false) : JS_UNDEFINED,
  };
  JSValue answer = JS_IsException(arguments[1]) ? JS_EXCEPTION : settled(JS_Call(context, entry, JS_UNDEFINED, 7, arguments));
  if (!JS_IsException(answer)) answer = settled(JS_Call(context, finish, JS_UNDEFINED, 1, &answer));
  uint64_t made = 0;
  if (!JS_IsException(answer)) {
    int32_t status = 0;
    size_t head, length;
    JSValue values[3];
    for (uint32_t n = 0; n < 3; n++) values[n] = JS_GetPropertyUint32(context, answer, n);
    JS_ToInt32(context, &status, values[0]);
    char *headers = own_text(context, &head, values[1]);
    const void *body = "";
    length = 0;
    if (JS_IsString(values[2])) body = utf8(context, &length, values[2]);
    else if (!JS_IsNull(values[2])) body = bytes_of(context, &length, values[2]);
    if (headers && body) made = respond((uint32_t)status, headers, latin1_bytes(headers, head), body, length);
  }
  if (!made) {
    complain();
    static const char plain[] = "Content-Type: text/plain;charset=UTF-8\n", text[] = "Internal Server Error";
    made = respond(500, plain, sizeof plain - 1, text, sizeof text - 1);
  }
  log_rejections();
  return made;
}
