// The node calls this by the schedule in function.toml, and a tick is kept in the table. GET lists the last ten.

import { Answer, answer, quote, sql, variable } from "./skerry";

function run(statement: string, parameters: string[]): Answer {
  const found = sql(statement, parameters);
  // The message goes to the node's log. An error undoes what the call wrote, and the tick has failed.
  if (found.error.length) throw new Error(`${found.error}: ${found.message}`);
  return found;
}

function main(): void {
  // No client can send these headers.
  if (variable("HTTP_SKERRY_EVENT") == "schedule") {
    const due = quote(variable("HTTP_SKERRY_SCHEDULED_AT"));
    run("INSERT INTO notes (due) VALUES (?)", [due]);
    run("DELETE FROM notes WHERE due < strftime('%Y-%m-%dT%H:%M:%SZ', ?, '-30 days')", [due]);
    answer("200 OK", '{"kept":true}');
  } else if (variable("REQUEST_METHOD") == "GET") {
    const found = run("SELECT due FROM notes ORDER BY due DESC LIMIT 10", []);
    answer("200 OK", `[${found.rows.map<string>((row) => row[0]).join(",")}]`);
  } else {
    answer("405 Method Not Allowed\nAllow: GET", '{"error":"only the schedule starts it"}');
  }
}

main();
