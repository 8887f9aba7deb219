// setTimeout, setInterval: a call waits for its timers as long as its answer, or what waitUntil was given, needs them.

import { host, onlyInCalls } from "./host.js";

let waiting = [];
let last = 0;

const add = (callback, delay, values, every) => {
  onlyInCalls("a timer");
  if (typeof callback !== "function") throw new TypeError("a timer needs a function");
  delay = Math.max(+delay | 0, 0);
  waiting.push({ id: ++last, at: host.now(true) + delay, callback, values, every: every ? Math.max(delay, 1) : 0 });
  return last;
};

export function setTimeout(callback, delay = 0, ...values) {
  return add(callback, delay, values, false);
}

export function setInterval(callback, delay = 0, ...values) {
  return add(callback, delay, values, true);
}

export function clearTimeout(id = undefined) {
  waiting = waiting.filter((each) => each.id !== id);
}

export function clearInterval(id = undefined) {
  clearTimeout(id);
}

/** Wait for the next timer, and run it; false where there is none. */
export const runNext = () => {
  if (!waiting.length) return false;
  const next = waiting.reduce((first, each) => (each.at < first.at ? each : first));
  if (next.every) {
    // Behind others of the same time, as it was due before them.
    waiting.splice(waiting.indexOf(next), 1);
    waiting.push(next);
  } else {
    waiting = waiting.filter((each) => each !== next);
  }
  const now = host.now(true);
  if (next.at > now) host.sleep(next.at - now);
  if (next.every) next.at = Math.max(now, next.at) + next.every;
  next.callback.apply(globalThis, next.values);
  return true;
};
