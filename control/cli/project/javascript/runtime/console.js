// console: each line goes to the function's log, with its level.

import { host } from "./host.js";

const [ERROR, WARNING, INFO, DEBUG] = [3, 4, 6, 7];
const DEPTH = 4;
const ENTRIES = 100;

/** A value as people read it. */
export const shown = (value, depth = 0, seen = []) => {
  if (typeof value === "string") return depth ? JSON.stringify(value) : value;
  if (typeof value === "bigint") return `${value}n`;
  if (typeof value === "symbol") return value.toString();
  if (typeof value === "function") return `[${/^class\b/.test(value) ? "class" : "function"} ${value.name || "(anonymous)"}]`;
  if (typeof value !== "object" || value === null) return Object.is(value, -0) ? "-0" : `${value}`;
  if (seen.includes(value)) return "[circular]";
  seen = [...seen, value];
  const inner = (each) => shown(each, depth + 1, seen);
  if (value instanceof Error) return errorText(value, inner);
  if (value instanceof Date) return Number.isNaN(+value) ? "Invalid Date" : value.toISOString();
  if (value instanceof RegExp || value instanceof URL) return `${value}`;
  const name = value.constructor?.name ?? "";
  const prefix = name === "Object" || name === "Array" ? "" : name ? `${name} ` : "[no prototype] ";
  if (depth >= DEPTH) return `[${name || "object"}]`;
  const list = (open, parts, close) => {
    const more = parts.length - ENTRIES;
    if (more > 0) parts = [...parts.slice(0, ENTRIES), `… ${more} more`];
    return `${prefix}${open}${parts.length ? ` ${parts.join(", ")} ` : ""}${close}`;
  };
  if (Array.isArray(value)) return list("[", value.map(inner), "]");
  if (value instanceof ArrayBuffer) return `ArrayBuffer { ${value.byteLength} bytes }`;
  if (ArrayBuffer.isView(value) && !(value instanceof DataView)) return list("[", Array.from(value.subarray(0, ENTRIES + 1), inner), "]");
  if (value instanceof Map) return list("{", [...value].map(([key, each]) => `${inner(key)} => ${inner(each)}`), "}");
  if (value instanceof Set) return list("{", [...value].map(inner), "}");
  if (value instanceof Promise) return "Promise";
  if (typeof value[Symbol.iterator] === "function" && typeof value.entries === "function")
    return list("{", [...value].map((pair) => `${inner(pair[0])}: ${inner(pair[1])}`), "}");
  const keys = Reflect.ownKeys(value).filter((key) => Object.getOwnPropertyDescriptor(value, key).enumerable);
  const part = (key) => {
    const { get } = Object.getOwnPropertyDescriptor(value, key);
    const label = typeof key === "symbol" ? `[${key.toString()}]` : /^[\w$]+$/.test(key) ? key : JSON.stringify(key);
    return `${label}: ${get ? "[getter]" : inner(value[key])}`;
  };
  return list("{", keys.map(part), "}");
};

const errorText = (error, inner) => {
  let text = `${error}`;
  const stack = typeof error.stack === "string" ? error.stack.trimEnd() : "";
  if (stack) text += stack.startsWith(text) ? stack.slice(text.length) : `\n${stack}`;
  const more = Object.keys(error).filter((key) => key !== "stack" && key !== "message" && key !== "cause");
  if (more.length) text += ` { ${more.map((key) => `${key}: ${inner(error[key])}`).join(", ")} }`;
  if (error.cause !== undefined) text += `\ncaused by ${inner(error.cause)}`;
  if (error instanceof AggregateError) text += error.errors.map((each) => `\n${inner(each)}`).join("");
  return text;
};

const formatted = (values) => {
  const rest = [...values];
  let text = "";
  if (typeof rest[0] === "string" && rest.length > 1)
    text = rest.shift().replace(/%([sdifjoOc%])/g, (all, kind) => {
      if (kind === "%") return "%";
      if (!rest.length) return all;
      const value = rest.shift();
      if (kind === "c") return "";
      if (kind === "s") return typeof value === "object" ? shown(value, 1) : shown(value);
      if (kind === "j") return JSON.stringify(value);
      if (kind === "d" || kind === "f") return typeof value === "symbol" ? "NaN" : `${typeof value === "bigint" ? `${value}n` : kind === "f" ? parseFloat(value) : Number(value)}`;
      if (kind === "i") return typeof value === "symbol" ? "NaN" : typeof value === "bigint" ? `${value}n` : `${parseInt(value)}`;
      return shown(value, 1);
    });
  return [...(text || values.length > rest.length ? [text] : []), ...rest.map((value) => shown(value))].join(" ");
};

let indent = "";
const counts = new Map();
const times = new Map();
const write = (level, values) => host.log(level, indent + formatted(values).replaceAll("\n", `\n${indent}`));
const passed = (label) => `${label}: ${(host.now(true) - times.get(label)).toFixed(3)} ms`;

export const console = Object.create(
  {},
  {
    [Symbol.toStringTag]: { value: "console", configurable: true },
  },
);
Object.assign(console, {
  log: (...values) => write(INFO, values),
  info: (...values) => write(INFO, values),
  debug: (...values) => write(DEBUG, values),
  warn: (...values) => write(WARNING, values),
  error: (...values) => write(ERROR, values),
  dir: (value) => write(INFO, [shown(value, 1)]),
  dirxml: (...values) => write(INFO, values),
  table: (value) => write(INFO, [value]),
  trace: (...values) => write(INFO, [`Trace: ${formatted(values)}\n${new Error().stack.replace(/^Error.*\n/, "")}`]),
  assert(condition = false, ...values) {
    if (!condition) write(ERROR, ["Assertion failed", ...values]);
  },
  count(label = "default") {
    counts.set(`${label}`, (counts.get(`${label}`) ?? 0) + 1);
    write(INFO, [`${label}: ${counts.get(`${label}`)}`]);
  },
  countReset: (label = "default") => void counts.delete(`${label}`),
  time: (label = "default") => void times.set(`${label}`, host.now(true)),
  timeLog(label = "default", ...values) {
    if (times.has(`${label}`)) write(INFO, [passed(`${label}`), ...values]);
  },
  timeEnd(label = "default") {
    if (times.has(`${label}`)) write(INFO, [passed(`${label}`)]);
    times.delete(`${label}`);
  },
  group(...values) {
    if (values.length) write(INFO, values);
    indent += "  ";
  },
  groupCollapsed: (...values) => console.group(...values),
  groupEnd() {
    indent = indent.slice(2);
  },
  clear() {},
});

