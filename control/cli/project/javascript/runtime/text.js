// TextEncoder, TextDecoder and their streams: https://encoding.spec.whatwg.org, with UTF-8, UTF-16 and windows-1252.

import { bytesOf, expose, host, joined } from "./host.js";
import { TransformStream } from "./streams.js";

const LABELS = {
  "utf-8": "unicode-1-1-utf-8 unicode11utf8 unicode20utf8 utf-8 utf8 x-unicode20utf8",
  "utf-16le": "csunicode iso-10646-ucs-2 ucs-2 unicode unicodefeff utf-16 utf-16le",
  "utf-16be": "unicodefffe utf-16be",
  "windows-1252":
    "ansi_x3.4-1968 ascii cp1252 cp819 csisolatin1 ibm819 iso-8859-1 iso-ir-100 iso8859-1 iso88591 iso_8859-1 " +
    "iso_8859-1:1987 l1 latin1 us-ascii windows-1252 x-cp1252",
};
const NAMES = new Map(Object.entries(LABELS).flatMap(([name, all]) => all.split(" ").map((label) => [label, name])));
/** The characters of windows-1252 from 0x80 to 0x9f. */
const HIGH = "€\x81‚ƒ„…†‡ˆ‰Š‹Œ\x8dŽ\x8f\x90‘’“”•–—˜™š›œ\x9džŸ";

/** A text of 16-bit codes, however many. */
const textOf = (codes) => {
  let made = "";
  for (let at = 0; at < codes.length; at += 4096) made += String.fromCharCode.apply(null, codes.subarray(at, at + 4096));
  return made;
};

/** A text whose characters are the bytes. */
export const latin1 = (bytes) => textOf(bytes);

export class TextEncoder {
  get encoding() {
    return "utf-8";
  }
  encode(source = "") {
    return host.encode(`${source}`);
  }
  encodeInto(source, destination) {
    if (!(destination instanceof Uint8Array)) throw new TypeError("the destination is no Uint8Array");
    source = `${source}`;
    const bytes = host.encode(source);
    let written = Math.min(bytes.length, destination.length);
    if (written < bytes.length) while (written && (bytes[written] & 0xc0) === 0x80) written--;
    const whole = written === bytes.length;
    destination.set(whole ? bytes : bytes.subarray(0, written));
    return { read: whole ? source.length : host.decode(bytes.subarray(0, written)).length, written };
  }
}

export class TextDecoder {
  #encoding;
  #fatal;
  #ignoreBOM;
  #left = new Uint8Array(0);
  #begun = false;
  constructor(label = "utf-8", { fatal = false, ignoreBOM = false } = {}) {
    const name = NAMES.get(`${label}`.replace(/^[\t\n\f\r ]+|[\t\n\f\r ]+$/g, "").toLowerCase());
    if (!name) throw new RangeError(`the encoding ${label} isn't there: there are UTF-8, UTF-16 and windows-1252`);
    this.#encoding = name;
    this.#fatal = !!fatal;
    this.#ignoreBOM = !!ignoreBOM;
  }
  get encoding() {
    return this.#encoding;
  }
  get fatal() {
    return this.#fatal;
  }
  get ignoreBOM() {
    return this.#ignoreBOM;
  }
  decode(input = undefined, { stream = false } = {}) {
    let bytes = input === undefined ? new Uint8Array(0) : bytesOf(input);
    if (!bytes) throw new TypeError("neither an ArrayBuffer nor a view of one");
    if (this.#left.length) bytes = joined([this.#left, bytes]);
    this.#left = new Uint8Array(0);
    const begun = this.#begun;
    this.#begun = false;
    let text, left;
    if (this.#encoding === "utf-8") [text, left] = stream ? host.decode(bytes, this.#fatal, true) : [host.decode(bytes, this.#fatal), 0];
    else if (this.#encoding === "windows-1252") [text, left] = [latin1(bytes).replace(/[\x80-\x9f]/g, (x) => HIGH[x.charCodeAt(0) - 128]), 0];
    else [text, left] = this.#utf16(bytes, stream);
    if (left) this.#left = bytes.slice(bytes.length - left);
    if (!begun && !this.#ignoreBOM && this.#encoding !== "windows-1252" && text[0] === "\ufeff") text = text.slice(1);
    this.#begun = stream && (begun || left < bytes.length);
    return text;
  }
  #utf16(bytes, stream) {
    const codes = new Uint16Array(bytes.length >> 1);
    const first = this.#encoding === "utf-16le" ? 0 : 1;
    for (let n = 0; n < codes.length; n++) codes[n] = bytes[2 * n + first] | (bytes[2 * n + 1 - first] << 8);
    let left = bytes.length & 1;
    let text = textOf(codes);
    if (stream && codes.length && (codes.at(-1) & 0xfc00) === 0xd800) {
      text = text.slice(0, -1);
      left += 2;
    }
    const cut = left && !stream;
    if (this.#fatal && (cut || !text.isWellFormed())) throw new TypeError("The encoded data was not valid.");
    // A high surrogate and a byte more are one error.
    const alone = cut && (codes.at(-1) & 0xfc00) === 0xd800;
    text = text.toWellFormed();
    return [cut && !alone ? `${text}\ufffd` : text, stream ? left : 0];
  }
}

class Transforming {
  #stream;
  constructor(transformer) {
    this.#stream = new TransformStream(transformer);
  }
  get readable() {
    return this.#stream.readable;
  }
  get writable() {
    return this.#stream.writable;
  }
}

export class TextEncoderStream extends Transforming {
  constructor() {
    let high = "";
    super({
      transform(chunk, controller) {
        let text = high + `${chunk}`;
        high = /[\ud800-\udbff]$/.test(text) ? text.at(-1) : "";
        if (high) text = text.slice(0, -1);
        if (text) controller.enqueue(host.encode(text));
      },
      flush(controller) {
        if (high) controller.enqueue(host.encode(high));
      },
    });
  }
  get encoding() {
    return "utf-8";
  }
}

export class TextDecoderStream extends Transforming {
  #decoder;
  constructor(label = "utf-8", options = {}) {
    const decoder = new TextDecoder(label, options);
    super({
      transform(chunk, controller) {
        const text = decoder.decode(chunk ?? null, { stream: true });
        if (text) controller.enqueue(text);
      },
      flush(controller) {
        const text = decoder.decode();
        if (text) controller.enqueue(text);
      },
    });
    this.#decoder = decoder;
  }
  get encoding() {
    return this.#decoder.encoding;
  }
  get fatal() {
    return this.#decoder.fatal;
  }
  get ignoreBOM() {
    return this.#decoder.ignoreBOM;
  }
}

expose(TextEncoder, TextDecoder, TextEncoderStream, TextDecoderStream);
