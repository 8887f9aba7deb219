// Packages of npm that functions use: Hono, itty-router, zod, drizzle-orm with its driver for D1.

import { count, eq, sql } from "drizzle-orm";
import { drizzle } from "drizzle-orm/d1";
import { integer, real, sqliteTable, text } from "drizzle-orm/sqlite-core";
import { type Context as HonoContext, Hono } from "hono";
import { basicAuth } from "hono/basic-auth";
import { getCookie, setCookie } from "hono/cookie";
import { cors } from "hono/cors";
import { HTTPException } from "hono/http-exception";
import { sign, verify } from "hono/jwt";
import { streamText } from "hono/streaming";
import { AutoRouter, error, json } from "itty-router";
import { z } from "zod";

const Item = z.object({
  name: z.string().min(2),
  price: z.coerce.number().positive(),
  tags: z.array(z.enum(["new", "used"])).default(["new"]),
  at: z.iso.date().optional(),
});

const items = sqliteTable("items", {
  id: integer().primaryKey(),
  name: text().notNull(),
  price: real(),
});

const hono = new Hono<{ Bindings: Env }>();
hono.use("/hono/open/*", cors({ origin: "https://shop.example" }));
hono.use("/hono/closed/*", basicAuth({ username: "ada", password: "tea" }));
hono.get("/hono/open/:id{[0-9]+}", (c) => c.json({ id: Number(c.req.param("id")), all: c.req.queries("q") }));
hono.get("/hono/closed/x", (c) => c.text("in"));
hono.post("/hono/items", async (c) => {
  const found = Item.safeParse(await c.req.json());
  if (!found.success) return c.json(found.error.issues.map((each) => [each.path.join("."), each.code]), 422);
  setCookie(c, "last", found.data.name, { httpOnly: true });
  return c.json(found.data, 201);
});
hono.post("/hono/form", async (c) => c.json(await c.req.parseBody()));
hono.get("/hono/cookie", (c) => c.text(getCookie(c, "last") ?? "none"));
hono.get("/hono/stream", (c) =>
  streamText(c, async (stream) => {
    for (const word of ["a", "b", "c"]) {
      await stream.write(word);
      await stream.sleep(2);
    }
  }),
);
hono.get("/hono/token", async (c) => {
  const token = await sign({ sub: "ada", exp: Math.floor(Date.now() / 1000) + 60 }, "key", "HS256");
  return c.json([(await verify(token, "key", "HS256")).sub, await verify(token, "other", "HS256").catch((e) => e.name)]);
});
hono.get("/hono/throws", () => {
  throw new HTTPException(418, { message: "short and stout" });
});
hono.get("/hono/fails", (c) => fails(c));
hono.notFound((c) => c.json({ error: "no such page" }, 404));

function fails(c: HonoContext): never {
  throw new Error(`on purpose, at ${c.req.path}`);
}

const itty = AutoRouter({ base: "/itty" });
itty.get("/items/:id?", ({ params, query }) => ({ id: params.id, query }));
itty.post("/items", async (request) => json({ got: await request.json() }, { status: 201 }));
itty.get("/throws", () => error(409, "taken"));

async function drizzled(env: Env): Promise<Response> {
  const db = drizzle(env.db as never);
  const [made] = await db.insert(items).values({ name: "oil", price: 2.5 }).returning();
  await db.batch([
    db.insert(items).values([{ name: "tea" }, { name: "milk", price: 1 }]),
    db.update(items).set({ price: sql`${items.price} * 2` }).where(eq(items.name, "milk")),
  ]);
  const all = await db.select().from(items).orderBy(items.name);
  const [{ n }] = await db.select({ n: count() }).from(items);
  const one = await db.select({ name: items.name }).from(items).where(eq(items.id, made.id)).get();
  await db.delete(items).where(eq(items.name, "tea"));
  const refused = await db.transaction(async () => 1).catch((e: Error) => `${e.message} ${(e.cause as Error)?.message}`);
  return Response.json({ made, all, n, one, refused });
}

export default {
  async fetch(request, env, ctx) {
    const { pathname } = new URL(request.url);
    if (pathname.startsWith("/itty")) return itty.fetch(request);
    if (pathname === "/drizzle") return drizzled(env);
    return hono.fetch(request, env, ctx as never);
  },
} satisfies Handlers;
