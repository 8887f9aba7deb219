// By WAGI: `warm` runs at build, and main in each call.
const std = @import("std");

var table: [100000]u32 = undefined;
var text: []u8 = "";
var calls: u32 = 0;

export fn warm() void {
    for (&table, 0..) |*place, i| place.* = i;
    text = std.fmt.allocPrint(std.heap.c_allocator, "{d}", .{table[99999]}) catch unreachable;
}

extern fn getentropy(*anyopaque, usize) c_int;
extern fn getenv([*:0]const u8) ?[*:0]const u8;
extern fn printf([*:0]const u8, ...) c_int;

pub fn main() void {
    calls += 1;
    var random: u64 = 0;
    _ = getentropy(&random, 8);
    _ = printf("Content-Type: text/plain\n\nleft %.*s\ncalls %u\nvariable %s\nrandom %llx\n", @as(c_int, @intCast(text.len)), text.ptr, calls, getenv("WORD").?, random);
}
