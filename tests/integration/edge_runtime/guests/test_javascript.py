"""Functions in JavaScript on a real node: the web's APIs, the database, what each call has anew, logs, failures."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from control.cli.project import script_modules
from edge_runtime.guests.guest import CallServices, Request
from tests.support.edge import Node, node
from tests.support.functions import loading

pytestmark = pytest.mark.timeout(600)

TABLES = "CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT, price REAL, data BLOB);"
MANIFEST = {"abi": "direct", "sql": "write", "read_only_methods": [], "config": {"GREETING": "hé", "KEY": "sesame"}}

ROWS: dict[str, tuple[str, Any]] = {
    "headers": (
        """const h = new Headers([["B", " 2 "], ["a", "1"], ["A", "3"], ["set-cookie", "x"], ["Set-Cookie", "y"]]);
        return [[...h], h.get("A"), h.get("c"), h.getSetCookie(), h.has("b"), [...new Headers({ x: 1 }).keys()]];""",
        [
            [["a", "1, 3"], ["b", "2"], ["set-cookie", "x"], ["set-cookie", "y"]],
            "1, 3", None, ["x", "y"], True, ["x"],
        ],
    ),
    "headers that can't be": (
        """return [thrown(() => new Headers({ "a b": "" })), thrown(() => new Headers({ a: "x\\ny" })),
        thrown(() => new Headers([["a"]])), thrown(() => new Headers({ a: "ā" })), thrown(() => new Headers(null))];""",
        ["TypeError"] * 5,
    ),
    "a request": (
        """const r = new Request("http://EXAMPLE.org/x?y#z", { method: "post",
          body: new URLSearchParams({ a: "é " }) });
        const c = r.clone();
        return [r.method, r.url, r.headers.get("content-type"), await c.text(), r.bodyUsed, await r.text(), r.bodyUsed,
          thrown(() => new Request("/x")), thrown(() => new Request("http://x", { body: "x" })),
          thrown(() => new Request("http://x", { method: "TRACE" })), thrown(() => new Request("http://u:p@x/"))];""",
        ["POST", "http://example.org/x?y#z", "application/x-www-form-urlencoded;charset=UTF-8", "a=%C3%A9+", False,
         "a=%C3%A9+", True, "TypeError", "TypeError", "TypeError", "TypeError"],
    ),
    "a request of another": (
        """const a = new Request("http://x/", { method: "PUT", body: "milk", headers: { q: "1" } });
        const b = new Request(a, { headers: { r: "2" } });
        return [a.bodyUsed, b.method, [...b.headers], await b.json().catch((e) => e.name),
          await rejected(a.text())];""",
        [True, "PUT", [["r", "2"]], "SyntaxError", "TypeError"],
    ),
    "a response": (
        """const r = new Response("{\\"a\\": 1}", { status: 201, statusText: "Made" });
        const j = Response.json([1], { headers: { x: "y" } }), l = Response.redirect("http://x/y", 303);
        return [r.status, r.ok, r.statusText, r.headers.get("content-type"), await r.clone().json(), await r.text(),
          [...j.headers], l.status, l.headers.get("location"), Response.error().type, new Response().body,
          thrown(() => new Response("", { status: 199 })), thrown(() => new Response("x", { status: 204 })),
          thrown(() => Response.redirect("http://x", 200)), thrown(() => Response.json(undefined))];""",
        [201, True, "Made", "text/plain;charset=UTF-8", {"a": 1}, '{"a": 1}',
         [["content-type", "application/json"], ["x", "y"]], 303, "http://x/y", "error", None,
         "RangeError", "TypeError", "RangeError", "TypeError"],
    ),
    "bodies of every kind": (
        """const of = async (b) => { const r = new Response(b); return [r.headers.get("content-type"),
          await r.text()]; };
        const form = new FormData(); form.append("a", "é"); form.append("f", new Blob(["x"], { type: "t/y" }), "n.txt");
        const sent = new Response(form), got = await sent.formData();
        return [await of("é"), await of(new Uint8Array([104, 105])), await of(new Blob(["b"], { type: "text/x" })),
          await of(new ReadableStream({ start(c) { c.enqueue(new TextEncoder().encode("s")); c.close(); } })),
          await of(new Uint8Array([1, 104, 105]).subarray(1)), [...await new Response("\\ufeffx").bytes()],
          got.get("a"), got.get("f").name, got.get("f").type, await got.get("f").text(),
          [...await new Response("a=1&b=%20", { headers: { "content-type": "application/x-www-form-urlencoded" } })
            .formData()]];""",
        [["text/plain;charset=UTF-8", "é"], [None, "hi"], ["text/x", "b"], [None, "s"], [None, "hi"],
         [239, 187, 191, 120], "é", "n.txt", "t/y", "x", [["a", "1"], ["b", " "]]],
    ),
    "streams": (
        """const { readable, writable } = new TransformStream({ transform(x, c) { c.enqueue(x.toUpperCase()); } });
        const w = writable.getWriter(); w.write("a"); w.write("b"); w.close();
        const all = []; for await (const x of readable.pipeThrough(new TextEncoderStream())) all.push(...x);
        const text = []; const bytes = new Response("hé").body.pipeThrough(new TextDecoderStream());
        for await (const x of bytes) text.push(x);
        return [all, text.join(""), (await Array.fromAsync(ReadableStream.from([1, 2])))];""",
        [[65, 66], "hé", [1, 2]],
    ),
    "urls": (
        """const u = new URL("../b?q=1&q=2#f", "https://user@Bücher.example:443/x/y/");
        u.searchParams.append("r", "a b"); u.port = "8443"; u.hash = "";
        return [u.href, u.origin, u.host, u.pathname, u.searchParams.getAll("q"), URL.canParse("x"), URL.parse("x"),
          [...new URLSearchParams("?a=1&b=%C3%A9+x&a=3")], `${new URLSearchParams({ a: "ü&" })}`];""",
        ["https://user@xn--bcher-kva.example:8443/x/b?q=1&q=2&r=a+b", "https://xn--bcher-kva.example:8443",
         "xn--bcher-kva.example:8443", "/x/b", ["1", "2"], False, None,
         [["a", "1"], ["b", "é x"], ["a", "3"]], "a=%C3%BC%26"],
    ),
    "texts": (
        """const d = new TextDecoder(); const e = new TextEncoder();
        return [[...e.encode("é\\ud800")], d.decode(new Uint8Array([0xef, 0xbb, 0xbf, 0xc3]), { stream: true }),
          d.decode(new Uint8Array([0xa9])), thrown(() => new TextDecoder("utf-8", { fatal: true })
            .decode(new Uint8Array([255]))), new TextDecoder("utf-16").decode(new Uint8Array([65, 0])),
          new TextDecoder("latin1").decode(new Uint8Array([0x80, 0xe9])), e.encodeInto("héé", new Uint8Array(4)),
          thrown(() => new TextDecoder("shift_jis")), btoa("é"), atob("w6k=")];""",
        [[195, 169, 239, 191, 189], "", "é", "TypeError", "A", "€é", {"read": 2, "written": 3}, "RangeError", "6Q==",
         "Ã©"],
    ),
    "crypto": (
        """const hex = (b) => new Uint8Array(b).toHex(), data = new TextEncoder().encode("abc");
        const key = await crypto.subtle.importKey("raw", new TextEncoder().encode("key"),
          { name: "HMAC", hash: "SHA-256" }, false, ["sign", "verify"]);
        const mac = await crypto.subtle.sign("HMAC", key, data);
        return [hex(await crypto.subtle.digest("SHA-1", data)), hex(await crypto.subtle.digest({ name: "sha-256" },
          data))
          .slice(0, 16), hex(mac).slice(0, 16), await crypto.subtle.verify("HMAC", key, mac, data),
          await crypto.subtle.verify("HMAC", key, mac, data.slice(1)),
            await rejected(crypto.subtle.exportKey("raw", key)),
          await rejected(crypto.subtle.digest("MD5", data)), /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab]/.test(
            crypto.randomUUID()), crypto.getRandomValues(new Uint32Array(4)).some((x) => x)];""",
        ["a9993e364706816aba3e25717850c26c9cd0d89d", "ba7816bf8f01cfea", "9c196e32dc0175f8", True, False,
         "InvalidAccessError", "NotSupportedError", True, True],
    ),
    "timers": (
        """const said = []; const begun = performance.now();
        const every = setInterval(() => { said.push("i"); if (said.length > 3) clearInterval(every); }, 5);
        setTimeout((x) => said.push(x), 1, "b"); setTimeout(() => said.push("a"), 0);
          queueMicrotask(() => said.push("m"));
        clearTimeout(setTimeout(() => said.push("never"), 0));
        await new Promise((r) => setTimeout(r, 40));
        return [said.slice(0, 5), performance.now() - begun >= 40,
          Math.abs(performance.timeOrigin - Date.now()) < 60000];""",
        [["m", "a", "b", "i"], True, True],
    ),
    "clones": (
        """const a = { d: new Date(5), m: new Map([[1, new Set([2])]]), r: /x/gi, u: new Uint8Array([1, 2]), e: new
          RangeError("x"), n: 10n }; a.self = a; const c = structuredClone(a); const buffer = new ArrayBuffer(8);
        structuredClone(buffer, { transfer: [buffer] });
        return [c !== a, c.self === c, +c.d, [...c.m.get(1)], `${c.r}`, [...c.u], `${c.e}`, `${c.n}`, buffer.detached,
          thrown(() => structuredClone(() => 1)), thrown(() => structuredClone(new Headers()))];""",
        [True, True, 5, [2], "/x/gi", [1, 2], "RangeError: x", "10", True, "DataCloneError", "DataCloneError"],
    ),
    "events": (
        """const t = new EventTarget(), said = []; const c = new AbortController();
        t.addEventListener("x", (e) => { said.push(e.type, e.detail, e.target === t); e.preventDefault(); },
          { once: true });
        t.addEventListener("x", { handleEvent: () => said.push("object") }, { signal: c.signal });
        const first = t.dispatchEvent(new CustomEvent("x", { detail: 7, cancelable: true })); c.abort();
        t.dispatchEvent(new Event("x"));
        const any = AbortSignal.any([c.signal, AbortSignal.timeout(10000)]);
        const soon = AbortSignal.timeout(1); await new Promise((r) => soon.addEventListener("abort", r));
        return [said, first, c.signal.aborted, c.signal.reason.name, any.aborted, soon.reason.name,
          thrown(() => any.throwIfAborted())];""",
        [["x", 7, True, "object"], False, True, "AbortError", True, "TimeoutError", "AbortError"],
    ),
    "the database": (
        """const { db } = env; const insert = db.prepare("INSERT INTO items (name, price, data) VALUES (?, ?2, ?3)");
        const { meta } = await insert.bind("oil", 2.5, new Uint8Array([1, 255])).run();
        await db.batch([insert.bind("é\\"\\n", 3, null), insert.bind("big", 9007199254740993n, null)]);
        const all = await db.prepare("SELECT * FROM items ORDER BY id").all();
        return [meta.changes, meta.last_row_id, all.success, all.results.map((r) => [r.id, r.name, `${r.price}`,
            r.data && [...r.data]]), await db.prepare("SELECT 1 AS a, 2 AS a2").raw({ columnNames: true }),
          await db.prepare("SELECT count(*) n FROM items").first("n"), await db.prepare("SELECT 1 WHERE 0").first(),
          (await db.exec("SELECT ';' -- ;\\n; /* ; */ DELETE FROM items WHERE id = 3;")).count,
          await db.prepare("SELECT id FROM items WHERE name = ?").bind("oil").raw(), typeof (await db.prepare(
            "SELECT 9007199254740993 AS big").first("big"))];""",
        [1, 1, True, [[1, "oil", "2.5", [1, 255]], [2, 'é"\n', "3", None], [3, "big", "9007199254740992", None]],
         [["a", "a2"], [1, 2]], 3, None, 2, [[1]], "bigint"],
    ),
    "what the database refuses": (
        """const { db } = env; const said = async (sql) => { try { await db.prepare(sql).run(); return ""; } catch
            (e) { return `${e.name} ${e.code} ${e.message.split(" one ")[0].slice(0, 66)}`; } };
        return [await said("SELECT near"), await said(" /* x */ BEGIN"), await said("COMMIT"),
          await said("SAVEPOINT x"), await rejected(db.batch([1])), thrown(() => db.prepare("SELECT ?")
            .bind(undefined)), await rejected(db.prepare("SELECT ?").bind({}).all()),
          await rejected(db.prepare("SELECT ?").bind(NaN).all())];""",
        ["DatabaseError sql_invalid D1_ERROR: no such column: near",
         "DatabaseError sql_not_allowed D1_ERROR: BEGIN isn't there, since a call is",
         "DatabaseError sql_not_allowed D1_ERROR: COMMIT isn't there, since a call is",
         "DatabaseError sql_not_allowed D1_ERROR: SAVEPOINT isn't there, since a call is",
         "TypeError", "TypeError", "TypeError", "TypeError"],
    ),
    "variables": (
        "return [env.config, env.secrets, ctx.user, ctx.route, ctx.params, ctx.client];",
        [{"GREETING": "hé"}, {"KEY": "sesame"}, "", "", {}, "127.0.0.1"],
    ),
    "memory that is given back": (
        """let n = 0; for (let i = 0; i < 3000; i++) n += "x".repeat(100000 + (i % 7)).length;
        for (let i = 0; i < 200; i++) { const a = { b: new Uint8Array(1000000) }; a.a = a; n += a.b.length; }
        return n;""",
        3000 * 100_000 + sum(i % 7 for i in range(3000)) + 200 * 1_000_000,
    ),
    "what isn't there": (
        """return [typeof require, typeof process, typeof WebAssembly, typeof WebSocket, await rejected(
            crypto.subtle.encrypt()), await rejected(fetch("http://127.0.0.1:1/")),
              await rejected(fetch("data:,x"))];""",
        ["undefined", "undefined", "undefined", "undefined", "NotSupportedError", "TypeError", "TypeError"],
    ),
}  # fmt: skip

SCRIPT = """
const thrown = (f) => { try { f(); return ""; } catch (error) { return error.name; } };
const rejected = (p) => p.then(() => "", (error) => error.name);
const built = [thrown(() => Math.random()), Date.now(), thrown(() => crypto.randomUUID()),
  thrown(() => setTimeout(() => 1)), thrown(() => structuredClone(new URL("http://x")))];
let calls = 0;
const rows = { %s };
export default {
  async fetch(request, env, ctx) {
    calls++;
    const { pathname } = new URL(request.url);
    const row = rows[decodeURIComponent(pathname.slice(1))];
    if (row) return Response.json(await row(request, env, ctx));
    return await this.more(pathname.slice(1), request, env, ctx);
  },
  async more(what, request, env, ctx) {
    switch (what) {
      case "fresh":
        return Response.json([Math.random(), crypto.randomUUID(), [...crypto.getRandomValues(new Uint8Array(8))].join(),
          performance.timeOrigin + performance.now(), new Date().toISOString(), built, calls]);
      case "echo": {
        const { method, url, headers } = request;
        return new Response(request.body, { headers: { "x-method": method, "x-url": url,
          "x-sent": headers.get("x-thing"),
          "content-type": "a/b", connection: "close", "content-length": "1" } });
      }
      case "later":
        ctx.waitUntil(new Promise((r) => setTimeout(r,
          20)).then(() => env.db.exec("INSERT INTO items (id) VALUES (70)")));
        ctx.waitUntil(Promise.reject(new Error("a task failed")));
        return new Response("soon");
      case "logs":
        console.log("one %%s and %%d", "word", 2, { a: [1, "x"], m: new Map([[1, new Date(0)]]) });
        console.warn("two\\nlines"); console.error(new RangeError("three")); console.debug(undefined, -0, 1n, () => 1);
        return new Response("logged");
      case "throws":
        await env.db.exec("INSERT INTO items (id) VALUES (80)");
        throw new Error("on purpose", { cause: new Error("the cause") });
      case "broken": {
        const insert = env.db.prepare("INSERT INTO items (id) VALUES (90)");
        await env.db.batch([insert, insert]).catch(() => 1);
        return new Response("not to be sent");
      }
      case "hangs": return await new Promise(() => 1);
      case "nothing": return undefined;
      case "deep": { const f = () => f() + 1; try { f(); } catch (error) { return new Response(error.name); } }

             case "items":
               return Response.json(await env.db.prepare("SELECT id FROM items ORDER BY id").raw()
                 .then((r) => r.flat()));
      case "rejects": Promise.reject(new Error("nobody caught this")); return new Response("sent");
      case "fetch": {
        const { url, init, body } = await request.json();
        if (body) init.body = body.map ? new Uint8Array(body) : body;
        try {
          const r = await fetch(url, init);
          return Response.json([r.status, r.url, r.redirected, r.headers.get("x-was"), [...(await r.bytes())]]);
        } catch (error) { return Response.json([error.name, error.code, error.message]); }
      }
      case "scripts": {
        const { scripts, files } = await request.json();
        globalThis.fetch = async (name) => new Response(files[`${name}`.replace(/^.*resources\\//, "")]);
        globalThis.GLOBAL = { isWindow: () => false, isWorker: () => false, isShadowRealm: () => false };
        globalThis.location = { pathname: "/", search: "", href: "http://localhost/" };
        const [harness, ...rest] = scripts;
        (0, eval)(harness);
        const done = new Promise((resolve) => add_completion_callback((tests, { status }) => resolve([tests, status])));
        setup({ explicit_done: true, output: false });
        (0, eval)(rest.join("\\n"));
        globalThis.done();
        const [tests, status] = await done;
        return Response.json({ status, failed: tests.filter((t) => t.status).map((t) => [t.name, t.message]),
          passed: tests.filter((t) => !t.status).length });
      }
    }
    return new Response("?", { status: 404 });
  },
};
"""


async def made(folder: Path, script: str, name: str = "main.js") -> bytes:
    """The module of a script."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(script)
    # As the node's secrets are, a value of KEY is among the function's variables: its build knows which is a secret.
    known = {"secrets": ["KEY"]}
    await script_modules.make(folder / name, folder / "function.wasm", known, project=folder)
    return (folder / "function.wasm").read_bytes()


@asynccontextmanager
async def serving(tmp_path: Path, script: str, **more: Any) -> AsyncIterator[Node]:
    """A node that serves the script as the function `f`."""
    wasm = await made(tmp_path / "project", script)
    async with node(tmp_path / "state") as edge:
        await edge.release({"f": (wasm, MANIFEST | more)}, [TABLES])
        yield edge


def script() -> str:
    return SCRIPT % ", ".join(
        f"{orjson.dumps(name).decode()}: async (request, env, ctx) => {{ {code} }}" for name, (code, _) in ROWS.items()
    )


async def test_the_webs_apis_and_the_database(tmp_path: Path) -> None:
    async with serving(tmp_path, script()) as edge:
        different = {}
        for name, (_, expected) in ROWS.items():
            status, _, answer = await edge.call(f"f/{name}")
            found = orjson.loads(answer) if status == 200 else (status, answer)
            if found != expected:
                different[name] = found, expected
        assert different == {}


async def test_each_call_is_fresh_and_its_own_transaction(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "skerry.guest")
    async with serving(tmp_path, script()) as edge:
        first, second = [orjson.loads((await edge.call("f/fresh"))[2]) for _ in range(2)]
        for n in range(4):
            assert first[n] != second[n], n
        assert first[4][:2] == "20"
        # Built at no time, without randomness and timers, which each call would have alike; nothing stays of a call.
        assert first[5] == second[5]
        assert first[5] == ["Error", 0, "Error", "Error", "DataCloneError"]
        assert (first[6], second[6]) == (1, 1)

        status, headers, answer = await edge.call("f/echo?x=%20", b"\x00\xff", "PUT", headers={"X-Thing": "q"})
        assert (status, answer, headers["x-method"], headers["x-sent"]) == (200, b"\x00\xff", "PUT", "q")
        assert headers["x-url"].endswith("/echo?x=%20")
        assert (headers["content-type"], headers["content-length"]) == ("a/b", "2")

        assert (await edge.call("f/later"))[2] == b"soon"
        for failing in ("throws", "broken", "hangs", "nothing"):
            status, _, answer = await edge.call(f"f/{failing}")
            assert (status, answer) == (500, b"Internal Server Error"), failing
        # What a call wrote before it failed is undone; what waitUntil was given belongs to its call.
        assert orjson.loads((await edge.call("f/items"))[2]) == [70]
        assert (await edge.call("f/deep"))[2] == b"RangeError"
        assert (await edge.call("f/rejects"))[2] == b"sent"
        assert (await edge.call("f/logs"))[2] == b"logged"
    found = [(record.levelname, record.getMessage()) for record in caplog.records]
    for level, text in (
        ("ERROR", "Error: a task failed"),
        ("ERROR", "Error: on purpose"),
        ("ERROR", "caused by Error: the cause"),
        ("ERROR", "a batch had failed after it had written, so the call is undone, and its answer is a 500"),
        ("ERROR", "TypeError: a promise is never settled: nothing is left that could do so"),
        ("ERROR", "TypeError: the handler gave undefined, and not a Response"),
        ("ERROR", "Error: nobody caught this"),
        ("INFO", 'one word and 2 { a: [ 1, "x" ], m: Map { 1 => 1970-01-01T00:00:00.000Z } }'),
        ("WARNING", "two"),
        ("WARNING", "lines"),
        ("ERROR", "RangeError: three"),
        ("DEBUG", "undefined -0 1n [function (anonymous)]"),
    ):
        assert any(each[0] == level and text in each[1] for each in found), (level, text, found)


async def test_fetch_asks_as_the_manifest_grants(tmp_path: Path) -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.path.startswith("/to"):
            raise web.HTTPFound("/end") if request.path == "/to" else web.HTTPTemporaryRedirect("/end")
        body = b"%s %s %s" % (request.method.encode(), request.headers.get("X-A", "").encode(), await request.read())
        return web.Response(status=201, body=body, headers={"X-Was": "here"})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with serving(tmp_path, script(), http={"hosts": [url], "methods": ["GET", "POST"]}) as edge:

            async def fetched(path: str, body: Any = None, **init: Any) -> Any:
                asked = orjson.dumps({"url": path if "//" in path else url + path, "init": init, "body": body})
                return orjson.loads((await edge.call("f/fetch", asked))[2])

            def gave(body: bytes, redirected: bool = False, path: str = "/end") -> list[Any]:
                return [201, url + path, redirected, "here", list(body)]

            assert await fetched("/x#y", headers={"X-A": "b"}) == gave(b"GET b ", path="/x#y")
            assert await fetched("/end", "é", method="POST") == gave("POST  é".encode())
            assert await fetched("/end", [0, 255], method="POST") == gave(b"POST  \x00\xff")
            assert await fetched("/to", "x", method="POST") == gave(b"GET  ", redirected=True)
            assert await fetched("/to307", "x", method="POST") == gave(b"POST  x", redirected=True)
            assert (await fetched("/to", redirect="manual"))[:3] == [302, f"{url}/to", False]
            assert (await fetched("/to", redirect="error"))[0] == "TypeError"
            assert (await fetched("/end", "x", method="PUT"))[:2] == ["TypeError", "not_granted"]
            assert (await fetched("http://elsewhere.example/"))[:2] == ["TypeError", "not_granted"]
    finally:
        await runner.cleanup()


async def test_a_schedules_tick_and_a_release_call_their_handlers(tmp_path: Path) -> None:
    """What has no handler of its own is a request."""
    handlers = {
        "scheduled": "scheduled(c) { console.log(c.cron, c.scheduledTime, c.type); }",
        "later": "scheduled(c, env, ctx) { ctx.waitUntil(Promise.reject(new Error('later'))); }",
        "released": "async released(c) { console.log(c.type); return new Response('done', { status: 201 }); }",
    }
    seen = {}
    for name, handler in handlers.items():
        text = f"export default {{ fetch: (r) => new Response(r.headers.get('skerry-event')), {handler} }};"
        wasm = await made(tmp_path / name, text)
        with loading(tmp_path, abi="direct") as load:
            loaded = load(wasm)
            for event in ("schedule", "release"):
                due = [("skerry-scheduled-at", "2026-12-03T05:00:00Z"), ("skerry-cron", "0 5 * * *")]
                request = Request("POST", "/", headers=[("skerry-event", event), *due])
                answer = await asyncio.to_thread(loaded.call, request, CallServices())
                seen[name, event] = answer.status, answer.body, answer.log.partition(b" at ")[0]
    line = b"0 5 * * * 1796274000000 "
    assert seen == {
        ("scheduled", "schedule"): (204, b"", line + b"scheduled\n"),
        ("scheduled", "release"): (204, b"", line + b"release\n"),
        # A tick is what it does, also beside its handler.
        ("later", "schedule"): (500, b"Internal Server Error", b"<3>Error: later\n<3>   "),
        ("later", "release"): (500, b"Internal Server Error", b"<3>Error: later\n<3>   "),
        ("released", "schedule"): (200, b"schedule", b""),
        ("released", "release"): (201, b"done", b"release\n"),
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("export default { fetch() {} ", "SyntaxError"),
        ("export default {};", "the module has no `export default"),
        ("export default { fetch() {} }; throw new Error('at build');", "at build"),
        ("export default { fetch() {} }; crypto.randomUUID();", "no random numbers while a function is built"),
        ("export default { fetch() {} }; await fetch('http://x/');", "fetch can't be used while a function is built"),
        ("import './x.js'; export default { fetch() {} };", "x.js"),
    ],
)
async def test_a_script_that_cannot_be_built_is_told_why(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(script_modules.ScriptInvalid) as error:
        await made(tmp_path / "project", text)
    assert told in str(error.value)
    assert "engine.wasm" not in str(error.value)


async def test_a_secret_in_a_script_is_found_unless_it_is_allowed(tmp_path: Path) -> None:
    script, module = tmp_path / "main.js", tmp_path / "f.wasm"
    script.write_text("const key = 'open, sesame'; export default { fetch: () => new Response(key) };")
    secrets = {"KEY": "open, sesame"}
    with pytest.raises(script_modules.ScriptInvalid, match="the secret KEY"):
        await script_modules.make(script, module, {}, project=tmp_path, secrets=secrets)
    assert not module.exists()
    await script_modules.make(script, module, {}, project=tmp_path, secrets=secrets, allow=["KEY"])
    assert module.exists()
