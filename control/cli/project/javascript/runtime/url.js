// URL and URLSearchParams: https://url.spec.whatwg.org. The engine's ada parses and writes URLs.

import { expose, host, iterable, need, pairsOf } from "./host.js";

const [HREF, PROTOCOL, USERNAME, PASSWORD, HOST, HOSTNAME, PORT, PATHNAME, SEARCH, HASH, ORIGIN] = Array(11).keys();

const text = (value) => `${value}`.toWellFormed();

let attach, refill;

export class URLSearchParams {
  /** name, value, name, value … */
  #list = [];
  #changed = undefined;
  static {
    attach = (params, changed) => {
      params.#changed = changed;
    };
    refill = (params, search) => {
      params.#list = host.form(search.slice(1));
    };
  }
  constructor(init = "") {
    if ((typeof init !== "object" || init === null) && typeof init !== "function") {
      init = `${init}`;
      this.#list = host.form(init[0] === "?" ? init.slice(1) : init);
    } else if (init instanceof URLSearchParams && init[Symbol.iterator] === URLSearchParams.prototype.entries) {
      this.#list = [...init.#list];
    } else {
      const seen = new Map();
      for (const [name, value] of pairsOf(init)) {
        const [key, given] = [text(name), text(value)];
        // Names of an object that are the same once they are well-formed: the last one counts.
        if (init[Symbol.iterator] === undefined && seen.has(key)) this.#list[seen.get(key)] = given;
        else seen.set(key, this.#list.push(key, given) - 1);
      }
    }
  }
  static at(params, n) {
    const list = params.#list;
    return 2 * n < list.length ? [list[2 * n], list[2 * n + 1]] : undefined;
  }
  #find(name, from = 0) {
    for (let at = from; at < this.#list.length; at += 2) if (this.#list[at] === name) return at;
    return -1;
  }
  #remove(name, value, from) {
    this.#list = this.#list.filter((_, at, list) => {
      at &= ~1;
      return at < from || list[at] !== name || (value !== undefined && list[at + 1] !== value);
    });
  }
  get size() {
    return this.#list.length / 2;
  }
  append(name, value) {
    need(arguments, 2);
    this.#list.push(text(name), text(value));
    this.#changed?.();
  }
  delete(name, value = undefined) {
    need(arguments, 1);
    this.#remove(text(name), value === undefined ? undefined : text(value), 0);
    this.#changed?.();
  }
  get(name) {
    need(arguments, 1);
    const at = this.#find(text(name));
    return at < 0 ? null : this.#list[at + 1];
  }
  getAll(name) {
    need(arguments, 1);
    name = text(name);
    return this.#list.filter((_, at, list) => at & 1 && list[at - 1] === name);
  }
  has(name, value = undefined) {
    need(arguments, 1);
    if (value === undefined) return this.#find(text(name)) >= 0;
    return this.getAll(name).includes(text(value));
  }
  set(name, value) {
    need(arguments, 2);
    [name, value] = [text(name), text(value)];
    const at = this.#find(name);
    if (at < 0) this.#list.push(name, value);
    else {
      this.#list[at + 1] = value;
      this.#remove(name, undefined, at + 2);
    }
    this.#changed?.();
  }
  sort() {
    const pairs = [];
    for (let at = 0; at < this.#list.length; at += 2) pairs.push([this.#list[at], this.#list[at + 1]]);
    pairs.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
    this.#list = pairs.flat();
    this.#changed?.();
  }
  toString() {
    return host.formEncode(this.#list);
  }
}
const { at } = URLSearchParams;
delete URLSearchParams.at;
iterable(URLSearchParams, at);

export class URL {
  #href;
  #params = undefined;
  constructor(url, base = undefined) {
    need(arguments, 1);
    this.#href = host.url(`${url}`, base === undefined ? undefined : `${base}`);
    if (this.#href === undefined) throw new TypeError(`Invalid URL: ${url}`);
  }
  static canParse(url, base = undefined) {
    need(arguments, 1);
    return host.url(`${url}`, base === undefined ? undefined : `${base}`) !== undefined;
  }
  static parse(url, base = undefined) {
    return URL.canParse(url, base) ? new URL(url, base) : null;
  }
  #set(part, value) {
    const made = host.urlWith(this.#href, part, `${value}`);
    if (made === undefined) throw new TypeError(`Invalid URL: ${value}`);
    this.#href = made;
    if (this.#params && (part === SEARCH || part === HREF)) refill(this.#params, this.search);
  }
  get href() {
    return this.#href;
  }
  set href(value) {
    this.#set(HREF, value);
  }
  get origin() {
    return host.urlPart(this.#href, ORIGIN);
  }
  get protocol() {
    return host.urlPart(this.#href, PROTOCOL);
  }
  set protocol(value) {
    this.#set(PROTOCOL, value);
  }
  get username() {
    return host.urlPart(this.#href, USERNAME);
  }
  set username(value) {
    this.#set(USERNAME, value);
  }
  get password() {
    return host.urlPart(this.#href, PASSWORD);
  }
  set password(value) {
    this.#set(PASSWORD, value);
  }
  get host() {
    return host.urlPart(this.#href, HOST);
  }
  set host(value) {
    this.#set(HOST, value);
  }
  get hostname() {
    return host.urlPart(this.#href, HOSTNAME);
  }
  set hostname(value) {
    this.#set(HOSTNAME, value);
  }
  get port() {
    return host.urlPart(this.#href, PORT);
  }
  set port(value) {
    this.#set(PORT, value);
  }
  get pathname() {
    return host.urlPart(this.#href, PATHNAME);
  }
  set pathname(value) {
    this.#set(PATHNAME, value);
  }
  get search() {
    return host.urlPart(this.#href, SEARCH);
  }
  set search(value) {
    this.#set(SEARCH, value);
  }
  get searchParams() {
    if (!this.#params) {
      this.#params = new URLSearchParams(this.search);
      attach(this.#params, () => {
        this.#href = host.urlWith(this.#href, SEARCH, `${this.#params}`);
      });
    }
    return this.#params;
  }
  get hash() {
    return host.urlPart(this.#href, HASH);
  }
  set hash(value) {
    this.#set(HASH, value);
  }
  toString() {
    return this.#href;
  }
  toJSON() {
    return this.#href;
  }
}

expose(URLSearchParams, URL);
