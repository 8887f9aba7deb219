// Request and Response: https://fetch.spec.whatwg.org

import { Blob, contentOf, FormData, formOf, multipartOf, streamOf } from "./blob.js";
import { following } from "./events.js";
import { bytesOf, expose, host, joined, need } from "./host.js";
import { Headers, headersOf } from "./headers.js";
import { ReadableStream } from "./streams.js";
import { URL, URLSearchParams } from "./url.js";

/** All bytes of a stream. */
const collected = async (stream) => {
  const pieces = [];
  const reader = stream.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return joined([...pieces, new Uint8Array(0)]);
    if (!(value instanceof Uint8Array)) throw new TypeError("a body's stream has pieces that are no Uint8Arrays");
    pieces.push(value);
  }
};

/** What a body is made of, [content, type]: content is a text, bytes or a stream. */
const extracted = (given) => {
  if (typeof given === "string") return [given, "text/plain;charset=UTF-8"];
  if (given instanceof ReadableStream) {
    if (given.locked || given._disturbed) throw new TypeError("the body's stream is locked, or was read from");
    return [given, undefined];
  }
  if (given instanceof URLSearchParams) return [`${given}`, "application/x-www-form-urlencoded;charset=UTF-8"];
  if (given instanceof Blob) return [contentOf(given), given.type || undefined];
  if (given instanceof FormData) return multipartOf(given);
  const bytes = bytesOf(given);
  return bytes ? [bytes.slice(), undefined] : [`${given}`, "text/plain;charset=UTF-8"];
};

let contentsOf, begin, share, hasBody;

class Body {
  /** A text, bytes, a stream; null for none. */
  #content = null;
  #stream = undefined;
  #used = false;
  #lines = undefined;
  #headers = undefined;
  static {
    begin = (body, content, headers) => {
      body.#content = content;
      if (content instanceof ReadableStream) body.#stream = content;
      if (typeof headers === "string") body.#lines = headers;
      else body.#headers = headers;
    };
    // What there is without waiting; a stream must be collected.
    contentsOf = (body) => {
      if (body.bodyUsed || body.#stream?.locked) throw new TypeError("the body was read already, or is locked");
      if (body.#content !== null) body.#used = true;
      return body.#stream ?? body.#content;
    };
    share = (to, from) => {
      if (from.bodyUsed || from.#stream?.locked) throw new TypeError("the body was read already, or is locked");
      to.#content = from.#content;
      if (from.#stream) {
        [from.#stream, to.#stream] = from.#stream.tee();
        from.#content = from.#stream;
        to.#content = to.#stream;
      }
    };
    hasBody = (body) => body.#content !== null;
  }
  get headers() {
    return (this.#headers ??= this.#lines === undefined ? new Headers() : headersOf(this.#lines));
  }
  get body() {
    if (this.#content === null) return null;
    if (!this.#stream) {
      this.#stream = streamOf(this.#used ? new Uint8Array(0) : typeof this.#content === "string" ? host.encode(this.#content) : this.#content);
      if (this.#used) this.#stream.cancel();
    }
    return this.#stream;
  }
  get bodyUsed() {
    return this.#content !== null && (this.#used || (this.#stream?._disturbed ?? false));
  }
  async #bytes() {
    const content = contentsOf(this);
    if (content instanceof ReadableStream) return collected(content);
    return typeof content === "string" ? host.encode(content) : (content ?? new Uint8Array(0));
  }
  async text() {
    let content = contentsOf(this);
    if (typeof content === "string") return content.toWellFormed().replace(/^\ufeff/, "");
    if (content instanceof ReadableStream) content = await collected(content);
    return content === null ? "" : host.decode(content).replace(/^\ufeff/, "");
  }
  async json() {
    return JSON.parse(await this.text());
  }
  async bytes() {
    return (await this.#bytes()).slice();
  }
  async arrayBuffer() {
    return (await this.bytes()).buffer;
  }
  async blob() {
    const type = this.headers.get("content-type") ?? "";
    return new Blob([await this.#bytes()], { type });
  }
  async formData() {
    const type = this.headers.get("content-type") ?? "";
    const bytes = await this.#bytes();
    if (/^multipart\/form-data\s*(;|$)/i.test(type)) return formOf(bytes, type);
    if (!/^application\/x-www-form-urlencoded\s*(;|$)/i.test(type))
      throw new TypeError(`a body of the type ${type || "none"} is no form`);
    const form = new FormData();
    for (const [name, value] of new URLSearchParams(host.decode(bytes))) form.append(name, value);
    return form;
  }
}

const METHODS = new Set(["DELETE", "GET", "HEAD", "OPTIONS", "POST", "PUT"]);
const methodOf = (given) => {
  const text = `${given}`;
  if (host.headerName(text) === undefined) throw new TypeError(`${JSON.stringify(text)} is no method`);
  const upper = text.toUpperCase();
  if (["CONNECT", "TRACE", "TRACK"].includes(upper)) throw new TypeError(`the method ${text} can't be used`);
  return METHODS.has(upper) ? upper : text;
};

const OPTIONS = {
  cache: ["default", "no-store", "reload", "no-cache", "force-cache", "only-if-cached"],
  credentials: ["same-origin", "omit", "include"],
  mode: ["cors", "navigate", "no-cors", "same-origin"],
  redirect: ["follow", "error", "manual"],
};

let incoming;

export class Request extends Body {
  #method = "GET";
  #url = "";
  #signal = undefined;
  #options = {};
  static {
    incoming = (method, url, lines, bytes) => {
      const made = new Request(incoming);
      made.#method = method;
      made.#url = url;
      begin(made, bytes ?? null, lines);
      return made;
    };
  }
  constructor(input, init = undefined) {
    need(arguments, 1);
    super();
    if (input === incoming) return;
    init ??= {};
    if (typeof init !== "object" && typeof init !== "function") throw new TypeError("a Request's options are an object");
    const from = input instanceof Request ? input : undefined;
    if (from) {
      this.#url = from.#url;
      this.#method = from.#method;
      this.#options = from.#options;
    } else {
      const url = new URL(input);
      if (url.username || url.password) throw new TypeError("a Request's URL has no user and no password");
      this.#url = url.href;
    }
    for (const [name, values] of Object.entries(OPTIONS)) {
      if (init[name] === undefined) continue;
      if (!values.includes(`${init[name]}`)) throw new TypeError(`${name}: ${values.join(", ")}`);
      this.#options = { ...this.#options, [name]: `${init[name]}` };
    }
    if (init.method !== undefined) this.#method = methodOf(init.method);
    const headers = new Headers(init.headers ?? from?.headers);
    const given = init.body ?? null;
    if ((given !== null || (from && !("body" in init) && hasBody(from))) && ["GET", "HEAD"].includes(this.#method))
      throw new TypeError(`a Request with the method ${this.#method} has no body`);
    if (init.signal !== undefined && init.signal !== null && !(init.signal instanceof globalThis.AbortSignal))
      throw new TypeError("signal is no AbortSignal");
    const source = init.signal === undefined ? from?.#signal : init.signal;
    this.#signal = source ? following(source) : undefined;
    if (given !== null) {
      const [content, type] = extracted(given);
      if (type && !headers.has("content-type")) headers.set("content-type", type);
      begin(this, content, headers);
    } else {
      begin(this, null, headers);
      if (from && init.body === undefined && hasBody(from)) begin(this, contentsOf(from), headers);
    }
  }
  get method() {
    return this.#method;
  }
  get url() {
    return this.#url;
  }
  get signal() {
    return (this.#signal ??= following(undefined));
  }
  get cache() {
    return this.#options.cache ?? "default";
  }
  get credentials() {
    return this.#options.credentials ?? "same-origin";
  }
  get destination() {
    return "";
  }
  get duplex() {
    return "half";
  }
  get integrity() {
    return "";
  }
  get keepalive() {
    return false;
  }
  get mode() {
    return this.#options.mode ?? "cors";
  }
  get redirect() {
    return this.#options.redirect ?? "follow";
  }
  get referrer() {
    return "about:client";
  }
  get referrerPolicy() {
    return "";
  }
  clone() {
    const made = new Request(incoming);
    made.#method = this.#method;
    made.#url = this.#url;
    made.#options = this.#options;
    made.#signal = this.#signal && following(this.#signal);
    begin(made, null, new Headers(this.headers));
    share(made, this);
    return made;
  }
}

/** The request of a call: header lines, and bytes or undefined. */
export const requestOf = (method, url, lines, bytes) => incoming(method, url, lines, bytes);

const BODILESS = [101, 204, 205, 304];
let answered;

export class Response extends Body {
  #status = 200;
  #statusText = "";
  #type = "default";
  #url = "";
  #redirected = false;
  static {
    answered = (status, headers, content, url, redirected) => {
      const made = new Response();
      made.#status = status;
      made.#url = url;
      made.#redirected = redirected;
      made.#type = "basic";
      begin(made, BODILESS.includes(status) ? null : content, headers);
      return made;
    };
  }
  constructor(body = null, init = undefined) {
    super();
    if (init === undefined && body === null) return;
    const { status = 200, statusText = "", headers = undefined } = init ?? {};
    this.#status = +status & 0xffff;
    if (this.#status < 200 || this.#status > 599) throw new RangeError(`the status ${status} isn't from 200 to 599`);
    this.#statusText = `${statusText}`;
    if (/[^\t\x20-\x7e\x80-\xff]/.test(this.#statusText)) throw new TypeError("statusText has a character that none can have");
    const made = new Headers(headers);
    if (body === null) {
      begin(this, null, made);
      return;
    }
    if (BODILESS.includes(this.#status)) throw new TypeError(`a Response with the status ${this.#status} has no body`);
    const [content, type] = extracted(body);
    if (type && !made.has("content-type")) made.set("content-type", type);
    begin(this, content, made);
  }
  static error() {
    const made = new Response();
    made.#status = 0;
    made.#type = "error";
    return made;
  }
  static json(data, init = {}) {
    need(arguments, 1);
    const text = JSON.stringify(data);
    if (text === undefined) throw new TypeError("the value can't be written as JSON");
    const headers = new Headers(init?.headers);
    if (!headers.has("content-type")) headers.set("content-type", "application/json");
    return new Response(text, { status: init?.status, statusText: init?.statusText, headers });
  }
  static redirect(url, status = 302) {
    need(arguments, 1);
    const { href } = new URL(url);
    if (![301, 302, 303, 307, 308].includes(+status)) throw new RangeError(`${status} is no redirect's status`);
    return new Response(null, { status, headers: { location: href } });
  }
  get status() {
    return this.#status;
  }
  get statusText() {
    return this.#statusText;
  }
  get ok() {
    return this.#status >= 200 && this.#status <= 299;
  }
  get type() {
    return this.#type;
  }
  get url() {
    return this.#url;
  }
  get redirected() {
    return this.#redirected;
  }
  clone() {
    const made = new Response();
    made.#status = this.#status;
    made.#statusText = this.#statusText;
    made.#type = this.#type;
    made.#url = this.#url;
    made.#redirected = this.#redirected;
    begin(made, null, new Headers(this.headers));
    share(made, this);
    return made;
  }
}

/** The response that a server gave. */
export const responseOf = (...parts) => answered(...parts);

/** The content of a request or response, which is used by that: a text, bytes or null, or a promise of bytes. */
export const takenBody = (body) => {
  const content = contentsOf(body);
  return content instanceof ReadableStream ? collected(content) : content;
};

expose(Request, Response);
for (const each of [Request, Response])
  // The web has no class Body: what is in it belongs to each.
  for (const name of Object.getOwnPropertyNames(Body.prototype))
    if (name !== "constructor")
      Object.defineProperty(each.prototype, name, { ...Object.getOwnPropertyDescriptor(Body.prototype, name), enumerable: true });
