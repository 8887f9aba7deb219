// Notes by author: POST ?author=ada keeps the body as a note, GET ?author=ada lists ada's notes.

/** @type {Handlers} */
export default {
  async fetch(request, env) {
    const author = new URL(request.url).searchParams.get("author");
    if (author === null) return Response.json({ error: "say whose notes: ?author=NAME" }, { status: 400 });
    try {
      if (request.method === "POST") return await add(env, author, await request.text());
      if (request.method === "GET") return await list(env, author);
    } catch (error) {
      // What goes to the console is the node's log, and a status of 500 and above undoes what the call wrote.
      console.error(error);
      return Response.json({ error: "the database refused it" }, { status: 500 });
    }
    return Response.json({ error: "only GET and POST" }, { status: 405, headers: { allow: "GET, POST" } });
  },
};

/** @param {Env} env @param {string} author @param {string} text */
async function add(env, author, text) {
  const insert = env.db.prepare("INSERT INTO notes (author, text) VALUES (?, ?) RETURNING id");
  const id = await insert.bind(author, text).first("id");
  return Response.json({ author, id }, { status: 201 });
}

/** @param {Env} env @param {string} author */
async function list(env, author) {
  const select = env.db.prepare("SELECT text FROM notes WHERE author = ? ORDER BY id");
  const { results } = await select.bind(author).all();
  return Response.json({ author, notes: results.map((note) => note.text) });
}
