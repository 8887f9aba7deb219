// The node calls `scheduled` by the schedule in function.toml, and a tick is kept in the table. GET lists the last ten.

/** @type {Handlers} */
export default {
  async scheduled(controller, env) {
    const due = new Date(controller.scheduledTime).toISOString().replace(".000", "");
    // An error undoes what the call wrote, and the tick has failed.
    await env.db.prepare("INSERT INTO notes (due) VALUES (?)").bind(due).run();
    await env.db.prepare("DELETE FROM notes WHERE due < strftime('%Y-%m-%dT%H:%M:%SZ', ?, '-30 days')").bind(due).run();
    return Response.json({ kept: true });
  },

  async fetch(request, env) {
    if (request.method === "GET") {
      const last = await env.db.prepare("SELECT due FROM notes ORDER BY due DESC LIMIT 10").raw();
      return Response.json(last.map(([due]) => due));
    }
    return Response.json({ error: "only the schedule starts it" }, { status: 405, headers: { allow: "GET" } });
  },
};
