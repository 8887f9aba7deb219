// Keeps events that are signed as https://www.standardwebhooks.com says. An event that comes again, from its sender or
// from somebody who has seen it, is kept once, by its signed id: so there is no need to refuse one for its time.

import { decoded, hmacSha256 } from "./hmac";
import { answer, body, quote, sql, variable } from "./skerry";

// Whether one of the signatures in the header is the message's.
function isSigned(message: string): bool {
  const key = decoded(variable("WEBHOOK_SECRET").replace("whsec_", ""));
  // A secret has 24 to 64 bytes: anybody could guess a short one.
  if (key.length < 24) return false;
  const right = hmacSha256(key, String.UTF8.encode(message));
  const signatures = variable("HTTP_WEBHOOK_SIGNATURE").split(" ");
  for (let i = 0; i < signatures.length; i++) {
    if (!signatures[i].startsWith("v1,")) continue;
    const given = decoded(signatures[i].substring(3));
    // All bytes are compared: a time that depends on where they differ would tell how to go on.
    let different = given.length ^ right.length;
    for (let at = 0; at < right.length; at++) different |= (at < given.length ? given[at] : 0) ^ right[at];
    if (!different) return true;
  }
  return false;
}

function keep(): void {
  const id = variable("HTTP_WEBHOOK_ID");
  const event = String.UTF8.decode(body());
  if (!isSigned(`${id}.${variable("HTTP_WEBHOOK_TIMESTAMP")}.${event}`))
    return answer("401 Unauthorized", '{"error":"the signature isn\'t right"}');
  const statement = "INSERT INTO notes (id, body) VALUES (?, ?) ON CONFLICT DO NOTHING RETURNING id";
  const found = sql(statement, [quote(id), quote(event)]);
  // The message goes to the node's log. An error becomes a 502, and the sender sends the event again.
  if (found.error.length) throw new Error(`${found.error}: ${found.message}`);
  answer("200 OK", `{"stored":${found.rows.length > 0}}`);
}

function main(): void {
  if (variable("REQUEST_METHOD") == "POST") keep();
  else answer("405 Method Not Allowed\nAllow: POST", '{"error":"only POST"}');
}

main();
