// HMAC-SHA256 (RFC 2104, FIPS 180-4) and base64, which AssemblyScript's library lacks.

/** The bytes of a text in base64, up to the first other character. */
export function decoded(text: string): Uint8Array {
  const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const bytes: u8[] = [];
  let held: u32 = 0;
  let bits = 0;
  for (let i = 0; i < text.length; i++) {
    const digit = digits.indexOf(text.charAt(i));
    if (digit < 0) break;
    held = (held << 6) | digit;
    bits += 6;
    if (bits < 8) continue;
    bits -= 8;
    bytes.push(<u8>(held >> bits));
  }
  const out = new Uint8Array(bytes.length);
  out.set(bytes);
  return out;
}

/** The HMAC of a message; a key has 64 bytes at most. */
export function hmacSha256(key: Uint8Array, message: ArrayBuffer): Uint8Array {
  return hash(keyed(key, 0x5c), hash(keyed(key, 0x36), Uint8Array.wrap(message)));
}

/** A block of the key, with all bytes changed by `pad`. */
function keyed(key: Uint8Array, pad: u8): Uint8Array {
  const block = new Uint8Array(64).fill(pad);
  for (let i = 0; i < key.length; i++) block[i] ^= key[i];
  return block;
}

function hash(block: Uint8Array, message: Uint8Array): Uint8Array {
  const size = 64 + message.length;
  const padded = new Uint8Array(((size + 8) / 64 + 1) * 64);
  padded.set(block);
  padded.set(message, 64);
  padded[size] = 0x80;
  const view = new DataView(padded.buffer);
  view.setUint64(padded.length - 8, <u64>size * 8);

  const state: u32[] = [0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19];
  const w = new StaticArray<u32>(64);
  for (let start = 0; start < padded.length; start += 64) {
    for (let i = 0; i < 16; i++) w[i] = view.getUint32(start + 4 * i);
    for (let i = 16; i < 64; i++) {
      const a = w[i - 15];
      const b = w[i - 2];
      w[i] = w[i - 16] + (rotr(a, 7) ^ rotr(a, 18) ^ (a >> 3)) + w[i - 7] + (rotr(b, 17) ^ rotr(b, 19) ^ (b >> 10));
    }
    const v = state.slice();
    for (let i = 0; i < 64; i++) {
      const a = v[0];
      const e = v[4];
      const t = v[7] + (rotr(e, 6) ^ rotr(e, 11) ^ rotr(e, 25)) + ((e & v[5]) ^ (~e & v[6])) + K[i] + w[i];
      const u = (rotr(a, 2) ^ rotr(a, 13) ^ rotr(a, 22)) + ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
      v.pop();
      v.unshift(t + u);
      v[4] += t;
    }
    for (let i = 0; i < 8; i++) state[i] += v[i];
  }
  const out = new Uint8Array(32);
  const words = new DataView(out.buffer);
  for (let i = 0; i < 8; i++) words.setUint32(4 * i, state[i]);
  return out;
}

const K: StaticArray<u32> = [
  0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
  0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
  0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
  0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
  0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
  0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
  0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
  0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
];
