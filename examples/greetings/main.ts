// All greetings of the table that hello (in C) greets from, by language.

export default {
  async fetch(request, env) {
    const { results } = await env.db.prepare("SELECT language, text FROM greetings ORDER BY language").all<Greeting>();
    return Response.json(Object.fromEntries(results.map(({ language, text }) => [language, text])));
  },
} satisfies Handlers;

interface Greeting {
  language: string;
  text: string;
}
