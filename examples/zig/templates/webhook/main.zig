//! Keeps events that are signed as https://www.standardwebhooks.com says. An event that comes again, from its sender or
//! from somebody who has seen it, is kept once, by its signed id: so there is no need to refuse one for its time.

const std = @import("std");
const skerry = @import("skerry.zig");
const Hmac = std.crypto.auth.hmac.sha2.HmacSha256;

/// An error goes to stderr, which is the node's log; it becomes a 502, and the sender sends the event again.
pub fn main() !void {
    if (!std.mem.eql(u8, skerry.variable("REQUEST_METHOD"), "POST"))
        return skerry.answer("405 Method Not Allowed\nAllow: POST", .{ .@"error" = "only POST" });
    const id = skerry.variable("HTTP_WEBHOOK_ID");
    const body = try skerry.body();
    if (!isSigned(id, skerry.variable("HTTP_WEBHOOK_TIMESTAMP"), body))
        return skerry.answer("401 Unauthorized", .{ .@"error" = "the signature isn't right" });
    const statement = "INSERT INTO notes (id, body) VALUES (?, ?) ON CONFLICT DO NOTHING RETURNING id";
    const found = try skerry.sql(statement, .{ id, body });
    if (found.@"error") |why| {
        std.debug.print("{s}: {s}\n", .{ why.code, why.message });
        return error.Refused;
    }
    return skerry.answer("200 OK", .{ .stored = found.rows.len > 0 });
}

/// Whether one of the signatures in the header is the message's.
fn isSigned(id: []const u8, time: []const u8, body: []const u8) bool {
    const secret = skerry.variable("WEBHOOK_SECRET");
    const text = if (std.mem.startsWith(u8, secret, "whsec_")) secret[6..] else secret;
    var buffer: [64]u8 = undefined;
    const key = decoded(text, &buffer) orelse return false;
    // A secret has 24 to 64 bytes: anybody could guess a short one.
    if (key.len < 24) return false;
    var right: [Hmac.mac_length]u8 = undefined;
    var hmac = Hmac.init(key);
    for ([_][]const u8{ id, ".", time, ".", body }) |piece| hmac.update(piece);
    hmac.final(&right);

    var signatures = std.mem.splitScalar(u8, skerry.variable("HTTP_WEBHOOK_SIGNATURE"), ' ');
    while (signatures.next()) |signature| {
        if (!std.mem.startsWith(u8, signature, "v1,")) continue;
        const given = decoded(signature[3..], &buffer) orelse continue;
        // All bytes are compared: a time that depends on where they differ would tell how to go on.
        if (given.len == right.len and std.crypto.timing_safe.eql(@TypeOf(right), given[0..right.len].*, right))
            return true;
    }
    return false;
}

/// The bytes of a text in base64; null where it is none, or has no room in `buffer`.
fn decoded(text: []const u8, buffer: []u8) ?[]const u8 {
    const decoder = std.base64.standard.Decoder;
    const size = decoder.calcSizeForSlice(text) catch return null;
    if (size > buffer.len) return null;
    decoder.decode(buffer[0..size], text) catch return null;
    return buffer[0..size];
}
