// structuredClone: https://html.spec.whatwg.org/multipage/structured-data.html

import { Blob, contentOf, File } from "./blob.js";

const refused = (what) => new DOMException(`${what} can't be cloned`, "DataCloneError");
const ERRORS = [EvalError, RangeError, ReferenceError, SyntaxError, TypeError, URIError];
const internal = (test) => (value) => {
  try {
    test(value);
    return true;
  } catch {
    return false;
  }
};
const getter = (of, name) => {
  const { get } = Object.getOwnPropertyDescriptor(of.prototype, name);
  return internal((value) => get.call(value));
};
const isMap = getter(Map, "size");
const isSet = getter(Set, "size");
const isBuffer = getter(ArrayBuffer, "byteLength");
const isDate = internal((value) => Date.prototype.getTime.call(value));
const isRegExp = (value) => Object.prototype.toString.call(value) === "[object RegExp]" && value instanceof RegExp;
const boxed = [Boolean, Number, String, BigInt].map((kind) => [kind, internal((value) => kind.prototype.valueOf.call(value))]);
const PLAIN = [Object.prototype, null];

const copied = (value, seen) => {
  if (typeof value === "symbol") throw refused(value.toString());
  if (typeof value === "function") throw refused(`the function ${value.name || "(anonymous)"}`);
  if (typeof value !== "object" || value === null) return value;
  if (seen.has(value)) return seen.get(value);
  const keep = (made) => {
    seen.set(value, made);
    return made;
  };
  for (const [kind, is] of boxed) if (is(value)) return keep(Object(kind.prototype.valueOf.call(value)));
  if (isDate(value)) return keep(new Date(Date.prototype.getTime.call(value)));
  if (isRegExp(value)) return keep(new RegExp(value.source, value.flags));
  if (isBuffer(value)) {
    if (value.detached) throw refused("an ArrayBuffer that was transferred");
    return keep(value.resizable ? resized(value) : value.slice(0));
  }
  if (ArrayBuffer.isView(value)) {
    const buffer = copied(value.buffer, seen);
    const whole = value instanceof DataView ? value.byteLength : value.length;
    return keep(new globalThis[Object.getPrototypeOf(value)[Symbol.toStringTag] ?? value[Symbol.toStringTag]](buffer, value.byteOffset, whole));
  }
  if (isMap(value)) {
    const made = keep(new Map());
    for (const [key, each] of [...Map.prototype.entries.call(value)]) made.set(copied(key, seen), copied(each, seen));
    return made;
  }
  if (isSet(value)) {
    const made = keep(new Set());
    for (const each of [...Set.prototype.values.call(value)]) made.add(copied(each, seen));
    return made;
  }
  if (value instanceof File) return keep(new File([contentOf(value)], value.name, { type: value.type, lastModified: value.lastModified }));
  if (value instanceof Blob) return keep(new Blob([contentOf(value)], { type: value.type }));
  if (value instanceof DOMException) return keep(new DOMException(value.message, value.name));
  if (Error.isError(value)) {
    const kind = ERRORS.find((each) => each.name === value.name) ?? Error;
    const made = keep(Object.create(kind.prototype) && new kind());
    delete made.message;
    const own = (key) => Object.getOwnPropertyDescriptor(value, key);
    for (const key of ["stack", "message", "cause"])
      if (own(key) && "value" in own(key))
        Object.defineProperty(made, key, { value: key === "cause" ? copied(value.cause, seen) : `${value[key]}`, writable: true, configurable: true });
    return made;
  }
  if (value instanceof Promise || value instanceof WeakMap || value instanceof WeakSet || value instanceof WeakRef)
    throw refused(`a ${value.constructor.name}`);
  // What the runtime's own classes made has its state elsewhere.
  const tag = value[Symbol.toStringTag];
  if (!Array.isArray(value) && typeof tag === "string" && !PLAIN.includes(Object.getPrototypeOf(value)) && tag in globalThis)
    throw refused(`a ${tag}`);
  const made = keep(Array.isArray(value) ? new Array(value.length) : {});
  for (const key of Object.keys(value))
    if (Object.hasOwn(value, key))
      Object.defineProperty(made, key, { value: copied(value[key], seen), writable: true, enumerable: true, configurable: true });
  return made;
};

const resized = (buffer) => {
  const made = new ArrayBuffer(buffer.byteLength, { maxByteLength: buffer.maxByteLength });
  new Uint8Array(made).set(new Uint8Array(buffer));
  return made;
};

export function structuredClone(value, { transfer = [] } = {}) {
  if (!arguments.length) throw new TypeError("1 argument needed, 0 given");
  const moved = [...transfer];
  const seen = new Map();
  for (const each of moved) {
    if (!isBuffer(each) || each.detached || moved.indexOf(each) !== moved.lastIndexOf(each))
      throw refused("only an ArrayBuffer, once, can be transferred; anything else");
  }
  // They move only if all else can be cloned.
  const places = new Map(moved.map((each) => [each, each.slice(0)]));
  for (const [from, to] of places) seen.set(from, to);
  const made = copied(value, seen);
  for (const each of moved) each.transfer();
  return made;
}
