//! Counts visits by name, in one statement that writes: POST /functions/visits/NAME, and GET for the count alone.

const std = @import("std");

extern "skerry" fn sql(request: [*]const u8, size: usize) u32;
extern "skerry" fn result(answer: [*]u8) void;

extern "c" fn getenv(name: [*:0]const u8) ?[*:0]const u8;
extern "c" fn write(fd: c_int, bytes: [*]const u8, size: usize) isize;

const count_up =
    "INSERT INTO visits (name, count) VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET count = count + 1 RETURNING count";
const look_up = "SELECT count FROM visits WHERE name = ?";

/// A JSON text in a fixed buffer; what does not fit is a trap.
const Text = struct {
    bytes: [16384]u8 = undefined,
    length: usize = 0,

    fn add(self: *Text, part: []const u8) void {
        if (part.len > self.bytes.len - self.length) @trap();
        @memcpy(self.bytes[self.length..][0..part.len], part);
        self.length += part.len;
    }

    fn quote(self: *Text, part: []const u8) void {
        const digits = "0123456789abcdef";
        self.add("\"");
        for (part) |byte| {
            if (byte == '"' or byte == '\\') {
                self.add(&.{ '\\', byte });
            } else if (byte < 0x20) {
                self.add(&.{ '\\', 'u', '0', '0', digits[byte >> 4], digits[byte & 15] });
            } else self.add(&.{byte});
        }
        self.add("\"");
    }
};

fn variable(name: [*:0]const u8) []const u8 {
    return if (getenv(name)) |value| std.mem.span(value) else "";
}

fn answer(text: []const u8) void {
    var left = text;
    while (left.len > 0) {
        const written = write(1, left.ptr, left.len);
        if (written <= 0) @trap();
        left = left[@intCast(written)..];
    }
}

pub fn main() void {
    const path = variable("PATH_INFO");
    if (path.len < 2 or path.len > 256) {
        return answer("Status: 404 Not Found\nContent-Type: application/json\n\n{\"error\":\"name a visitor: /visits/ada\"}\n");
    }
    var request: Text = .{};
    request.add("{\"sql\":");
    request.quote(if (std.mem.eql(u8, variable("REQUEST_METHOD"), "POST")) count_up else look_up);
    request.add(",\"params\":[");
    request.quote(path[1..]);
    request.add("]}");
    const size = sql(&request.bytes, request.length);

    var found: Text = .{};
    if (size > found.bytes.len) @trap();
    result(&found.bytes);
    found.length = size;
    const json = found.bytes[0..size];

    var response: Text = .{};
    const failed = std.mem.startsWith(u8, json, "{\"error\"");
    response.add(if (failed) "Status: 500\n" else "Status: 200\n");
    response.add("Content-Type: application/json\n\n");
    if (failed) {
        response.add(json);
    } else {
        // {"columns":["count"],"rows":[[N]],…}: N, or 0 where there is no row.
        const rows = "\"rows\":[[";
        var count: []const u8 = "0";
        if (std.mem.indexOf(u8, json, rows)) |start| {
            const rest = json[start + rows.len ..];
            count = rest[0 .. std.mem.indexOfScalar(u8, rest, ']') orelse 0];
        }
        response.add("{\"name\":");
        response.quote(path[1..]);
        response.add(",\"count\":");
        response.add(count);
        response.add("}");
    }
    response.add("\n");
    answer(response.bytes[0..response.length]);
}
