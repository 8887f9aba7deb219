// Blob, File and FormData: https://w3c.github.io/FileAPI, https://xhr.spec.whatwg.org/#interface-formdata

import { bytesOf, expose, host, iterable, joined, need, onlyInCalls } from "./host.js";
import { ReadableStream } from "./streams.js";
import { latin1 } from "./text.js";

let content;

const typeOf = (type) => (/[^\x20-\x7e]/.test(type) ? "" : type.toLowerCase());

/** A stream of bytes that are all there. */
export const streamOf = (bytes) =>
  new ReadableStream({
    type: "bytes",
    start(controller) {
      // The stream takes a piece for itself.
      if (bytes.length) controller.enqueue(bytes.slice());
      controller.close();
    },
  });

export class Blob {
  #bytes;
  #type;
  static {
    content = (blob) => blob.#bytes;
  }
  constructor(parts = [], options = {}) {
    if (typeof parts !== "object" || parts === null || typeof parts[Symbol.iterator] !== "function")
      throw new TypeError("a Blob's parts are a sequence");
    if (options !== null && typeof options !== "object" && typeof options !== "function")
      throw new TypeError("a Blob's options are an object");
    const { endings = "transparent", type = "" } = options ?? {};
    if (`${endings}` !== "transparent" && `${endings}` !== "native") throw new TypeError("endings: transparent or native");
    const pieces = Array.from(parts, (part) => {
      if (part instanceof Blob) return part.#bytes;
      const bytes = bytesOf(part);
      if (bytes) return bytes.slice();
      return host.encode(`${endings}` === "native" ? `${part}`.replace(/\r\n?/g, "\n") : `${part}`);
    });
    this.#bytes = joined(pieces);
    this.#type = typeOf(`${type}`);
  }
  get size() {
    return this.#bytes.length;
  }
  get type() {
    return this.#type;
  }
  slice(start = 0, end = this.size, type = "") {
    const made = new Blob([], { type });
    const place = (at) => (at < 0 ? Math.max(this.size + at, 0) : Math.min(at, this.size));
    made.#bytes = this.#bytes.subarray(place(Math.trunc(+start) || 0), Math.max(place(Math.trunc(+end) || 0), 0));
    return made;
  }
  stream() {
    return streamOf(this.#bytes);
  }
  async text() {
    return host.decode(this.#bytes).replace(/^\ufeff/, "");
  }
  async arrayBuffer() {
    return this.#bytes.slice().buffer;
  }
  async bytes() {
    return this.#bytes.slice();
  }
}

export class File extends Blob {
  #name;
  #lastModified;
  constructor(parts, name, options = {}) {
    need(arguments, 2);
    super(parts, options);
    this.#name = `${name}`.toWellFormed();
    this.#lastModified = options?.lastModified === undefined ? Date.now() : Math.trunc(+options.lastModified) || 0;
  }
  get name() {
    return this.#name;
  }
  get lastModified() {
    return this.#lastModified;
  }
  get webkitRelativePath() {
    return "";
  }
}

/** The bytes of a Blob: not to be written to. */
export const contentOf = (blob) => content(blob);

export class FormData {
  #list = [];
  constructor(form = undefined) {
    if (form !== undefined) throw new TypeError("there are no forms to make a FormData of");
  }
  static at(form, n) {
    const pair = form.#list[n];
    return pair && [...pair];
  }
  static #pair(given, name, value, filename) {
    need(given, 2);
    name = `${name}`.toWellFormed();
    if (!(value instanceof Blob)) {
      if (given.length > 2) throw new TypeError("what has a file name is a Blob");
      return [name, `${value}`.toWellFormed()];
    }
    if (!(value instanceof File) || given.length > 2)
      value = new File([value], given.length > 2 ? filename : (value.name ?? "blob"), { type: value.type });
    return [name, value];
  }
  append(name, value, filename = undefined) {
    this.#list.push(FormData.#pair(arguments, name, value, filename));
  }
  set(name, value, filename = undefined) {
    const pair = FormData.#pair(arguments, name, value, filename);
    const at = this.#list.findIndex(([key]) => key === pair[0]);
    if (at < 0) {
      this.#list.push(pair);
      return;
    }
    this.#list[at] = pair;
    this.#list = this.#list.filter(([key], n) => n <= at || key !== pair[0]);
  }
  delete(name) {
    need(arguments, 1);
    this.#list = this.#list.filter(([key]) => key !== `${name}`);
  }
  get(name) {
    need(arguments, 1);
    return this.#list.find(([key]) => key === `${name}`)?.[1] ?? null;
  }
  getAll(name) {
    need(arguments, 1);
    return this.#list.filter(([key]) => key === `${name}`).map(([, value]) => value);
  }
  has(name) {
    need(arguments, 1);
    return this.#list.some(([key]) => key === `${name}`);
  }
}
const { at } = FormData;
delete FormData.at;
iterable(FormData, at);
expose(Blob, File, FormData);

/** A form as multipart/form-data: [bytes, type]. */
export const multipartOf = (form) => {
  onlyInCalls("a form as a body");
  const random = new Uint8Array(12);
  host.entropy(random);
  const boundary = `----skerry-${random.toHex()}`;
  const lines = (text) => text.replace(/\r\n?|\n/g, "\r\n");
  const quoted = (text) => text.replace(/\r/g, "%0D").replace(/\n/g, "%0A").replace(/"/g, "%22");
  const pieces = [];
  for (const [name, value] of form) {
    const head = `--${boundary}\r\nContent-Disposition: form-data; name="${quoted(lines(name))}"`;
    if (typeof value === "string") {
      pieces.push(host.encode(`${head}\r\n\r\n${lines(value)}\r\n`));
    } else {
      const type = value.type || "application/octet-stream";
      pieces.push(host.encode(`${head}; filename="${quoted(value.name)}"\r\nContent-Type: ${type}\r\n\r\n`));
      pieces.push(contentOf(value), host.encode("\r\n"));
    }
  }
  pieces.push(host.encode(`--${boundary}--\r\n`));
  return [joined(pieces), `multipart/form-data; boundary=${boundary}`];
};

/** The form that bytes of multipart/form-data are. */
export const formOf = (bytes, type) => {
  const wrong = (what) => new TypeError(`the body is no form: ${what}`);
  const boundary = /;\s*boundary=(?:"([^"]+)"|([^;\s]+))/i.exec(type);
  if (!boundary) throw wrong("its Content-Type has no boundary");
  const mark = `\r\n--${boundary[1] ?? boundary[2]}`;
  const all = `\r\n${latin1(bytes)}`;
  const form = new FormData();
  let at = all.indexOf(mark);
  if (at < 0) throw wrong("its boundary isn't in it");
  for (;;) {
    at += mark.length;
    if (all.startsWith("--", at)) return form;
    const body = all.indexOf("\r\n\r\n", at);
    const end = body < 0 ? -1 : all.indexOf(mark, body + 2);
    if (end < 0 || !/^[ \t]*\r\n/.test(all.slice(at, body + 2))) throw wrong("a part has no end");
    const head = host.decode(bytes.subarray(Math.max(at - 2, 0), body - 2));
    const named = /^content-disposition:[ \t]*form-data((?:[ \t]*;[^\r\n]*)?)/im.exec(head)?.[1];
    const value = (key) => {
      const found = new RegExp(`;[ \\t]*${key}="([^"\\r\\n]*)"`, "i").exec(named ?? "");
      return found?.[1].replace(/%0A/gi, "\n").replace(/%0D/gi, "\r").replace(/%22/g, '"');
    };
    const name = value("name");
    if (name === undefined) throw wrong("a part has no name");
    // Offsets in `all` are two more than those in the bytes.
    const data = bytes.subarray(body + 2, Math.max(end - 2, body + 2));
    const filename = value("filename");
    const kind = /^content-type:[ \t]*([^\r\n]*?)[ \t]*$/im.exec(head)?.[1];
    if (filename === undefined) form.append(name, host.decode(data).replace(/^\ufeff/, ""));
    else form.append(name, new File([data], filename, { type: kind ?? "text/plain" }));
    at = end;
  }
};
