//! The node calls this by the schedule in function.toml, and a tick is kept in the table. GET lists the last ten.

const std = @import("std");
const skerry = @import("skerry.zig");

/// An error goes to stderr, which is the node's log; it undoes what the call wrote, and the tick has failed.
pub fn main() !void {
    // No client can send these headers.
    if (std.mem.eql(u8, skerry.variable("HTTP_SKERRY_EVENT"), "schedule")) {
        const due = skerry.variable("HTTP_SKERRY_SCHEDULED_AT");
        _ = try run("INSERT INTO notes (due) VALUES (?)", .{due});
        _ = try run("DELETE FROM notes WHERE due < strftime('%Y-%m-%dT%H:%M:%SZ', ?, '-30 days')", .{due});
        return skerry.answer("200 OK", .{ .kept = true });
    }
    if (std.mem.eql(u8, skerry.variable("REQUEST_METHOD"), "GET")) {
        const rows = try run("SELECT due FROM notes ORDER BY due DESC LIMIT 10", .{});
        const ticks = try skerry.allocator.alloc(std.json.Value, rows.len);
        for (rows, ticks) |row, *tick| tick.* = row[0];
        return skerry.answer("200 OK", ticks);
    }
    return skerry.answer("405 Method Not Allowed\nAllow: GET", .{ .@"error" = "only the schedule starts it" });
}

fn run(statement: []const u8, parameters: anytype) ![]const []const std.json.Value {
    const found = try skerry.sql(statement, parameters);
    const why = found.@"error" orelse return found.rows;
    std.debug.print("{s}: {s}\n", .{ why.code, why.message });
    return error.Refused;
}
