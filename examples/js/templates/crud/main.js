// Notes as JSON: GET / lists them, POST / creates one; GET, PUT and DELETE /ID read, replace and delete one.
// All SQL of one call is one transaction.

/** @type {Handlers} */
export default {
  async fetch(request, env) {
    const id = new URL(request.url).pathname.slice(1);
    const call = `${request.method} ${id ? "one" : "all"}`;
    switch (call) {
      case "GET all":
        return Response.json((await env.db.prepare("SELECT * FROM notes ORDER BY id").all()).results);
      case "GET one":
        return one(await env.db.prepare("SELECT * FROM notes WHERE id = ?").bind(id).first());
      case "DELETE one":
        return one(await env.db.prepare("DELETE FROM notes WHERE id = ? RETURNING *").bind(id).first());
      case "POST all":
      case "PUT one": {
        const note = noteOf(await request.text());
        if (!note) {
          const error = "send JSON: a title of 1 to 100 characters, and a text if there is one";
          return Response.json({ error }, { status: 400 });
        }
        if (id) {
          const replace = env.db.prepare("UPDATE notes SET title = ?2, text = ?3 WHERE id = ?1 RETURNING *");
          return one(await replace.bind(id, note.title, note.text).first());
        }
        const create = env.db.prepare("INSERT INTO notes (title, text) VALUES (?, ?) RETURNING *");
        return Response.json(await create.bind(note.title, note.text).first(), { status: 201 });
      }
    }
    const allow = id ? "GET, PUT, DELETE" : "GET, POST";
    return Response.json({ error: "not by this method" }, { status: 405, headers: { allow } });
  },
};

/** @param {unknown} note */
function one(note) {
  return note ? Response.json(note) : Response.json({ error: "there is no such note" }, { status: 404 });
}

/** @param {string} body */
function noteOf(body) {
  try {
    const { title, text = "" } = JSON.parse(body);
    if (typeof title === "string" && title && title.length <= 100 && typeof text === "string") return { title, text };
  } catch {
    // It isn't JSON, or null.
  }
  return undefined;
}
