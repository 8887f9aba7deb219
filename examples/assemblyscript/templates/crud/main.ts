// Notes as JSON: GET / lists them, POST / creates one; GET, PUT and DELETE /ID read, replace and delete one.
// SQLite reads the request's JSON and makes the answer's. All SQL of one call is one transaction.

import { answer, body, quote, sql, text, variable } from "./skerry";

const NOTE = "json_object('id', id, 'title', title, 'text', text)";
const LIST = `SELECT json_group_array(${NOTE}) FROM (SELECT * FROM notes ORDER BY id)`;
const READ = `SELECT ${NOTE} FROM notes WHERE id = ?1`;
const CREATE = `INSERT INTO notes (title, text) VALUES (?1 ->> 'title', coalesce(?1 ->> 'text', '')) RETURNING ${NOTE}`;
const REPLACE = `UPDATE notes SET title = ?2 ->> 'title', text = coalesce(?2 ->> 'text', '') WHERE id = ?1
  RETURNING ${NOTE}`;
const DELETE = `DELETE FROM notes WHERE id = ?1 RETURNING ${NOTE}`;
// CASE, as SQLite would fail on a text that isn't JSON.
const VALID = `SELECT CASE WHEN json_valid(?1) THEN json_type(?1, '$.title') IS 'text'
  AND length(?1 ->> 'title') BETWEEN 1 AND 100 AND coalesce(json_type(?1, '$.text'), 'text') = 'text' ELSE 0 END`;

// The one cell of a statement's answer; empty where it gives no row.
function cell(statement: string, parameters: string[]): string {
  const found = sql(statement, parameters.map<string>((parameter) => quote(parameter)));
  // The message goes to the node's log. An error undoes what the call wrote, and the answer is a 502.
  if (found.error.length) throw new Error(`${found.error}: ${found.message}`);
  return found.rows.length ? text(found.rows[0][0]) : "";
}

function one(status: string, note: string): void {
  if (note.length) answer(status, note);
  else answer("404 Not Found", '{"error":"there is no such note"}');
}

function main(): void {
  const method = variable("REQUEST_METHOD");
  const id = variable("PATH_INFO").substring(1);
  const all = id.length == 0;
  const allowed = all ? "GET, POST" : "GET, PUT, DELETE";
  const note = String.UTF8.decode(body());
  if ((method == "POST" || method == "PUT") && cell(VALID, [note]) != "1")
    answer("400 Bad Request", '{"error":"send JSON: a title of 1 to 100 characters, and a text if there is one"}');
  else if (all && method == "GET") answer("200 OK", cell(LIST, []));
  else if (all && method == "POST") answer("201 Created", cell(CREATE, [note]));
  else if (!all && method == "GET") one("200 OK", cell(READ, [id]));
  else if (!all && method == "PUT") one("200 OK", cell(REPLACE, [id, note]));
  else if (!all && method == "DELETE") one("200 OK", cell(DELETE, [id]));
  else answer(`405 Method Not Allowed\nAllow: ${allowed}`, '{"error":"not by this method"}');
}

main();
