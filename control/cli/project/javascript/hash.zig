//! Digests and HMACs of Zig's standard library, for engine.c. `kind`: 0 SHA-1, 1 SHA-256, 2 SHA-384, 3 SHA-512.
const crypto = @import("std").crypto;

const Hashes = .{ crypto.hash.Sha1, crypto.hash.sha2.Sha256, crypto.hash.sha2.Sha384, crypto.hash.sha2.Sha512 };

/// Writes the digest of `size` bytes to `out`, which has room for 64; returns its length.
export fn skerry_digest(kind: u32, data: [*]const u8, size: usize, out: [*]u8) usize {
    inline for (Hashes, 0..) |Hash, at| if (kind == at) {
        Hash.hash(data[0..size], out[0..Hash.digest_length], .{});
        return Hash.digest_length;
    };
    return 0;
}

/// The same of an HMAC.
export fn skerry_hmac(kind: u32, key: [*]const u8, key_size: usize, data: [*]const u8, size: usize, out: [*]u8) usize {
    inline for (Hashes, 0..) |Hash, at| if (kind == at) {
        const Hmac = crypto.auth.hmac.Hmac(Hash);
        Hmac.create(out[0..Hmac.mac_length], data[0..size], key[0..key_size]);
        return Hmac.mac_length;
    };
    return 0;
}
