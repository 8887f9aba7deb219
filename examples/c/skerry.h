/* skerry.h: what a Skerry function in C needs besides the C library: SQL, JSON strings, query parameters, the body.
 *
 * A function is a WASI command that answers one request: the request is in CGI variables (getenv("PATH_INFO"),
 * getenv("QUERY_STRING"), ...) and its body on stdin; the answer goes to stdout: headers, a blank line, the body.
 * All SQL of one request is one transaction, committed when the function ends normally with a status below 500.
 *
 *   python -m ziglang cc -target wasm32-wasi -O2 -s -o notes.wasm main.c
 */
#ifndef SKERRY_H
#define SKERRY_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The node's functions: ask with JSON and get the length of the answer, then have it copied, once. */
__attribute__((import_module("skerry"), import_name("sql"))) unsigned skerry_import_sql(const char *request, size_t size);
__attribute__((import_module("skerry"), import_name("http"))) unsigned skerry_import_http(const char *request, size_t size);
__attribute__((import_module("skerry"), import_name("result"))) void skerry_import_result(char *answer);

/* Append `text` to `out` as a JSON string, in quotes and escaped. `out` must have room: 6 * strlen(text) + 3 bytes.
 * Returns the end of what was written, where a NUL is. */
static inline char *skerry_json(char *out, const char *text) {
  *out++ = '"';
  for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
    if (*c == '"' || *c == '\\') {
      *out++ = '\\';
      *out++ = (char)*c;
    } else if (*c < 0x20) {
      out += snprintf(out, 7, "\\u%04x", *c);
    } else {
      *out++ = (char)*c;
    }
  }
  *out++ = '"';
  *out = 0;
  return out;
}

/* The answer that waits, NUL-terminated; NULL where memory ran out. */
static inline char *skerry_result(size_t size) {
  char *answer = malloc(size + 1);
  if (!answer) return NULL;
  skerry_import_result(answer);
  answer[size] = 0;
  return answer;
}

/* Run one SQL statement with `count` text parameters for its question marks. Returns the answer, NUL-terminated JSON:
 * {"columns": [...], "rows": [[...], ...], "changes": n, "last_id": n} or {"error": {"code": ..., "message": ...}}.
 * It is the caller's to free; NULL where memory ran out. */
static inline char *skerry_sql(const char *sql, int count, const char *const parameters[]) {
  size_t room = 6 * strlen(sql) + 64;
  for (int i = 0; i < count; i++) room += 6 * strlen(parameters[i]) + 4;
  char *request = malloc(room);
  if (!request) return NULL;
  char *end = skerry_json(stpcpy(request, "{\"sql\":"), sql);
  end = stpcpy(end, ",\"params\":[");
  for (int i = 0; i < count; i++) {
    if (i) *end++ = ',';
    end = skerry_json(end, parameters[i]);
  }
  end = stpcpy(end, "]}");
  unsigned size = skerry_import_sql(request, (size_t)(end - request));
  free(request);
  return skerry_result(size);
}

/* Have the node send an HTTP request, {"method": ..., "url": ..., "headers": [[name, value], ...], "body": ...} of which
 * the URL alone must be there. Returns {"status": ..., "headers": ..., "body": ...} or {"error": ...}; it is the
 * caller's to free; NULL where memory ran out. */
static inline char *skerry_http(const char *request) {
  return skerry_result(skerry_import_http(request, strlen(request)));
}

/* The end of the JSON value that begins at `at` (which must be whole, as a node's answers are). */
static inline const char *skerry_skip(const char *at) {
  int depth = 0;
  for (;; at++) {
    if (*at == '"') {
      for (at++; *at && *at != '"'; at++)
        if (*at == '\\' && at[1]) at++;
    } else if (*at == '[' || *at == '{') {
      depth++;
    } else if (*at == ']' || *at == '}') {
      if (--depth < 0) return at;
    } else if (*at == ',' && depth == 0) {
      return at;
    }
    if (!*at) return at;
    if (depth == 0 && (at[1] == ',' || at[1] == ']' || at[1] == '}')) return at + 1;
  }
}

/* The code point of four hexadecimal digits. */
static inline unsigned skerry_hex(const char *at) {
  char digits[5] = {0};
  memcpy(digits, at, strnlen(at, 4));
  return (unsigned)strtoul(digits, NULL, 16);
}

/* Where one cell of an answer's rows (both counted from 0) is, as it stands there: JSON, which ends at skerry_skip of it.
 * NULL where the answer is an error or has no such cell. */
static inline const char *skerry_find(const char *answer, int row, int column) {
  const char *at = answer ? strstr(answer, "\"rows\":[") : NULL;
  if (!at || !strncmp(answer, "{\"error\"", 8)) return NULL;
  at += strlen("\"rows\":[");
  for (; row > 0 && *at == '['; row--) {
    at = skerry_skip(at);
    if (*at == ',') at++;
  }
  if (*at != '[') return NULL;
  at++;
  for (; column > 0 && *at && *at != ']'; column--) {
    at = skerry_skip(at);
    if (*at == ',') at++;
  }
  return *at && *at != ']' ? at : NULL;
}

/* Copy one cell of an answer's rows (both counted from 0) as text, cut to `size` - 1 bytes; NULL becomes "".
 * false where the answer is an error or has no such cell. */
static inline bool skerry_cell(const char *answer, int row, int column, char *out, size_t size) {
  const char *at = skerry_find(answer, row, column);
  if (!at || !size) return false;
  char *end = out + size - 1;
  if (!strncmp(at, "null", 4)) {
    *out = 0;
    return true;
  }
  if (*at != '"') {
    for (const char *stop = skerry_skip(at); at < stop && out < end; at++) *out++ = *at;
    *out = 0;
    return true;
  }
  for (at++; *at && *at != '"' && out < end; at++) {
    if (*at != '\\') {
      *out++ = *at;
      continue;
    }
    at++;
    static const char names[] = "bfnrt", controls[] = "\b\f\n\r\t";
    const char *named = *at ? strchr(names, *at) : NULL;
    if (named) {
      *out++ = controls[named - names];
    } else if (*at != 'u') {
      *out++ = *at;
    } else {
      unsigned point = skerry_hex(at + 1);
      at += 4;
      if (point >= 0xd800 && point < 0xdc00 && at[1] == '\\' && at[2] == 'u') {
        point = 0x10000 + ((point - 0xd800) << 10) + (skerry_hex(at + 3) - 0xdc00);
        at += 6;
      }
      char bytes[4];
      int length = 0;
      if (point < 0x80) {
        bytes[length++] = (char)point;
      } else if (point < 0x800) {
        bytes[length++] = (char)(0xc0 | point >> 6);
      } else if (point < 0x10000) {
        bytes[length++] = (char)(0xe0 | point >> 12);
        bytes[length++] = (char)(0x80 | (point >> 6 & 0x3f));
      } else {
        bytes[length++] = (char)(0xf0 | point >> 18);
        bytes[length++] = (char)(0x80 | (point >> 12 & 0x3f));
        bytes[length++] = (char)(0x80 | (point >> 6 & 0x3f));
      }
      if (point >= 0x80) bytes[length++] = (char)(0x80 | (point & 0x3f));
      if (out + length > end) break;
      memcpy(out, bytes, (size_t)length);
      out += length;
    }
  }
  *out = 0;
  return true;
}

/* What a hexadecimal digit stands for; -1 for what is none. */
static inline int skerry_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  c |= 0x20;
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Copy the value of `name` in `pairs` (as a query string has them: id=7&name=x%20y), decoded and cut to `size` - 1 bytes;
 * false where there is none. A %00 stays as it is: it would end the text. */
static inline bool skerry_value(const char *pairs, const char *name, char *out, size_t size) {
  size_t length = strlen(name);
  const char *at = pairs;
  while (at && *at && !(strncmp(at, name, length) == 0 && at[length] == '=')) {
    at = strchr(at, '&');
    if (at) at++;
  }
  if (!at || !*at || !size) return false;
  char *end = out + size - 1;
  for (at += length + 1; *at && *at != '&' && out < end; at++) {
    int high = *at == '%' ? skerry_digit(at[1]) : -1, low = high < 0 ? -1 : skerry_digit(at[2]);
    if (low >= 0 && high + low > 0) {
      *out++ = (char)(high << 4 | low);
      at += 2;
    } else {
      *out++ = *at == '+' ? ' ' : *at;
    }
  }
  *out = 0;
  return true;
}

/* The same of the query string. */
static inline bool skerry_parameter(const char *name, char *out, size_t size) {
  return skerry_value(getenv("QUERY_STRING"), name, out, size);
}

/* The request's body, NUL-terminated, and its size. It is the caller's to free; NULL where memory ran out. */
static inline char *skerry_body(size_t *size) {
  const char *length = getenv("CONTENT_LENGTH");
  size_t room = length ? strtoul(length, NULL, 10) : 0;
  char *body = malloc(room + 1);
  ssize_t got;
  for (*size = 0; body && *size < room && (got = read(0, body + *size, room - *size)) > 0;) *size += (size_t)got;
  if (body) body[*size] = 0;
  return body;
}

#endif
