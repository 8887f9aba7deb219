"""A real browser on web pages of other origins: what they can have it do on a node, and what they get to see.

The node is http://127.0.0.1:PORT. The pages are those of another port of that address, which is of the same site, of
localhost and of a name, which are of others.
"""

import asyncio
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import psutil
import pytest

from edge_runtime.dispatch.outcomes import Refusal
from edge_runtime.web.app import EdgeApp
from edge_runtime.web.parser import Exchange
from tests.guests.build import guest, wat
from tests.guests.version import version
from tests.support import browser as browsers
from tests.support.edge import Node, node, until
from tests.support.programs import runs

PORT, LOCALHOST, NAME = "127.0.0.1", "localhost", "foreign.example"
"""The hosts of the pages. `shared` is open to pages of LOCALHOST."""
SITES = {PORT: "same-site", LOCALHOST: "cross-site", NAME: "cross-site"}


def writer(name: str) -> bytes:
    """A function that writes a row with its name, by any method, and answers 500 where it can't."""
    return version(1, f"INSERT INTO rows VALUES ('{name}') RETURNING 7")


def page(text: str) -> bytes:
    """A function that answers an HTML page."""
    answer = f"Content-Type: text/html\n\n{text}".encode()
    data = "".join(f"\\{byte:02x}" for byte in answer)
    return wat(
        f"""(module (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1) (data (i32.const 64) "{data}")
        (func (export "_start")
          (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const {len(answer)}))
          (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 32)))))"""
    )


ATTEMPTS = """<!doctype html><script>
const url = name => "http://127.0.0.1:NODE/functions/" + name;
const image = name => new Promise(done => {
  const made = new Image(); made.onload = () => done("seen"); made.onerror = () => done("failed"); made.src = url(name);
});
const script = name => new Promise(done => {
  const made = document.createElement("script"); made.onload = () => done("seen"); made.onerror = () => done("failed");
  made.src = url(name); document.head.append(made);
});
const form = (name, method) => new Promise(done => {
  const frame = document.createElement("iframe"), made = document.createElement("form");
  frame.name = "frame" + Math.random(); document.documentElement.append(frame, made);
  made.action = url(name); made.method = method; made.target = frame.name;
  frame.onload = () => done("sent"); made.submit();
});
const ask = (name, method, more) => fetch(url(name), {method, ...more}).then(
  async answer => answer.type === "opaque" ? "opaque" : answer.status + " " + await answer.text(), error => error.name);
const json = {headers: {"content-type": "application/json"}, body: "{}"};
(async () => {
  const told = {
    "image write": await image("write"), "image kept": await image("kept"), "image every": await image("every"),
    "script status": await script("../_skerry/status"),
    "form write": await form("write", "post"), "form get write": await form("write", "get"),
    "no-cors write": await ask("write", "POST", {mode: "no-cors", body: "x"}),
    "no-cors get write": await ask("write", "GET", {mode: "no-cors"}),
    "post write": await ask("write", "POST", {body: "x"}), "put write": await ask("write", "PUT", json),
    "get shared": await ask("shared", "GET", {}), "post shared": await ask("shared", "POST", {body: "x"}),
    "put shared": await ask("shared", "PUT", json), "delete shared": await ask("shared", "DELETE", {}),
    "get every": await ask("every", "GET", {}), "get status": await ask("../_skerry/status", "GET", {}),
  };
  await fetch("/told/" + location.hostname, {method: "POST", body: JSON.stringify(told)});
  open(url("write")); open(url("linked?from=" + location.hostname));
})();
</script>"""

OPENED = """<!doctype html><script>
(async () => {
  const from = new URLSearchParams(location.search).get("from");
  const get = (await fetch("/functions/kept")).status, post = (await fetch("/functions/kept", {method: "POST"})).status;
  const told = JSON.stringify([document.referrer !== "", get, post, (await fetch("/_skerry/status")).status]);
  await fetch("http://127.0.0.1:PAGES/told/opened-" + from, {method: "POST", mode: "no-cors", body: told});
})();
</script>"""


class Came(NamedTuple):
    """A request of the browser, and what was decided of it."""

    method: str
    path: str
    site: str
    """Sec-Fetch-Site."""
    destination: str
    """Sec-Fetch-Dest."""
    code: str
    """Of the refusal; empty where there was none."""


@dataclass
class Played:
    """What has happened once the browser has been on the pages of all hosts."""

    edge: Node
    came: list[Came] = field(default_factory=list)
    told: dict[str, dict[str, str]] = field(default_factory=dict)
    """What the pages saw, by their host and by attempt."""
    opened: dict[str, Any] = field(default_factory=dict)
    """What the node's own page saw, by the host of the page with the link to it."""
    rows: list[str] = field(default_factory=list)
    """The functions that wrote, once for each row."""


class WatchedApp:
    """The node's app, in whose place it notes what browsers ask of the node, and what is decided."""

    def __init__(self, app: EdgeApp, came: list[Came]) -> None:
        self.came, self.admit_it = came, app.admit
        self.run, self.leave = app.run, app.leave

    def admit(self, exchange: Exchange, certificate: bytes | None) -> Refusal | None:
        refusal = self.admit_it(exchange, certificate)
        told = {name.decode(): value.decode() for name, value in exchange.headers}
        if "sec-fetch-site" in told:
            code = refusal.code if refusal is not None else ""
            path = exchange.path.decode()
            self.came.append(Came(exchange.method, path, told["sec-fetch-site"], told["sec-fetch-dest"], code))
        return refusal


async def played(folder: Path) -> Played:
    """Have a browser open the pages of each host on a node, and do all that they try."""
    async with browsers.pages() as pages, node(folder / "state") as edge:
        found = Played(edge)
        kept = {"sql": "write", "read_only_methods": ["GET", "HEAD"]}
        cors = {"origins": [pages.url(LOCALHOST)[:-1]], "methods": ["GET", "POST", "PUT"]}
        await edge.release(
            {
                # As those that were pushed before GET and HEAD only read.
                "write": (writer("write"), {"sql": "write"}),
                "kept": (writer("kept"), kept),
                "shared": (writer("shared"), {**kept, "cors": cors}),
                "every": (version(2, "SELECT 5"), {"sql": "read", "cors": {"origins": ["*"]}}),
                "linked": (page(OPENED.replace("PAGES", str(pages.port))), {"navigation": True}),
                "sql": (guest("sql"), {"sql": "read"}),
            },
            ["CREATE TABLE rows (name TEXT)"],
        )
        edge.front.server.shared.app = WatchedApp(edge.front.app, found.came)
        pages.pages["/attempts"] = ATTEMPTS.replace("NODE", str(edge.front.port))
        opens = "".join(f"open({json.dumps(pages.url(host, '/attempts'))});" for host in SITES)
        pages.pages["/"] = f"<!doctype html><script>{opens}</script>"
        async with browsers.browser(folder, pages.url(PORT)):
            for host in SITES:
                found.told[host] = orjson.loads(await pages.told(host))
                found.opened[host] = orjson.loads(await pages.told(f"opened-{host}"))
            links = [("GET", "/functions/write", site, "document") for site in sorted(SITES.values())]
            await until(lambda: sorted(came[:4] for came in found.came if came[:4] in links) == links)
        rows = orjson.loads((await edge.call("sql", b'{"sql":"SELECT name FROM rows"}'))[2])["rows"]
        found.rows = [name for (name,) in rows]
        return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Played:
    """The browser's whole visit, once for the tests of this file."""
    return asyncio.run(played(tmp_path_factory.mktemp("browser")))


def test_the_browser_said_where_the_pages_are_from(found: Played) -> None:
    """What the node goes by."""
    assert {came.site for came in found.came} == {"same-site", "cross-site", "same-origin"}
    for wanted in (("GET", "image"), ("GET", "script"), ("GET", "iframe"), ("POST", "iframe"), ("GET", "document")):
        assert wanted in {(came.method, came.destination) for came in found.came}
    assert "OPTIONS" in {came.method for came in found.came}


def test_no_page_had_a_function_write_that_does_not_name_it(found: Played) -> None:
    assert "write" not in found.rows
    assert [came for came in found.came if came.path == "/functions/write" and not came.code] == []
    # Each by one page: two of LOCALHOST, and one of the node's own page for each link that was followed.
    assert sorted(found.rows) == ["kept"] * len(SITES) + ["shared"] * 2


@pytest.mark.parametrize("host", list(SITES))
def test_what_a_page_saw(found: Played, host: str) -> None:
    told = found.told[host]
    for attempt in ("image write", "image kept", "image every", "script status"):
        assert told[attempt] == "failed", attempt
    for attempt in ("post write", "put write", "delete shared", "get status"):
        assert told[attempt] == "TypeError", attempt
    assert told["no-cors write"] == told["no-cors get write"] == "opaque"
    assert told["get every"] == '200 {"version":2,"schema":{"columns":["5"],"rows":[[5]],"changes":0,"last_id":null}}\n'
    if host != LOCALHOST:
        assert {told[attempt] for attempt in ("get shared", "post shared", "put shared")} == {"TypeError"}
        return
    # GET only reads, and the page sees the function's own error.
    assert told["get shared"].startswith("500 ")
    assert "calls with GET only read" in told["get shared"]
    for attempt in ("post shared", "put shared"):
        assert told[attempt].startswith('200 {"version":1,"schema":{"columns":["7"],"rows":[[7]]'), attempt


def test_a_link_opens_what_allows_it_and_the_nodes_own_page_may_call(found: Played) -> None:
    for host, site in SITES.items():
        assert Came("GET", "/functions/linked", site, "document", "") in found.came
        assert Came("GET", "/functions/write", site, "document", "cross_site_refused") in found.came
        assert found.opened[host] == [True, 500, 200, 200]


def test_a_method_that_is_not_shared_and_a_page_that_is_not_named_never_came(found: Played) -> None:
    """The browser asks before, and the node's answer is no."""
    assert [came for came in found.came if came.method == "DELETE"] == []
    puts = [came.path for came in found.came if came.method == "PUT"]
    assert puts == ["/functions/shared"]


TO_KILL = """
import asyncio, sys
from pathlib import Path
from tests.support import browser

async def main():
    async with browser.pages() as pages, browser.browser(Path(sys.argv[1]), pages.url("127.0.0.1")) as made:
        pages.pages["/"] = "<script>fetch('/told/it', {method: 'POST'})</script>"
        await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_the_browser_goes_with_a_test_that_is_killed(tmp_path: Path) -> None:
    test = await asyncio.create_subprocess_exec(sys.executable, "-c", TO_KILL, str(tmp_path))
    try:
        found: list[psutil.Process] = []

        def started() -> bool:
            found[:] = browsers.processes(test.pid)
            return len(found) >= 3

        await until(started)
    finally:
        os.kill(test.pid, signal.SIGKILL)
        await test.wait()
    await until(lambda: not any(map(runs, found)))
