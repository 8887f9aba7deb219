/* hmac.h: HMAC-SHA256 (RFC 2104, FIPS 180-4) and base64, which C's library lacks. */
#ifndef HMAC_H
#define HMAC_H

#include <stdint.h>
#include <string.h>

/* SHA-256, one piece after the other. */
typedef struct {
  uint32_t state[8];
  uint64_t size;
  unsigned char block[64];
} sha256;

static inline uint32_t sha256_turned(uint32_t x, int by) { return x >> by | x << (32 - by); }

static inline void sha256_block(sha256 *hash) {
  static const uint32_t K[64] = {
      0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
      0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
      0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
      0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
      0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
      0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
      0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
      0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
  uint32_t w[64], v[8];
  for (int i = 0; i < 16; i++) {
    const unsigned char *at = hash->block + 4 * i;
    w[i] = (uint32_t)at[0] << 24 | at[1] << 16 | at[2] << 8 | at[3];
  }
  for (int i = 16; i < 64; i++) {
    uint32_t a = w[i - 15], b = w[i - 2];
    w[i] = w[i - 16] + (sha256_turned(a, 7) ^ sha256_turned(a, 18) ^ a >> 3) + w[i - 7] +
           (sha256_turned(b, 17) ^ sha256_turned(b, 19) ^ b >> 10);
  }
  memcpy(v, hash->state, sizeof v);
  for (int i = 0; i < 64; i++) {
    uint32_t a = v[0], e = v[4];
    uint32_t t = v[7] + (sha256_turned(e, 6) ^ sha256_turned(e, 11) ^ sha256_turned(e, 25)) +
                 ((e & v[5]) ^ (~e & v[6])) + K[i] + w[i];
    uint32_t u = (sha256_turned(a, 2) ^ sha256_turned(a, 13) ^ sha256_turned(a, 22)) +
                 ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
    memmove(v + 1, v, 7 * sizeof *v);
    v[4] += t;
    v[0] = t + u;
  }
  for (int i = 0; i < 8; i++) hash->state[i] += v[i];
}

static inline void sha256_add(sha256 *hash, const void *bytes, size_t size) {
  for (size_t i = 0; i < size; i++) {
    hash->block[hash->size++ % 64] = ((const unsigned char *)bytes)[i];
    if (hash->size % 64 == 0) sha256_block(hash);
  }
}

/* Begin with a block of the key, with all bytes changed by `pad`. */
static inline sha256 sha256_keyed(const unsigned char *key, size_t size, unsigned char pad) {
  sha256 hash = {
      {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}, 0, {0}};
  for (size_t i = 0; i < 64; i++) {
    unsigned char byte = (i < size ? key[i] : 0) ^ pad;
    sha256_add(&hash, &byte, 1);
  }
  return hash;
}

static inline void sha256_end(sha256 *hash, unsigned char out[32]) {
  uint64_t bits = hash->size * 8;
  sha256_add(hash, "\x80", 1);
  while (hash->size % 64 != 56) sha256_add(hash, "", 1);
  for (int by = 56; by >= 0; by -= 8) sha256_add(hash, &(unsigned char){(unsigned char)(bits >> by)}, 1);
  for (int i = 0; i < 32; i++) out[i] = (unsigned char)(hash->state[i / 4] >> (24 - i % 4 * 8));
}

/* The HMAC of a message; a key has 64 bytes at most. */
static inline void hmac_sha256(const unsigned char *key, size_t key_size, const void *message, size_t size,
                               unsigned char out[32]) {
  sha256 inner = sha256_keyed(key, key_size, 0x36), outer = sha256_keyed(key, key_size, 0x5c);
  sha256_add(&inner, message, size);
  sha256_end(&inner, out);
  sha256_add(&outer, out, 32);
  sha256_end(&outer, out);
}

/* Decode base64 up to the first other character; returns how many bytes there are, 0 where they don't fit in `out`. */
static inline size_t base64_decode(const char *text, unsigned char *out, size_t room) {
  static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  size_t size = 0;
  unsigned bits = 0, held = 0;
  for (const char *digit; *text && (digit = strchr(digits, *text)); text++) {
    held = held << 6 | (unsigned)(digit - digits);
    if ((bits += 6) < 8) continue;
    if (size == room) return 0;
    out[size++] = (unsigned char)(held >> (bits -= 8));
  }
  return size;
}

#endif
