// What the engine (engine.c) gives the runtime, and what all of the runtime's modules share.

export const host = globalThis.__skerry;
delete globalThis.__skerry;

const Iterators = Object.getPrototypeOf(Object.getPrototypeOf([][Symbol.iterator]()));

/** Give classes the form that the web's interfaces have: methods can be enumerated, and the name is the tag. */
export const expose = (...classes) => {
  for (const each of classes) {
    for (const of of [each.prototype, each])
      for (const name of Object.getOwnPropertyNames(of))
        if (!["constructor", "prototype", "name", "length"].includes(name))
          Object.defineProperty(of, name, { enumerable: true });
    Object.defineProperty(each.prototype, Symbol.toStringTag, { value: each.name, configurable: true });
  }
};

/** Give a class of [name, value] pairs its iterators. `at(object, n)` is the pair with that number, or undefined. */
export const iterable = (each, at) => {
  const states = new WeakMap();
  const prototype = Object.create(Iterators, {
    next: {
      value() {
        const state = states.get(this);
        if (!state) throw new TypeError("not an iterator of " + each.name);
        const pair = state.done ? undefined : at(state.object, state.at++);
        if (pair) return { value: state.kind < 2 ? pair[state.kind] : pair, done: false };
        state.done = true;
        return { value: undefined, done: true };
      },
      writable: true,
      enumerable: true,
      configurable: true,
    },
    [Symbol.toStringTag]: { value: `${each.name} Iterator`, configurable: true },
  });
  const begin = (object, kind) => {
    at(object, 0);
    const made = Object.create(prototype);
    states.set(made, { object, kind, at: 0, done: false });
    return made;
  };
  Object.assign(each.prototype, {
    entries() {
      return begin(this, 2);
    },
    keys() {
      return begin(this, 0);
    },
    values() {
      return begin(this, 1);
    },
    forEach(callback, self = undefined) {
      if (typeof callback !== "function") throw new TypeError("forEach needs a function");
      for (let n = 0, pair; (pair = at(this, n)); n++) callback.call(self, pair[1], pair[0], this);
    },
  });
  Object.defineProperty(each.prototype, Symbol.iterator, {
    value: each.prototype.entries,
    writable: true,
    configurable: true,
  });
};

/** The pairs of what a constructor was given: a sequence of pairs, or an object. */
export const pairsOf = (given) => {
  if (typeof given !== "object" && typeof given !== "function") throw new TypeError("neither a sequence nor an object");
  const method = given[Symbol.iterator];
  if (method === undefined || method === null)
    return Reflect.ownKeys(given)
      .filter((key) => Object.getOwnPropertyDescriptor(given, key)?.enumerable)
      .map((key) => {
        if (typeof key === "symbol") throw new TypeError("a name can't be a symbol");
        return [key, given[key]];
      });
  return Array.from(given, (pair) => {
    if (typeof pair !== "object" || pair === null) throw new TypeError("not a sequence of pairs");
    const made = [...pair];
    if (made.length !== 2) throw new TypeError(`a pair has two parts, not ${made.length}`);
    return made;
  });
};

/** The arguments that a function needs are there. */
export const need = (given, count) => {
  if (given.length < count) throw new TypeError(`${count} argument${count > 1 ? "s" : ""} needed, ${given.length} given`);
};

/** A view of the bytes of an ArrayBuffer or of a view of one; undefined for anything else. */
export const bytesOf = (value) => {
  if (value instanceof Uint8Array) return value;
  if (ArrayBuffer.isView(value)) return new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
  return value instanceof ArrayBuffer || value instanceof SharedArrayBuffer ? new Uint8Array(value) : undefined;
};

/** One array of several. */
export const joined = (pieces) => {
  if (pieces.length === 1) return pieces[0];
  const made = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    made.set(piece, at);
    at += piece.length;
  }
  return made;
};

/** What can only be done in a call, and why not while a function is built. */
export const onlyInCalls = (what) => {
  if (host.building())
    throw new Error(`${what} can't be used while a function is built, which is when code outside of handlers runs`);
};
