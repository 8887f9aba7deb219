import { close, order, sales } from "./orders";
import { page, products } from "./products";

export default {
  async fetch(request, env) {
    const { pathname } = new URL(request.url);
    switch (`${request.method} ${pathname}`) {
      case "GET /":
        return page(await products(env), env.config.CURRENCY);
      case "GET /products":
        return Response.json(await products(env));
      case "POST /orders":
        return order(request, env);
      case "GET /sales":
        return sales(env);
    }
    return new Response("there is no such page\n", { status: 404 });
  },

  async scheduled({ scheduledTime }, env) {
    await close(scheduledTime, env);
  },
} satisfies Handlers;
