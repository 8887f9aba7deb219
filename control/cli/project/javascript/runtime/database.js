// env.db: the node's database, in the form of Cloudflare's D1.

import { host } from "./host.js";

const TRANSACTIONS = /^(?:\s|--.*(?:\n|$)|\/\*[\s\S]*?\*\/)*(begin|commit|end|rollback|savepoint|release)\b/i;
const ONE = "a call is one transaction: it is committed when the call answers with a status below 500";

export class DatabaseError extends Error {
  constructor({ code, message }, statement) {
    const word = TRANSACTIONS.exec(statement)?.[1].toUpperCase();
    super(`D1_ERROR: ${word ? `${word} isn't there, since ${ONE}; a throw undoes all of it` : message}`);
    this.name = "DatabaseError";
    this.code = code;
  }
}

const run = (statement, values, raw) => {
  const answer = host.sql(statement, values, raw);
  if (answer.error) throw new DatabaseError(answer.error, statement);
  return answer;
};

/** Whether a batch has failed after it wrote: only the whole call can be undone. */
let broken = false;
export const isBroken = () => broken;

const resultOf = ({ rows, changes, last_id }, began) => ({
  success: true,
  results: rows,
  meta: {
    duration: host.now(true) - began,
    changes,
    last_row_id: last_id ?? 0,
    changed_db: changes > 0,
    rows_read: rows.length,
    rows_written: changes,
  },
});

class PreparedStatement {
  #sql;
  #values;
  constructor(sql, values) {
    this.#sql = sql;
    this.#values = values;
  }
  /** A statement with these values for `?`, `?1` … */
  bind(...values) {
    const missing = values.indexOf(undefined);
    if (missing >= 0)
      throw new TypeError(`D1_TYPE_ERROR: the value ${missing + 1} is undefined: say null, if that is what it is to be`);
    return new PreparedStatement(this.#sql, values);
  }
  async all() {
    const began = host.now(true);
    return resultOf(run(this.#sql, this.#values, false), began);
  }
  async run() {
    return this.all();
  }
  async first(column = undefined) {
    const [row] = run(this.#sql, this.#values, false).rows;
    if (row === undefined) return null;
    if (column === undefined || column === null) return row;
    if (!(column in row)) throw new Error(`D1_COLUMN_NOTFOUND: there is no column ${column}`);
    return row[column];
  }
  async raw({ columnNames = false } = {}) {
    const { columns, rows } = run(this.#sql, this.#values, true);
    return columnNames ? [columns, ...rows] : rows;
  }
}

class Database {
  prepare(sql) {
    return new PreparedStatement(`${sql}`, []);
  }
  async batch(statements) {
    const all = [...statements];
    if (!all.every((each) => each instanceof PreparedStatement)) throw new TypeError("a batch is of prepared statements");
    const results = [];
    for (const each of all) {
      try {
        results.push(await each.all());
      } catch (error) {
        broken ||= results.some(({ meta }) => meta.changed_db);
        throw error;
      }
    }
    return results;
  }
  /** Several statements, with `;` between them. */
  async exec(sql) {
    const began = host.now(true);
    const statements = [];
    let text = "";
    for (const [piece] of `${sql}`.matchAll(/'(?:''|[^'])*'|"(?:""|[^"])*"|`[^`]*`|\[[^\]]*\]|--[^\n]*|\/\*[\s\S]*?\*\/|[\s\S]/g)) {
      if (piece !== ";") text += piece.startsWith("--") || piece.startsWith("/*") ? " " : piece;
      else statements.push(text);
      if (piece === ";") text = "";
    }
    const wanted = [...statements, text].filter((each) => each.trim());
    for (const each of wanted) run(each, [], true);
    return { count: wanted.length, duration: host.now(true) - began };
  }
  async dump() {
    throw new Error("a function can't copy its node's database: skerry-edge backup does");
  }
  /** The node's database is one: a session is the same. */
  withSession() {
    return this;
  }
  getBookmark() {
    return null;
  }
}

export const database = new Database();
