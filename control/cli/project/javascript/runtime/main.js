// What a function's module finds in its globals, and how the engine calls its handlers.

import { Blob, File, FormData } from "./blob.js";
import { Request, requestOf, Response, takenBody } from "./bodies.js";
import { structuredClone } from "./clone.js";
import { console, shown } from "./console.js";
import { Crypto, crypto, CryptoKey, SubtleCrypto } from "./crypto.js";
import { database, isBroken } from "./database.js";
import { AbortController, AbortSignal, CustomEvent, Event, EventTarget } from "./events.js";
import { fetch } from "./fetch.js";
import { Headers, linesOf } from "./headers.js";
import { host } from "./host.js";
import * as streams from "./streams.js";
import { TextDecoder, TextDecoderStream, TextEncoder, TextEncoderStream } from "./text.js";
import { clearInterval, clearTimeout, runNext, setInterval, setTimeout } from "./timers.js";
import { URL, URLSearchParams } from "./url.js";

let began = 0;
let origin = 0;

const performance = {
  now: () => host.now(true) - began,
  get timeOrigin() {
    return origin;
  },
  toJSON: () => ({ timeOrigin: origin }),
};

const globals = {
  AbortController, AbortSignal, Blob, Crypto, CryptoKey, CustomEvent, Event, EventTarget, File, FormData, Headers, Request,
  Response, SubtleCrypto, TextDecoder, TextDecoderStream, TextEncoder, TextEncoderStream, URL, URLSearchParams,
  ...streams, console, crypto, performance, self: globalThis, navigator: { userAgent: "Skerry" },
};
for (const [name, value] of Object.entries(globals))
  Object.defineProperty(globalThis, name, { value, writable: true, configurable: true });
Object.assign(globalThis, { clearInterval, clearTimeout, fetch, setInterval, setTimeout, structuredClone });
Math.random = host.random;

/** Log an error, with where it was. */
export const report = (error) => host.log(3, error instanceof Error ? shown(error) : `thrown: ${shown(error, 1)}`);
host.report = report;

// Stack traces: `lines` has the source's number and the line of each line of the bundle.
let sources = [];
let lines = new Int32Array(0);
const BUNDLE = "function.js";
const OWN = /^runtime\//;

Error.prepareStackTrace = (error, sites) => {
  let text = "";
  for (const site of sites) {
    let file = site.getFileName();
    let line = site.getLineNumber();
    if (typeof file === "string" && OWN.test(file)) continue;
    let column = `:${site.getColumnNumber()}`;
    if (file === BUNDLE && lines[2 * line - 2] >= 0 && 2 * line <= lines.length) {
      [file, line, column] = [sources[lines[2 * line - 2]], lines[2 * line - 1], ""];
    }
    const where = site.isNative() || typeof file !== "string" ? "native" : `${file}:${line}${column}`;
    text += `    at ${site.getFunctionName() || "<anonymous>"} (${where})\n`;
  }
  return text;
};

let handlers;
let secrets = new Set();

/** Take what the function's module exports as its default, and what its build knows: a source map, names of secrets. */
export const install = (given, { map, secrets: names }) => {
  handlers = typeof given === "function" ? { fetch: given } : given;
  if (typeof handlers?.fetch !== "function" && typeof handlers?.scheduled !== "function")
    throw new TypeError("the module has no `export default { async fetch(request, env, ctx) { … } }`");
  sources = map.sources;
  lines = host.lines(map.mappings);
  secrets = new Set(names);
};

const tasks = [];
let isTick = false;

const variables = () => {
  const all = host.environment();
  const made = { config: {}, secrets: {}, user: "" };
  for (let at = 0; at < all.length; at += 2) {
    if (all[at] === "REMOTE_USER") made.user = all[at + 1];
    else if (all[at] !== "AUTH_TYPE") made[secrets.has(all[at]) ? "secrets" : "config"][all[at]] = all[at + 1];
  }
  return made;
};

/** What a handler gets as `env`: it is read when it is asked for. */
class Environment {
  #read = undefined;
  get #variables() {
    return (this.#read ??= variables());
  }
  get db() {
    return database;
  }
  get config() {
    return this.#variables.config;
  }
  get secrets() {
    return this.#variables.secrets;
  }
  static user(environment) {
    return environment.#variables.user;
  }
}

class Context {
  #environment;
  #params;
  constructor(environment, route, params, client) {
    this.#environment = environment;
    this.#params = params;
    this.route = route;
    this.client = client;
  }
  get params() {
    return Object.fromEntries(new URLSearchParams(this.#params));
  }
  get user() {
    return Environment.user(this.#environment);
  }
  waitUntil(task) {
    tasks.push(task);
  }
  passThroughOnException() {}
}

/** Answer a request, or a call that a schedule or a release makes. */
export const entry = (method, url, head, route, params, client, body) => {
  began = host.now(true);
  origin = host.now(false);
  const request = requestOf(method, url, head, body);
  const environment = new Environment();
  const context = new Context(environment, route, params, client);
  isTick = head.includes("skerry-event: ");
  if (isTick) {
    const event = request.headers.get("skerry-event");
    const handler = (event === "release" && handlers.released) || handlers.scheduled;
    if (typeof handler === "function") {
      const cron = request.headers.get("skerry-cron") ?? "";
      const at = Date.parse(request.headers.get("skerry-scheduled-at") ?? "") || origin;
      const controller = { cron, scheduledTime: at, type: event === "release" ? "release" : "scheduled", noRetry() {} };
      return Promise.resolve(handler.call(handlers, controller, environment, context)).then((answer) =>
        answer instanceof Response ? answer : new Response(null, { status: 204 }),
      );
    }
  }
  if (typeof handlers.fetch !== "function") return new Response("This function has no handler `fetch`.\n", { status: 404 });
  return handlers.fetch(request, environment, context);
};

const parts = (response, content) => {
  if (isBroken() && response.status < 500) {
    host.log(3, "a batch had failed after it had written, so the call is undone, and its answer is a 500");
    return [500, "content-type: text/plain;charset=UTF-8\n", "Internal Server Error"];
  }
  let text = linesOf(response.headers, content !== null);
  if (content !== null && !response.headers.has("content-type")) text += "content-type: application/octet-stream\n";
  return [response.status, text, content];
};

/** What the engine sends of a response, [status, header lines, a text, bytes or null], or a promise of that: the call ends
 * when what waitUntil was given has. */
export const finish = (response) => {
  if (!(response instanceof Response)) throw new TypeError(`the handler gave ${shown(response, 1)}, and not a Response`);
  if (!response.status) throw new TypeError("the handler gave Response.error(), which can't be sent");
  const content = takenBody(response);
  return tasks.length || content instanceof Promise ? finished(response, content) : parts(response, content);
};

const finished = async (response, content) => {
  content = await content;
  let failed = false;
  while (tasks.length)
    for (const { reason, status } of await Promise.allSettled(tasks.splice(0)))
      if (status === "rejected") {
        report(reason);
        failed = true;
      }
  // A client has its answer, whatever happens to what was to be done beside it; a tick is nothing but that.
  return failed && isTick ? [500, "content-type: text/plain;charset=UTF-8\n", "Internal Server Error"] : parts(response, content);
};

/** Run the next timer; false where there is none. */
export const timers = runNext;
