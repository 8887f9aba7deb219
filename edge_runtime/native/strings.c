/* A WAGI program's arguments and environment, and the environment of a `direct` library, made of a call's head: what
   guests/abi/wagi.py makes in Python. Where something is unusual, false: the caller does it then. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>

#include "parts.h"

static Bytes of(const char *text) { return (Bytes){(const uint8_t *)text, (uint32_t)strlen(text)}; }

static uint8_t lower(uint8_t letter) { return letter >= 'A' && letter <= 'Z' ? letter | 0x20 : letter; }
static uint8_t upper(uint8_t letter) { return letter >= 'a' && letter <= 'z' ? letter & 0xDF : letter; }

static bool same(Bytes one, Bytes other) {
    if (one.size != other.size) return false;
    for (uint32_t i = 0; i < one.size; i++)
        if (lower(one.at[i]) != lower(other.at[i])) return false;
    return true;
}

/* Strings are put together piece by piece; `end` ends one. What doesn't fit is noted, and told by `made`. */
static void begin(Strings *strings) {
    strings->made = true;
    strings->size = strings->count = 0;
    strings->starts[0] = 0;
}

static void add(Strings *strings, Bytes piece) {
    if (piece.size > ROOM - strings->size) {
        strings->made = false;
        return;
    }
    if (piece.size) memcpy(strings->bytes + strings->size, piece.at, piece.size);
    strings->size += piece.size;
}

static void end(Strings *strings) {
    add(strings, (Bytes){(const uint8_t *)"", 1});
    if (++strings->count >= MOST_STRINGS)
        strings->made = false, strings->count = 0;
    strings->starts[strings->count] = strings->size;
}

static void variable(Strings *strings, const char *name, Bytes value) {
    add(strings, of(name));
    add(strings, of("="));
    add(strings, value);
    end(strings);
}

static int hex(uint8_t digit) {
    if (digit >= '0' && digit <= '9') return digit - '0';
    digit = lower(digit);
    return digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

/* Adds a text whose %XX are bytes. */
static void add_unquoted(Strings *strings, Bytes text) {
    for (uint32_t i = 0; i < text.size; i++) {
        uint8_t byte = text.at[i];
        if (byte == '%' && i + 2 < text.size && hex(text.at[i + 1]) >= 0 && hex(text.at[i + 2]) >= 0) {
            byte = (uint8_t)(hex(text.at[i + 1]) << 4 | hex(text.at[i + 2]));
            i += 2;
        }
        add(strings, (Bytes){&byte, 1});
    }
}

/* Takes the text up to the next `mark` from the front of `rest`, and the mark with it. */
static Bytes take(Bytes *rest, uint8_t mark) {
    const uint8_t *found = rest->size ? memchr(rest->at, mark, rest->size) : NULL;
    uint32_t size = found ? (uint32_t)(found - rest->at) : rest->size;
    Bytes taken = {rest->at, size};
    rest->at += size + (found != NULL);
    rest->size -= size + (found != NULL);
    return taken;
}

/* Takes a header from the front of the lines `name: value`, each ended by LF. */
static Bytes take_header(Bytes *lines, Bytes *value) {
    Bytes line = take(lines, '\n'), name = take(&line, ':');
    if (line.size && *line.at == ' ') line.at++, line.size--;
    *value = line;
    return name;
}

/* Whether a header becomes a variable of its own. One with an underscore doesn't: X_Y would be taken for X-Y. And a
   `Proxy` would become HTTP_PROXY, which HTTP libraries obey. */
static bool becomes_variable(Bytes name) {
    if (!name.size) return false;
    for (uint32_t i = 0; i < name.size; i++) {
        uint8_t letter = lower(name.at[i]);
        if (!(letter == '-' || (letter >= '0' && letter <= '9') || (letter >= 'a' && letter <= 'z'))) return false;
    }
    return !(same(name, of("content-length")) || same(name, of("proxy")) || same(name, of("transfer-encoding")) ||
             same(name, of("connection")));
}

/* Whether the head has nothing that no environment variable can hold, and a caller's name that is ASCII: what Python
   refuses, it refuses before the guest runs. */
bool head_fits(const Head *head) {
    for (uint32_t i = 0; i < head->caller.size; i++)
        if (!head->caller.at[i] || head->caller.at[i] > 126) return false;
    return !memmem(head->block.at, head->block.size, "%00", 3);
}

bool arguments_make(Strings *strings, const Head *head, const Function *function) {
    begin(strings);
    if (!function->wagi) {
        add(strings, (Bytes){function->name, function->name_size});
        end(strings);
        return strings->made;
    }
    add(strings, head->text[SCRIPT]);
    add(strings, head->text[PATH]);
    end(strings);
    for (Bytes rest = head->text[QUERY]; rest.size;) {
        Bytes part = take(&rest, '&');
        if (!part.size) continue;
        add(strings, part);
        end(strings);
    }
    return strings->made;
}

/* Adds the variables of the headers: of several with one name one, with all their values. */
static void add_headers(Strings *strings, Bytes lines, bool *has_length) {
    Bytes rest = lines, value, other_value;
    while (rest.size) {
        const uint8_t *line = rest.at;
        Bytes name = take_header(&rest, &value);
        if (!becomes_variable(name)) {
            *has_length |= same(name, of("content-length"));
            continue;
        }
        bool before = false;
        for (Bytes earlier = {lines.at, (uint32_t)(line - lines.at)}; earlier.size && !before;)
            before = same(take_header(&earlier, &other_value), name);
        if (before) continue;
        bool type = same(name, of("content-type"));
        add(strings, of(type ? "CONTENT_TYPE" : "HTTP_"));
        for (uint32_t i = 0; i < name.size && !type; i++) {
            uint8_t letter = name.at[i] == '-' ? '_' : upper(name.at[i]);
            add(strings, (Bytes){&letter, 1});
        }
        add(strings, of("="));
        add(strings, value);
        for (Bytes later = rest; later.size;) {
            if (!same(take_header(&later, &other_value), name)) continue;
            add(strings, of(same(name, of("cookie")) ? "; " : ", "));
            add(strings, other_value);
        }
        end(strings);
    }
}

/* Adds SERVER_NAME, SERVER_PORT and X_FULL_URL, which the first Host header tells. */
static void add_server(Strings *strings, const Head *head) {
    Bytes host = of("localhost"), value, rest = head->text[HEADERS], colon;
    while (rest.size)
        if (same(take_header(&rest, &value), of("host"))) {
            host = value;
            break;
        }
    Bytes name = host, port = of(head->https ? "443" : "80");
    const uint8_t *last = host.size ? memrchr(host.at, ':', host.size) : NULL;
    if (last) {
        colon = (Bytes){last + 1, host.size - (uint32_t)(last + 1 - host.at)};
        bool digits = colon.size > 0;
        for (uint32_t i = 0; i < colon.size; i++) digits &= colon.at[i] >= '0' && colon.at[i] <= '9';
        if (digits) name.size = (uint32_t)(last - host.at), port = colon;
    }
    variable(strings, "SERVER_NAME", name);
    variable(strings, "SERVER_PORT", port);
    add(strings, of("X_FULL_URL="));
    add(strings, of(head->https ? "https://" : "http://"));
    add(strings, host);
    add(strings, head->text[SCRIPT]);
    add(strings, head->text[PATH]);
    if (head->text[QUERY].size) add(strings, of("?"));
    add(strings, head->text[QUERY]);
    end(strings);
}

/* Adds the route's parameters. Two with one name are left to Python. */
static void add_params(Strings *strings, Bytes params) {
    for (Bytes rest = params; rest.size;) {
        Bytes value = take(&rest, '&'), name = take(&value, '=');
        for (Bytes later = rest; later.size;) {
            Bytes other = take(&later, '&');
            if (same(take(&other, '='), name)) strings->made = false;
        }
        add(strings, of("PATH_PARAM_"));
        for (uint32_t i = 0; i < name.size; i++) {
            uint8_t letter = upper(name.at[i]);
            add(strings, (Bytes){&letter, 1});
        }
        add(strings, of("="));
        add_unquoted(strings, value);
        end(strings);
    }
}

static void add_settings(Strings *strings, const Function *function) {
    for (Bytes rest = {function->settings, function->settings_size}; rest.size;) {
        add(strings, take(&rest, 0));
        end(strings);
    }
}

bool environment_make(Strings *strings, const Head *head, const Function *function, uint32_t body_size) {
    begin(strings);
    if (!function->wagi) {
        if (head->caller.size) {
            variable(strings, "AUTH_TYPE", head->auth_type);
            variable(strings, "REMOTE_USER", head->caller);
        }
        add_settings(strings, function);
        return strings->made;
    }
    const Bytes *text = head->text;
    variable(strings, "GATEWAY_INTERFACE", of("CGI/1.1"));
    variable(strings, "SERVER_SOFTWARE", of("skerry"));
    variable(strings, "SERVER_PROTOCOL", of("HTTP/1.1"));
    variable(strings, "REQUEST_METHOD", text[METHOD]);
    variable(strings, "SCRIPT_NAME", text[SCRIPT]);
    add(strings, of("PATH_INFO="));
    add_unquoted(strings, text[PATH]);
    end(strings);
    add(strings, of("PATH_TRANSLATED="));
    add_unquoted(strings, text[PATH]);
    end(strings);
    variable(strings, "AUTH_TYPE", head->auth_type);
    variable(strings, "REMOTE_USER", head->caller);
    variable(strings, "QUERY_STRING", text[QUERY]);
    variable(strings, "REMOTE_ADDR", text[CLIENT]);
    variable(strings, "REMOTE_HOST", text[CLIENT]);
    variable(strings, "SKERRY_FUNCTION", (Bytes){function->name, function->name_size});
    add(strings, of("X_MATCHED_ROUTE="));
    add(strings, text[ROUTE].size ? text[ROUTE] : text[SCRIPT]);
    if (!text[ROUTE].size) add(strings, of("/..."));
    end(strings);
    variable(strings, "X_RAW_PATH_INFO", text[PATH]);
    bool carries_body = body_size > 0;
    add_headers(strings, text[HEADERS], &carries_body);
    if (carries_body) {
        char number[16];
        snprintf(number, sizeof number, "%u", body_size);
        variable(strings, "CONTENT_LENGTH", of(number));
    }
    add_server(strings, head);
    if (head->https) variable(strings, "HTTPS", of("on"));
    add_params(strings, text[PARAMS]);
    add_settings(strings, function);
    return strings->made;
}
