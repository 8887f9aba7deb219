//! Notes by author: POST ?author=ada keeps the body as a note, GET ?author=ada lists ada's notes.

const std = @import("std");
const skerry = @import("skerry.zig");

pub fn main() !void {
    const author = try skerry.parameter("author") orelse
        return skerry.answer("400 Bad Request", .{ .@"error" = "say whose notes: ?author=NAME" });
    const method = skerry.variable("REQUEST_METHOD");
    if (std.mem.eql(u8, method, "POST")) {
        const statement = "INSERT INTO notes (author, text) VALUES (?, ?) RETURNING id";
        const found = try skerry.sql(statement, .{ author, try skerry.body() });
        if (found.@"error" != null) return failed(found);
        return skerry.answer("201 Created", .{ .author = author, .id = found.rows[0][0] });
    }
    if (std.mem.eql(u8, method, "GET")) {
        const found = try skerry.sql("SELECT text FROM notes WHERE author = ? ORDER BY id", .{author});
        if (found.@"error" != null) return failed(found);
        const notes = try skerry.allocator.alloc(std.json.Value, found.rows.len);
        for (found.rows, notes) |row, *note| note.* = row[0];
        return skerry.answer("200 OK", .{ .author = author, .notes = notes });
    }
    return skerry.answer("405 Method Not Allowed\nAllow: GET, POST", .{ .@"error" = "only GET and POST" });
}

/// What goes to stderr is the node's log, and a status of 500 and above undoes what the call wrote.
fn failed(found: skerry.Answer) !void {
    const why = found.@"error".?;
    std.debug.print("{s}: {s}\n", .{ why.code, why.message });
    return skerry.answer("500 Internal Server Error", .{ .@"error" = "the database refused it" });
}
