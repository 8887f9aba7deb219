// What a Skerry function in AssemblyScript needs: the request, the answer, SQL, HTTP.
//
// A function is a WASI command that answers one request: the request is in CGI variables (PATH_INFO, QUERY_STRING, ...)
// and its body on stdin; the answer goes to stdout: headers, a blank line, the body.
// All SQL of one request is one transaction, committed when the function ends normally with a status below 500.
// Built with --exportStart _start (else the program would be a start section) and --use abort=skerry/abort.

// @ts-ignore: decorator
@external("wasi_snapshot_preview1", "environ_sizes_get")
declare function environ_sizes_get(count: usize, size: usize): u32;
// @ts-ignore: decorator
@external("wasi_snapshot_preview1", "environ_get")
declare function environ_get(places: usize, bytes: usize): u32;
// @ts-ignore: decorator
@external("wasi_snapshot_preview1", "fd_read")
declare function fd_read(fd: u32, pieces: usize, count: usize, got: usize): u32;
// @ts-ignore: decorator
@external("wasi_snapshot_preview1", "fd_write")
declare function fd_write(fd: u32, pieces: usize, count: usize, written: usize): u32;
// @ts-ignore: decorator
@external("wasi_snapshot_preview1", "proc_exit")
declare function proc_exit(status: u32): void;
// The node's functions: ask with JSON and get the length of the answer, then have it copied, once.
// @ts-ignore: decorator
@external("skerry", "sql")
declare function importSql(request: usize, size: usize): usize;
// @ts-ignore: decorator
@external("skerry", "http")
declare function importHttp(request: usize, size: usize): usize;
// @ts-ignore: decorator
@external("skerry", "result")
declare function importResult(answer: usize): void;

const scratch = memory.data(16);

/** Ends the function; the node answers 502 and logs where it was. */
export function abort(message: string | null, file: string | null, line: u32, column: u32): void {
  log(`${message ? message : "abort"} at ${file ? file : ""}:${line}:${column}`);
  proc_exit(255);
}

/** A line in the node's log. */
export function log(text: string): void {
  write(2, String.UTF8.encode(text + "\n"));
}

function write(fd: u32, bytes: ArrayBuffer): void {
  let start = changetype<usize>(bytes);
  let left: usize = bytes.byteLength;
  while (left > 0) {
    store<usize>(scratch, start);
    store<usize>(scratch, left, sizeof<usize>());
    if (fd_write(fd, scratch, 1, scratch + 8)) proc_exit(1);
    const written = load<usize>(scratch + 8);
    start += written;
    left -= written;
  }
}

/** A variable of the request; empty where it isn't there. */
export function variable(name: string): string {
  if (environ_sizes_get(scratch, scratch + 4)) return "";
  const count = load<u32>(scratch);
  const places = new ArrayBuffer(count * sizeof<usize>());
  const bytes = new ArrayBuffer(load<u32>(scratch + 4));
  if (environ_get(changetype<usize>(places), changetype<usize>(bytes))) return "";
  for (let i: u32 = 0; i < count; i++) {
    const place = load<usize>(changetype<usize>(places) + i * sizeof<usize>());
    let end = place;
    while (load<u8>(end)) end++;
    const pair = String.UTF8.decodeUnsafe(place, end - place);
    if (pair.startsWith(name + "=")) return pair.substring(name.length + 1);
  }
  return "";
}

/** The parameter `name` of the query string, decoded; null where there is none. */
export function parameter(name: string): string | null {
  const pairs = variable("QUERY_STRING").split("&");
  for (let i = 0; i < pairs.length; i++) {
    const end = pairs[i].indexOf("=");
    if (end >= 0 && decoded(pairs[i].substring(0, end)) == name) return decoded(pairs[i].substring(end + 1));
  }
  return null;
}

function decoded(text: string): string {
  const bytes = Uint8Array.wrap(String.UTF8.encode(text));
  let size = 0;
  for (let i = 0; i < bytes.length; i++) {
    let byte = bytes[i];
    const high = i + 2 < bytes.length ? digit(bytes[i + 1]) : -1;
    const low = i + 2 < bytes.length ? digit(bytes[i + 2]) : -1;
    if (byte == 0x25 && high >= 0 && low >= 0) {
      byte = <u8>(high * 16 + low);
      i += 2;
    } else if (byte == 0x2b) {
      byte = 0x20;
    }
    bytes[size++] = byte;
  }
  return String.UTF8.decode(bytes.buffer.slice(0, size));
}

function digit(byte: u8): i32 {
  if (byte >= 0x30 && byte <= 0x39) return byte - 0x30;
  const small = byte | 0x20;
  return small >= 0x61 && small <= 0x66 ? small - 0x57 : -1;
}

/** The request's body. */
export function body(): ArrayBuffer {
  const length = variable("CONTENT_LENGTH");
  const room: usize = length.length ? <usize>parseInt(length) : 0;
  const bytes = new ArrayBuffer(<i32>room);
  let got: usize = 0;
  while (got < room) {
    store<usize>(scratch, changetype<usize>(bytes) + got);
    store<usize>(scratch, room - got, sizeof<usize>());
    if (fd_read(0, scratch, 1, scratch + 8)) break;
    const count = load<usize>(scratch + 8);
    if (!count) break;
    got += count;
  }
  return bytes.slice(0, <i32>got);
}

/** Answer with a status ("201 Created") and a body of JSON. */
export function answer(status: string, json: string): void {
  write(1, String.UTF8.encode(`Status: ${status}\nContent-Type: application/json\n\n${json}\n`));
}

/** A text as a JSON string, in quotes and escaped. */
export function quote(text: string): string {
  let out = '"';
  let done = 0;
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    if (code >= 0x20 && code != 0x22 && code != 0x5c) continue;
    out += text.substring(done, i);
    out += code < 0x20 ? "\\u" + code.toString(16).padStart(4, "0") : "\\" + text.charAt(i);
    done = i + 1;
  }
  return out + text.substring(done) + '"';
}

/** What a statement gave, or why it failed. */
export class Answer {
  /** The cells as JSON: a text in quotes, a number, null, {"$blob": base64}; `text` reads one. */
  rows: string[][] = [];
  /** How many rows the statement wrote. */
  changes: i64 = 0;
  /** Empty where it succeeded; the codes are in docs/errors.md. */
  error: string = "";
  message: string = "";
}

/** Run one SQL statement with values for its question marks, each as JSON: quote("text"), "12", "null". */
export function sql(statement: string, parameters: string[]): Answer {
  const request = String.UTF8.encode(`{"sql":${quote(statement)},"params":[${parameters.join(",")}]}`);
  const json = new Json(result(importSql(changetype<usize>(request), request.byteLength)));
  const found = new Answer();
  for (json.open(); json.more(); ) {
    const name = json.name();
    if (name == "rows") {
      for (json.open(); json.more(); ) {
        const row: string[] = [];
        for (json.open(); json.more(); ) row.push(json.value());
        found.rows.push(row);
      }
    } else if (name == "changes") {
      found.changes = I64.parseInt(json.value());
    } else if (name == "error") {
      for (json.open(); json.more(); ) {
        if (json.name() == "code") found.error = text(json.value());
        else found.message = text(json.value());
      }
    } else {
      json.value();
    }
  }
  return found;
}

/**
 * Have the node send an HTTP request: {"method", "url", "headers": [[name, value], ...], "body"}, of which the URL alone
 * must be there. The answer is {"status", "headers", "body"} or {"error": {"code", "message"}}.
 */
export function http(request: string): string {
  const asked = String.UTF8.encode(request);
  return result(importHttp(changetype<usize>(asked), asked.byteLength));
}

/** The answer that waits. */
function result(size: usize): string {
  const told = new ArrayBuffer(<i32>size);
  importResult(changetype<usize>(told));
  return String.UTF8.decode(told);
}

/** A cell as text: what a JSON string says, other values as they are, null as "". */
export function text(cell: string): string {
  if (cell == "null") return "";
  if (!cell.startsWith('"')) return cell;
  let out = "";
  let done = 1;
  for (let i = 1; i < cell.length - 1; i++) {
    if (cell.charCodeAt(i) != 0x5c) continue;
    out += cell.substring(done, i);
    const escape = cell.charAt(++i);
    if (escape == "u") {
      out += String.fromCharCode(<i32>parseInt(cell.substring(i + 1, i + 5), 16));
      i += 4;
    } else {
      const control = "bfnrt".indexOf(escape);
      out += control < 0 ? escape : "\b\f\n\r\t".charAt(control);
    }
    done = i + 1;
  }
  return out + cell.substring(done, cell.length - 1);
}

/** Reads the JSON of a node's answer, which is whole and has no spaces. */
class Json {
  private at: i32 = 0;

  constructor(private json: string) {}

  /** Into an array or object. */
  open(): void {
    this.at++;
  }

  /** Whether it has another item; else past its end, and past the comma behind it. */
  more(): bool {
    const code = this.json.charCodeAt(this.at);
    if (code != 0x5d && code != 0x7d) return true;
    this.at++;
    this.comma();
    return false;
  }

  name(): string {
    const name = text(this.value());
    this.at++;
    return name;
  }

  /** The next value as it stands, and past the comma behind it. */
  value(): string {
    const start = this.at;
    let depth = 0;
    for (; this.at < this.json.length; this.at++) {
      const code = this.json.charCodeAt(this.at);
      if (code == 0x22) {
        while (this.json.charCodeAt(++this.at) != 0x22) if (this.json.charCodeAt(this.at) == 0x5c) this.at++;
        continue;
      }
      if (depth == 0 && (code == 0x2c || code == 0x3a || code == 0x5d || code == 0x7d)) break;
      if (code == 0x5b || code == 0x7b) depth++;
      else if (code == 0x5d || code == 0x7d) depth--;
    }
    const value = this.json.substring(start, this.at);
    this.comma();
    return value;
  }

  private comma(): void {
    if (this.json.charCodeAt(this.at) == 0x2c) this.at++;
  }
}
