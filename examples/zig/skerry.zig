//! What a Skerry function in Zig needs besides the standard library: SQL, query parameters, the body, the answer.
//!
//! A function is a WASI command that answers one request: the request is in CGI variables (`PATH_INFO`,
//! `QUERY_STRING`, ...) and its body on stdin; the answer goes to stdout: headers, a blank line, the body.
//! All SQL of one request is one transaction, committed when the function ends normally with a status below 500.
//! Memory is not given back: the instance ends with the request.

const std = @import("std");

/// For everything that lives as long as the request.
pub const allocator = std.heap.wasm_allocator;

/// The node's functions: ask with JSON and get the length of the answer, then have it copied, once.
const node = struct {
    extern "skerry" fn sql(request: [*]const u8, size: usize) usize;
    extern "skerry" fn http(request: [*]const u8, size: usize) usize;
    extern "skerry" fn result(answer: [*]u8) void;
};

extern "c" fn getenv(name: [*:0]const u8) ?[*:0]const u8;
extern "c" fn read(fd: c_int, bytes: [*]u8, size: usize) isize;
extern "c" fn write(fd: c_int, bytes: [*]const u8, size: usize) isize;

/// What a statement gave, or why it failed. A BLOB is an object `{"$blob": base64}`; integers are exact to 64 bits.
pub const Answer = struct {
    columns: []const []const u8 = &.{},
    rows: []const []const std.json.Value = &.{},
    /// How many rows the statement wrote.
    changes: i64 = 0,
    /// The rowid of the last row that it inserted.
    last_id: ?i64 = null,
    /// The codes are in docs/errors.md.
    @"error": ?struct { code: []const u8, message: []const u8 } = null,
};

/// Run one SQL statement with values for its question marks: a tuple or array of texts, numbers, booleans, nulls.
pub fn sql(statement: []const u8, parameters: anytype) !Answer {
    const request = try json(.{ .sql = statement, .params = parameters });
    return std.json.parseFromSliceLeaky(Answer, allocator, try result(node.sql(request.ptr, request.len)), .{});
}

/// Have the node send an HTTP request: a struct of method, url, headers and body, of which the url alone must be there.
/// The answer has status, headers and body, or error.
pub fn http(request: anytype) !std.json.Value {
    const asked = try json(request);
    return std.json.parseFromSliceLeaky(std.json.Value, allocator, try result(node.http(asked.ptr, asked.len)), .{});
}

/// The answer that waits.
fn result(size: usize) ![]const u8 {
    const told = try allocator.alloc(u8, size);
    node.result(told.ptr);
    return told;
}

/// A value as JSON.
pub fn json(value: anytype) ![]const u8 {
    return std.json.Stringify.valueAlloc(allocator, value, .{});
}

/// A variable of the request; empty where it isn't there.
pub fn variable(name: [*:0]const u8) []const u8 {
    return if (getenv(name)) |value| std.mem.span(value) else "";
}

/// The parameter `name` of the query string, decoded.
pub fn parameter(name: []const u8) !?[]const u8 {
    var pairs = std.mem.splitScalar(u8, variable("QUERY_STRING"), '&');
    while (pairs.next()) |pair| {
        const end = std.mem.indexOfScalar(u8, pair, '=') orelse continue;
        if (std.mem.eql(u8, try decoded(pair[0..end]), name)) return try decoded(pair[end + 1 ..]);
    }
    return null;
}

fn decoded(text: []const u8) ![]const u8 {
    const out = try allocator.dupe(u8, text);
    std.mem.replaceScalar(u8, out, '+', ' ');
    return std.Uri.percentDecodeInPlace(out);
}

/// The request's body.
pub fn body() ![]const u8 {
    const room = try allocator.alloc(u8, std.fmt.parseInt(usize, variable("CONTENT_LENGTH"), 10) catch 0);
    var got: usize = 0;
    while (got < room.len) {
        const count = read(0, room.ptr + got, room.len - got);
        if (count <= 0) break;
        got += @intCast(count);
    }
    return room[0..got];
}

/// Answer with a status ("201 Created") and a value as JSON.
pub fn answer(status: []const u8, value: anytype) !void {
    const text = try std.mem.concat(allocator, u8, &.{
        "Status: ", status, "\nContent-Type: application/json\n\n", try json(value), "\n",
    });
    var left: []const u8 = text;
    while (left.len > 0) {
        const count = write(1, left.ptr, left.len);
        if (count <= 0) return error.WriteFailed;
        left = left[@intCast(count)..];
    }
}
