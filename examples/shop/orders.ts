/** Sell a product. What a call writes is one transaction, so no order is ever without its goods. */
export async function order(request: Request, { db }: Env): Promise<Response> {
  const form = await request.formData().catch(() => new FormData());
  const [product, count] = [Number(form.get("product")), Number(form.get("count"))];
  if (!Number.isInteger(count) || count < 1) return new Response("how many?\n", { status: 400 });

  const take = db.prepare("UPDATE products SET stock = stock - ?1 WHERE id = ?2 AND stock >= ?1 RETURNING cents");
  const cents = await take.bind(count, product).first<number>("cents");
  if (cents === null) return new Response("there isn't that much of it\n", { status: 409 });

  const insert = db.prepare("INSERT INTO orders (product, count, cents, at) VALUES (?, ?, ?, ?)");
  await insert.bind(product, count, count * cents, new Date().toISOString()).run();
  return Response.redirect(new URL("/", request.url), 303);
}

/** Keep what was sold on the day before. */
export async function close(time: number, { db }: Env): Promise<void> {
  const day = new Date(time - 24 * 3600 * 1000).toISOString().slice(0, 10);
  const insert = db.prepare(
    "INSERT INTO sales SELECT ?1, count(*), coalesce(sum(cents), 0) FROM orders WHERE date(at) = ?1",
  );
  await insert.bind(day).run();
  console.log(`the sales of ${day} are kept`);
}

export async function sales({ db }: Env): Promise<Response> {
  const { results } = await db.prepare("SELECT day, orders, cents FROM sales ORDER BY day DESC LIMIT 31").all();
  return Response.json(results);
}
