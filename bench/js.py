"""How many requests a second does a JavaScript function with one SELECT answer, compared with workerd?

Both run the same handler: it reads a body of 256 bytes, an item's key from the query, and answers with the item's name
and price. Ours runs on a real node, each call in a fresh instance of its snapshot, and SELECTs by `env.db`. workerd is
one process, whose one isolate and Durable Object are reused, as is usual there. 64 connections of wrk, which shares
both cores with what it loads. The ratio is our requests a second over workerd's.
"""

import uvloop

from bench import result
from bench.parts import rounds, scripts
from bench.query import measured

BAR = 0.5
HANDLER = """
export default {
  async fetch(request, env) {
    await request.arrayBuffer();
    const id = Number(new URL(request.url).searchParams.get("id"));
    const rows = await env.db.prepare("SELECT name, price FROM items WHERE id = ?").bind(id).raw();
    return Response.json(rows);
  },
};
"""


async def main() -> None:
    found, details = await measured(await scripts.module(HANDLER))
    result.write("js", rounds.over(found, "ours", "workerd"), BAR, details)


if __name__ == "__main__":
    uvloop.run(main())
