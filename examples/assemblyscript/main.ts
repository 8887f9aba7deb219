// Notes by author: POST ?author=ada keeps the body as a note, GET ?author=ada lists ada's notes.

import { Answer, answer, body, log, parameter, quote, sql, variable } from "./skerry";

function add(author: string, text: string): void {
  const statement = "INSERT INTO notes (author, text) VALUES (?, ?) RETURNING id";
  const found = sql(statement, [quote(author), quote(text)]);
  if (found.error.length) return failed(found);
  answer("201 Created", `{"author":${quote(author)},"id":${found.rows[0][0]}}`);
}

function list(author: string): void {
  const found = sql("SELECT text FROM notes WHERE author = ? ORDER BY id", [quote(author)]);
  if (found.error.length) return failed(found);
  const notes = found.rows.map<string>((row) => row[0]);
  answer("200 OK", `{"author":${quote(author)},"notes":[${notes.join(",")}]}`);
}

// What goes to stderr is the node's log, and a status of 500 and above undoes what the call wrote.
function failed(found: Answer): void {
  log(`${found.error}: ${found.message}`);
  answer("500 Internal Server Error", '{"error":"the database refused it"}');
}

function main(): void {
  const author = parameter("author");
  const method = variable("REQUEST_METHOD");
  if (author === null) answer("400 Bad Request", '{"error":"say whose notes: ?author=NAME"}');
  else if (method == "POST") add(author, String.UTF8.decode(body()));
  else if (method == "GET") list(author);
  else answer("405 Method Not Allowed\nAllow: GET, POST", '{"error":"only GET and POST"}');
}

main();
