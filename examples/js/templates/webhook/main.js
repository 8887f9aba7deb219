// Keeps events that are signed as https://www.standardwebhooks.com says. An event that comes again, from its sender or
// from somebody who has seen it, is kept once, by its signed id: so there is no need to refuse one for its time.

/** @type {Handlers} */
export default {
  async fetch(request, env) {
    if (request.method !== "POST") {
      return Response.json({ error: "only POST" }, { status: 405, headers: { allow: "POST" } });
    }
    const id = request.headers.get("webhook-id") ?? "";
    const event = await request.text();
    const message = `${id}.${request.headers.get("webhook-timestamp")}.${event}`;
    const signatures = request.headers.get("webhook-signature") ?? "";
    if (!(await isSigned(message, signatures, env.secrets.WEBHOOK_SECRET))) {
      return Response.json({ error: "the signature isn't right" }, { status: 401 });
    }
    // An error becomes a 500, and the sender sends the event again.
    const insert = env.db.prepare("INSERT INTO notes (id, body) VALUES (?, ?) ON CONFLICT DO NOTHING RETURNING id");
    return Response.json({ stored: (await insert.bind(id, event).first()) !== null });
  },
};

/**
 * Whether one of the signatures is the message's.
 * @param {string} message
 * @param {string} signatures
 * @param {string} secret
 */
async function isSigned(message, signatures, secret) {
  const secretBytes = decoded(secret.replace("whsec_", ""));
  // A secret has 24 to 64 bytes: anybody could guess a short one.
  if (secretBytes.length < 24) return false;
  const algorithm = { name: "HMAC", hash: "SHA-256" };
  const key = await crypto.subtle.importKey("raw", secretBytes, algorithm, false, ["verify"]);
  const bytes = new TextEncoder().encode(message);
  for (const signature of signatures.split(" ")) {
    if (!signature.startsWith("v1,")) continue;
    if (await crypto.subtle.verify("HMAC", key, decoded(signature.slice(3)), bytes)) return true;
  }
  return false;
}

/**
 * The bytes of a text in base64; none if it isn't base64.
 * @param {string} text
 */
function decoded(text) {
  try {
    return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  } catch {
    return new Uint8Array();
  }
}
