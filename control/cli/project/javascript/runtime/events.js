// Event, CustomEvent, EventTarget, AbortController, AbortSignal: https://dom.spec.whatwg.org

import { expose, host, need } from "./host.js";
import { setTimeout } from "./timers.js";

let begin, end, stopped, made;

export class Event {
  #type;
  #bubbles;
  #cancelable;
  #composed;
  #target = null;
  #phase = 0;
  #canceled = false;
  #stop = false;
  #stopNow = false;
  #passive = false;
  #dispatched = false;
  #time = host.now(true);
  static {
    begin = (event, target) => {
      if (event.#dispatched) throw new DOMException("the event is being dispatched", "InvalidStateError");
      event.#dispatched = true;
      event.#target = target;
      event.#phase = 2;
    };
    end = (event) => {
      event.#dispatched = event.#stop = event.#stopNow = false;
      event.#phase = 0;
      return !event.#canceled;
    };
    stopped = (event, passive) => {
      event.#passive = passive;
      return event.#stopNow;
    };
  }
  constructor(type, { bubbles = false, cancelable = false, composed = false } = {}) {
    need(arguments, 1);
    this.#type = `${type}`;
    this.#bubbles = !!bubbles;
    this.#cancelable = !!cancelable;
    this.#composed = !!composed;
  }
  get type() {
    return this.#type;
  }
  get target() {
    return this.#target;
  }
  get srcElement() {
    return this.#target;
  }
  get currentTarget() {
    return this.#phase ? this.#target : null;
  }
  get eventPhase() {
    return this.#phase;
  }
  get bubbles() {
    return this.#bubbles;
  }
  get cancelable() {
    return this.#cancelable;
  }
  get composed() {
    return this.#composed;
  }
  get defaultPrevented() {
    return this.#canceled;
  }
  get returnValue() {
    return !this.#canceled;
  }
  set returnValue(value) {
    if (!value) this.preventDefault();
  }
  get cancelBubble() {
    return this.#stop;
  }
  set cancelBubble(value) {
    if (value) this.#stop = true;
  }
  get isTrusted() {
    return false;
  }
  get timeStamp() {
    return this.#time;
  }
  composedPath() {
    return this.#phase ? [this.#target] : [];
  }
  stopPropagation() {
    this.#stop = true;
  }
  stopImmediatePropagation() {
    this.#stop = this.#stopNow = true;
  }
  preventDefault() {
    if (this.#cancelable && !this.#passive) this.#canceled = true;
  }
  initEvent(type, bubbles = false, cancelable = false) {
    need(arguments, 1);
    if (this.#dispatched) return;
    this.#type = `${type}`;
    this.#bubbles = !!bubbles;
    this.#cancelable = !!cancelable;
    this.#canceled = this.#stop = this.#stopNow = false;
    this.#target = null;
  }
}
["NONE", "CAPTURING_PHASE", "AT_TARGET", "BUBBLING_PHASE"].forEach((name, value) => {
  for (const of of [Event, Event.prototype]) Object.defineProperty(of, name, { value, enumerable: true });
});

export class CustomEvent extends Event {
  #detail;
  constructor(type, init = {}) {
    super(type, init);
    this.#detail = init.detail ?? null;
  }
  get detail() {
    return this.#detail;
  }
}

const told = (error) => {
  host.report(error);
};

export class EventTarget {
  #listeners = [];
  addEventListener(type, callback, options = undefined) {
    need(arguments, 2);
    const { capture = false, once = false, passive = false, signal } =
      typeof options === "object" && options !== null ? options : { capture: !!options };
    if (signal !== undefined && !(signal instanceof AbortSignal)) throw new TypeError("signal is no AbortSignal");
    if (callback === null || callback === undefined) return;
    if (typeof callback !== "function" && typeof callback !== "object")
      throw new TypeError("a listener is a function or an object");
    type = `${type}`;
    if (signal?.aborted || this.#find(type, callback, !!capture) >= 0) return;
    this.#listeners.push({ type, callback, capture: !!capture, once: !!once, passive: !!passive, there: true });
    signal?.addEventListener("abort", () => this.removeEventListener(type, callback, { capture }), { once: true });
  }
  removeEventListener(type, callback, options = undefined) {
    need(arguments, 2);
    const capture = typeof options === "object" && options !== null ? options.capture : options;
    const at = this.#find(`${type}`, callback, !!capture);
    if (at >= 0) this.#listeners.splice(at, 1)[0].there = false;
  }
  #find(type, callback, capture) {
    return this.#listeners.findIndex((l) => l.type === type && l.callback === callback && l.capture === capture);
  }
  dispatchEvent(event) {
    need(arguments, 1);
    if (!(event instanceof Event)) throw new TypeError("not an Event");
    begin(event, this);
    const handler = this[`on${event.type}`];
    const listeners = this.#listeners.filter((each) => each.type === event.type);
    if (typeof handler === "function") listeners.unshift({ callback: handler, there: true });
    for (const each of listeners) {
      if (!each.there) continue;
      if (stopped(event, each.passive ?? false)) break;
      if (each.once) this.removeEventListener(each.type, each.callback, each.capture);
      try {
        if (typeof each.callback === "function") each.callback.call(this, event);
        else each.callback.handleEvent(event);
      } catch (error) {
        told(error);
      }
    }
    return end(event);
  }
}

let abort;
const secret = Symbol("made by an AbortController");

export class AbortSignal extends EventTarget {
  #aborted = false;
  #reason = undefined;
  /** Signals that are aborted with this one, and those that abort this one. */
  #dependents = [];
  #sources = [];
  onabort = null;
  static {
    abort = (signal, reason) => {
      if (signal.#aborted) return;
      const all = [signal, ...signal.#dependents.filter((each) => !each.#aborted)];
      for (const each of all) {
        each.#aborted = true;
        each.#reason = signal === each ? reason : signal.#reason;
      }
      for (const each of all) each.dispatchEvent(new Event("abort"));
    };
    made = (sources) => {
      const signal = new AbortSignal(secret);
      for (const source of sources) {
        if (source.#aborted) {
          signal.#aborted = true;
          signal.#reason = source.#reason;
          return signal;
        }
      }
      for (const source of sources)
        for (const root of source.#sources.length ? source.#sources : [source]) {
          signal.#sources.push(root);
          root.#dependents.push(signal);
        }
      return signal;
    };
  }
  constructor(given) {
    if (given !== secret) throw new TypeError("Illegal constructor");
    super();
  }
  get aborted() {
    return this.#aborted;
  }
  get reason() {
    return this.#reason;
  }
  throwIfAborted() {
    if (this.#aborted) throw this.#reason;
  }
  static abort(reason = new DOMException("This operation was aborted", "AbortError")) {
    const signal = made([]);
    abort(signal, reason);
    return signal;
  }
  static timeout(milliseconds) {
    need(arguments, 1);
    const signal = made([]);
    setTimeout(() => abort(signal, new DOMException("The operation timed out", "TimeoutError")), milliseconds);
    return signal;
  }
  static any(signals) {
    need(arguments, 1);
    const all = [...signals];
    if (!all.every((each) => each instanceof AbortSignal)) throw new TypeError("not a sequence of AbortSignals");
    return made(all);
  }
}

/** A signal that nothing aborts, unless `source` is. */
export const following = (source) => made(source ? [source] : []);

export class AbortController {
  #signal = made([]);
  get signal() {
    return this.#signal;
  }
  abort(reason = new DOMException("This operation was aborted", "AbortError")) {
    abort(this.#signal, reason);
  }
}

expose(Event, CustomEvent, EventTarget, AbortSignal, AbortController);
