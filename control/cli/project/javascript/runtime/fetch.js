// fetch: by the host's HTTP, as far as the manifest grants it.

import { Request, responseOf, takenBody } from "./bodies.js";
import { Headers } from "./headers.js";
import { host, onlyInCalls } from "./host.js";

const REDIRECTS = [301, 302, 303, 307, 308];
const MOST = 20;

const failed = (message, code) => Object.assign(new TypeError(`fetch failed: ${message}`), { code });

export async function fetch(input, init = undefined) {
  onlyInCalls("fetch");
  const request = new Request(input, init);
  request.signal.throwIfAborted();
  let content = await takenBody(request);
  let { method, url } = request;
  const headers = new Headers(request.headers);
  for (let count = 0; ; count++) {
    if (!/^https?:/.test(url)) throw failed(`${url} is no address of HTTP`);
    const asked = { method, url: url.replace(/#.*/, ""), headers: [...headers] };
    if (content !== null) asked.body = typeof content === "string" ? content : { $blob: content.toBase64() };
    const answer = host.http(JSON.stringify(asked));
    if (answer.error) throw failed(answer.error.message, answer.error.code);
    request.signal.throwIfAborted();
    const { status } = answer;
    const got = new Headers();
    for (const [name, value] of answer.headers) got.append(name, value);
    const location = REDIRECTS.includes(status) ? got.get("location") : null;
    if (location === null || request.redirect === "manual") {
      const body = typeof answer.body === "string" ? answer.body : Uint8Array.fromBase64(answer.body.$blob);
      return responseOf(status, got, body, url, count > 0);
    }
    if (request.redirect === "error") throw failed(`${url} redirects to ${location}`);
    if (count === MOST) throw failed(`more than ${MOST} redirects`);
    const next = host.url(location, url);
    if (next === undefined) throw failed(`${url} redirects to ${location}, which is no URL`);
    if (new URL(next).origin !== new URL(url).origin) for (const name of ["authorization", "cookie"]) headers.delete(name);
    if (status === 303 ? method !== "HEAD" : status < 303 && method === "POST") {
      method = "GET";
      content = null;
      for (const name of ["content-type", "content-length", "content-encoding", "content-language"]) headers.delete(name);
    }
    url = next;
  }
}
