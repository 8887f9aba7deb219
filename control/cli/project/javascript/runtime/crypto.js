// crypto: https://w3c.github.io/webcrypto, with digests and HMAC.

import { bytesOf, expose, host, need, onlyInCalls } from "./host.js";

const HASHES = ["SHA-1", "SHA-256", "SHA-384", "SHA-512"];
/** Bytes of a block of the hash: the length of a key that is made. */
const BLOCKS = [64, 64, 128, 128];

const unsupported = (what) => new DOMException(`${what} isn't there: there are digests and HMAC`, "NotSupportedError");

/** The number of a hash, for the engine. */
const hashOf = (algorithm) => {
  const name = typeof algorithm === "object" && algorithm !== null ? algorithm.name : algorithm;
  if (name === undefined) throw new TypeError("an algorithm has a name");
  const found = HASHES.indexOf(`${name}`.toUpperCase());
  if (found < 0) throw unsupported(`the hash ${name}`);
  return found;
};
const hmacOf = (algorithm) => {
  const name = typeof algorithm === "object" && algorithm !== null ? algorithm.name : algorithm;
  if (`${name}`.toUpperCase() !== "HMAC") throw unsupported(`the algorithm ${name}`);
};
const dataOf = (value) => {
  const bytes = bytesOf(value);
  if (!bytes) throw new TypeError("neither an ArrayBuffer nor a view of one");
  return bytes;
};

let madeKey, secretOf;

export class CryptoKey {
  #secret;
  #hash;
  #extractable;
  #usages;
  static {
    madeKey = (secret, hash, extractable, usages) => {
      const all = [...usages];
      const wrong = all.find((usage) => usage !== "sign" && usage !== "verify");
      if (wrong !== undefined) throw new DOMException(`a key of HMAC isn't used to ${wrong}`, "SyntaxError");
      if (!all.length) throw new DOMException("a key has at least one usage", "SyntaxError");
      const key = new CryptoKey(madeKey);
      key.#secret = secret;
      key.#hash = hash;
      key.#extractable = !!extractable;
      key.#usages = ["sign", "verify"].filter((usage) => all.includes(usage));
      return key;
    };
    secretOf = (key, usage) => {
      if (!(key instanceof CryptoKey)) throw new TypeError("not a CryptoKey");
      if (usage && !key.#usages.includes(usage)) throw new DOMException(`the key isn't for ${usage}`, "InvalidAccessError");
      return [key.#hash, key.#secret];
    };
  }
  constructor(given) {
    if (given !== madeKey) throw new TypeError("Illegal constructor");
  }
  get type() {
    return "secret";
  }
  get extractable() {
    return this.#extractable;
  }
  get algorithm() {
    return { name: "HMAC", hash: { name: HASHES[this.#hash] }, length: this.#secret.length * 8 };
  }
  get usages() {
    return [...this.#usages];
  }
}

const mac = (key, usage, data) => {
  const [hash, secret] = secretOf(key, usage);
  return host.digest(hash, secret, data);
};

const same = (a, b) => {
  if (a.length !== b.length) return false;
  let different = 0;
  for (let n = 0; n < a.length; n++) different |= a[n] ^ b[n];
  return !different;
};

class SubtleCrypto {
  async digest(algorithm, data) {
    need(arguments, 2);
    return host.digest(hashOf(algorithm), dataOf(data));
  }
  async importKey(format, keyData, algorithm, extractable, keyUsages) {
    need(arguments, 5);
    hmacOf(algorithm);
    const hash = hashOf(algorithm.hash);
    let secret;
    if (format === "raw") secret = dataOf(keyData).slice();
    else if (format === "jwk") {
      if (keyData?.kty !== "oct" || typeof keyData.k !== "string") throw new DOMException("not a key of HMAC", "DataError");
      secret = Uint8Array.fromBase64(keyData.k, { alphabet: "base64url" });
    } else throw unsupported(`the format ${format}`);
    if (!secret.length) throw new DOMException("the key is empty", "DataError");
    return madeKey(secret, hash, extractable, keyUsages);
  }
  async exportKey(format, key) {
    need(arguments, 2);
    const [hash, secret] = secretOf(key);
    if (!key.extractable) throw new DOMException("the key isn't extractable", "InvalidAccessError");
    if (format === "raw") return secret.slice().buffer;
    if (format !== "jwk") throw unsupported(`the format ${format}`);
    const k = secret.toBase64({ alphabet: "base64url", omitPadding: true });
    return { kty: "oct", k, alg: `HS${HASHES[hash].slice(4)}`, key_ops: key.usages, ext: true };
  }
  async generateKey(algorithm, extractable, keyUsages) {
    need(arguments, 3);
    hmacOf(algorithm);
    onlyInCalls("generateKey");
    const hash = hashOf(algorithm.hash);
    const secret = new Uint8Array(algorithm.length === undefined ? BLOCKS[hash] : (+algorithm.length + 7) >> 3);
    if (!secret.length) throw new DOMException("the key is empty", "OperationError");
    host.entropy(secret);
    return madeKey(secret, hash, extractable, keyUsages);
  }
  async sign(algorithm, key, data) {
    need(arguments, 3);
    hmacOf(algorithm);
    return mac(key, "sign", dataOf(data));
  }
  async verify(algorithm, key, signature, data) {
    need(arguments, 4);
    hmacOf(algorithm);
    return same(new Uint8Array(mac(key, "verify", dataOf(data))), dataOf(signature));
  }
  /** As Workers have it: takes as long wherever two values of one length differ. */
  timingSafeEqual(a, b) {
    need(arguments, 2);
    [a, b] = [dataOf(a), dataOf(b)];
    if (a.length !== b.length) throw new TypeError("the values have different lengths");
    return same(a, b);
  }
}
for (const name of ["decrypt", "deriveBits", "deriveKey", "encrypt", "unwrapKey", "wrapKey"])
  SubtleCrypto.prototype[name] = async () => {
    throw unsupported(name);
  };

const ARRAYS = [Int8Array, Int16Array, Int32Array, BigInt64Array, Uint8Array, Uint8ClampedArray, Uint16Array, Uint32Array, BigUint64Array];

class Crypto {
  #subtle = new SubtleCrypto();
  get subtle() {
    return this.#subtle;
  }
  getRandomValues(array) {
    need(arguments, 1);
    if (!ARRAYS.some((each) => array instanceof each))
      throw ArrayBuffer.isView(array)
        ? new DOMException("random numbers are for arrays of integers", "TypeMismatchError")
        : new TypeError("not a typed array");
    if (array.byteLength > 65536) throw new DOMException("at most 65536 bytes at once", "QuotaExceededError");
    host.entropy(bytesOf(array));
    return array;
  }
  randomUUID() {
    const bytes = new Uint8Array(16);
    host.entropy(bytes);
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    return bytes.toHex().replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
  }
}

expose(CryptoKey, SubtleCrypto, Crypto);
export { Crypto, SubtleCrypto };
export const crypto = new Crypto();
