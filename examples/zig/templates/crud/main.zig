//! Notes as JSON: GET / lists them, POST / creates one; GET, PUT and DELETE /ID read, replace and delete one.
//! All SQL of one call is one transaction.

const std = @import("std");
const skerry = @import("skerry.zig");

const Note = struct { title: []const u8, text: []const u8 = "" };
const Row = struct { id: std.json.Value, title: std.json.Value, text: std.json.Value };

/// An error goes to stderr, which is the node's log; it undoes what the call wrote, and the answer is a 502.
pub fn main() !void {
    const id = std.mem.trimStart(u8, skerry.variable("PATH_INFO"), "/");
    const method = std.meta.stringToEnum(enum { GET, POST, PUT, DELETE }, skerry.variable("REQUEST_METHOD"));
    if (id.len == 0) {
        if (method == .GET)
            return skerry.answer("200 OK", try run("SELECT id, title, text FROM notes ORDER BY id", .{}));
        if (method != .POST) return refused("GET, POST");
        const note = try sent() orelse return invalid();
        const statement = "INSERT INTO notes (title, text) VALUES (?, ?) RETURNING id, title, text";
        return one("201 Created", try run(statement, .{ note.title, note.text }));
    }
    switch (method orelse return refused("GET, PUT, DELETE")) {
        .GET => return one("200 OK", try run("SELECT id, title, text FROM notes WHERE id = ?", .{id})),
        .PUT => {
            const note = try sent() orelse return invalid();
            const statement = "UPDATE notes SET title = ?, text = ? WHERE id = ? RETURNING id, title, text";
            return one("200 OK", try run(statement, .{ note.title, note.text, id }));
        },
        .DELETE => return one("200 OK", try run("DELETE FROM notes WHERE id = ? RETURNING id, title, text", .{id})),
        .POST => return refused("GET, PUT, DELETE"),
    }
}

/// The note in the request's body; null where it isn't one.
fn sent() !?Note {
    const options = std.json.ParseOptions{ .ignore_unknown_fields = true };
    const note = std.json.parseFromSliceLeaky(Note, skerry.allocator, try skerry.body(), options) catch return null;
    const length = std.unicode.utf8CountCodepoints(note.title) catch return null;
    return if (length >= 1 and length <= 100) note else null;
}

fn run(statement: []const u8, parameters: anytype) ![]const Row {
    const found = try skerry.sql(statement, parameters);
    if (found.@"error") |why| {
        std.debug.print("{s}: {s}\n", .{ why.code, why.message });
        return error.Refused;
    }
    const rows = try skerry.allocator.alloc(Row, found.rows.len);
    for (found.rows, rows) |cells, *row| row.* = .{ .id = cells[0], .title = cells[1], .text = cells[2] };
    return rows;
}

fn one(status: []const u8, rows: []const Row) !void {
    if (rows.len == 0) return skerry.answer("404 Not Found", .{ .@"error" = "there is no such note" });
    return skerry.answer(status, rows[0]);
}

fn invalid() !void {
    const why = "send JSON: a title of 1 to 100 characters, and a text if there is one";
    return skerry.answer("400 Bad Request", .{ .@"error" = why });
}

fn refused(comptime allowed: []const u8) !void {
    return skerry.answer("405 Method Not Allowed\nAllow: " ++ allowed, .{ .@"error" = "not by this method" });
}
