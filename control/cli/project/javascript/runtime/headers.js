// Headers: https://fetch.spec.whatwg.org/#headers-class

import { expose, host, iterable, need, pairsOf } from "./host.js";

const nameOf = (name) => {
  const made = host.headerName(`${name}`);
  if (made === undefined) throw new TypeError(`${JSON.stringify(`${name}`)} is no header's name`);
  return made;
};
const valueOf = (name, value) => {
  const made = host.headerValue(`${value}`);
  if (made === undefined) throw new TypeError(`the value of the header ${name} has a character that none can have`);
  return made;
};
/** What the node writes itself: a function that returns what another server answered has these from there. */
const NODES = new Set(["connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "status", "skerry-release"]);

let parsed, written;

export class Headers {
  /** By lower-case name: a value, or for set-cookie a list of them. */
  #values = new Map();
  #sorted = undefined;
  static {
    parsed = (lines) => {
      const made = new Headers();
      for (let at = 0; at < lines.length; ) {
        const end = lines.indexOf("\n", at);
        const colon = lines.indexOf(":", at);
        made.#add(lines.slice(at, colon), lines.slice(colon + 2, end));
        at = end + 1;
      }
      return made;
    };
    written = (headers, whole) => {
      let text = "";
      for (const [name, value] of headers.#values) {
        if (NODES.has(name) || (whole && name === "content-length")) continue;
        if (name !== "set-cookie") text += `${name}: ${value}\n`;
        else for (const each of value) text += `set-cookie: ${each}\n`;
      }
      return text;
    };
  }
  constructor(init = undefined) {
    if (init === undefined) return;
    if (init instanceof Headers && init[Symbol.iterator] === Headers.prototype.entries) {
      for (const [name, value] of init.#values) this.#values.set(name, name === "set-cookie" ? [...value] : value);
    } else {
      if (init === null) throw new TypeError("Headers can't be made of null");
      for (const [name, value] of pairsOf(init)) this.append(name, value);
    }
  }
  static at(headers, n) {
    const values = headers.#values;
    headers.#sorted ??= [...values.keys()]
      .sort()
      .flatMap((name) => (name === "set-cookie" ? values.get(name).map((each) => [name, each]) : [[name, values.get(name)]]));
    const pair = headers.#sorted[n];
    return pair && [...pair];
  }
  #add(name, value) {
    const had = this.#values.get(name);
    if (name === "set-cookie") this.#values.set(name, had ? [...had, value] : [value]);
    else this.#values.set(name, had === undefined ? value : `${had}, ${value}`);
    this.#sorted = undefined;
  }
  append(name, value) {
    need(arguments, 2);
    name = nameOf(name);
    this.#add(name, valueOf(name, value));
  }
  delete(name) {
    need(arguments, 1);
    this.#values.delete(nameOf(name));
    this.#sorted = undefined;
  }
  get(name) {
    need(arguments, 1);
    const value = this.#values.get(nameOf(name));
    return value === undefined ? null : typeof value === "string" ? value : value.join(", ");
  }
  getSetCookie() {
    return [...(this.#values.get("set-cookie") ?? [])];
  }
  has(name) {
    need(arguments, 1);
    return this.#values.has(nameOf(name));
  }
  set(name, value) {
    need(arguments, 2);
    name = nameOf(name);
    value = valueOf(name, value);
    this.#values.set(name, name === "set-cookie" ? [value] : value);
    this.#sorted = undefined;
  }
}
const { at } = Headers;
delete Headers.at;
iterable(Headers, at);
expose(Headers);

/** Headers of lines `name: value`, with names in lower case. */
export const headersOf = (lines) => parsed(lines);
/** The lines of headers; without Content-Length if the body is `whole`. */
export const linesOf = (headers, whole) => written(headers, whole);
