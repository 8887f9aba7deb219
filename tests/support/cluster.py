"""A whole cluster whose processes are killed: database, store, `skerry serve` and `skerry-edge run` on TLS, each a
process of its own; control and the front are started again by a supervisor as systemd would."""

import asyncio
import contextlib
import hashlib
import signal
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import orjson

from control.clock import SystemClock
from control.local import embedded, pki
from control.protocol.manifest import Manifest
from control.storage import database, migrations
from edge_runtime.sync.join import join
from tests.guests.build import guest
from tests.guests.version import version
from tests.support import process_tree, seeds
from tests.support.deadlines import deadline
from tests.support.ports import free_port
from tests.support.services import home_folder, like_cockroachdb, with_errors
from tests.support.supervised import Supervised

NODE = "edge-1"
LIMIT = 60.0
"""Seconds for anything that must come to be."""
SHOWN = 60
"""Lines of each log in a failure's message."""
VERSION, WRITE, SLOW, LOOP = "version", "write", "slow", "loop"


class Unanswered(Exception):
    """Control gave no answer that can be taken; the request may be sent again."""


class Cluster:
    """Releases are numbered 1, 2, 3 …; release N has version N of the function `version` and schema change N, so that
    each of its answers says both numbers, and they are the same."""

    def __init__(
        self,
        folder: Path,
        services: embedded.LocalServices,
        control: Supervised,
        front: Supervised,
        api: aiohttp.ClientSession,
        http: aiohttp.ClientSession,
        tls: ssl.SSLContext,
    ) -> None:
        self.folder = folder
        self.services = services
        self.control = control
        self.front = front
        self.faults = folder / "faults"
        self.doing = "the start"
        """For messages: what is being done to the cluster."""
        self.released: list[int] = []
        """Numbers of releases that control has acknowledged."""
        self.pushed: dict[int, str] = {}
        """Their artifacts."""
        self.control_address = self.local_address = self.token = ""
        """HOST:PORT of control and of the node's local HTTP, and an admin's token."""
        self.tls = tls
        """By which operators trust control."""
        self._api = api
        self._http = http

    # Control, as an operator

    async def call(self, method: str, path: str, body: Any = None, *, data: bytes | None = None) -> Any:
        """The body of a success; asked again, under one idempotency key, until there is an answer."""
        headers = {"idempotency-key": str(uuid4())}
        headers["content-type"] = "application/wasm" if data is not None else "application/json"
        sent = data if data is not None else orjson.dumps(body) if body is not None else None
        last = ""
        try:
            async with deadline(LIMIT):
                while True:
                    try:
                        return await self._once(method, path, sent, headers)
                    except (aiohttp.ClientError, OSError, Unanswered) as error:
                        last = repr(error)
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise self.failure(f"{method} {path} had no answer for {LIMIT:.0f} s; last {last}") from None

    async def _once(self, method: str, path: str, sent: bytes | None, headers: dict[str, str]) -> Any:
        async with self._api.request(method, path, data=sent, headers=headers) as answer:
            content = await answer.read()
            if answer.status in (429, 503):
                raise Unanswered(content.decode())
            self.check(answer.status < 300, f"{method} {path}: {answer.status} {content.decode()}")
            return orjson.loads(content) if content else None

    async def items(self, path: str) -> list[Any]:
        """All items of a list."""
        found: list[Any] = []
        more = "&" if "?" in path else "?"
        page = await self.call("GET", f"{path}{more}limit=100")
        while True:
            found += page["items"]
            if page["next"] is None:
                return found
            page = await self.call("GET", f"{path}{more}limit=100&cursor={page['next']}")

    async def push(self, name: str, wasm: bytes, **manifest: Any) -> int:
        """Upload a version of a function; return its number."""
        sha256 = hashlib.sha256(wasm).hexdigest()
        await self.call("PUT", f"/v1/artifacts/{sha256}", data=wasm)
        made = await self.call("POST", f"/v1/functions/{name}/versions", {"sha256": sha256, "manifest": manifest})
        return int(made["version"])

    async def seed(
        self,
        numbers: range,
        sql: Callable[[int], str] | None = None,
        others: Mapping[str, tuple[bytes, Manifest]] | None = None,
    ) -> None:
        """Have control know the versions and schema changes of releases, and a version of other functions; `sql` says
        the text of each change.

        All is written straight into the database and the store: the API checks each in a process of its own.
        """
        modules = {number: version(number) for number in numbers}
        db = await database.connect(self.services.metadata_url, connections=1)

        async def work(conn: Any) -> None:
            now = SystemClock().now()
            store = self.services.artifacts_url
            await seeds.add_versions(conn, store, now, VERSION, modules, Manifest(sql="read"))
            for name, (wasm, manifest) in (others or {}).items():
                await seeds.add_versions(conn, store, now, name, {1: wasm}, manifest)
            for number in numbers:
                text = sql(number) if sql is not None else f"UPDATE generation SET number = {number}"
                await seeds.add_change(conn, now, number, text)

        try:
            await db.transaction(work)
        finally:
            await db.close()
        self.pushed |= {number: hashlib.sha256(wasm).hexdigest() for number, wasm in modules.items()}

    async def release(self, number: int) -> None:
        """Make the release; it was made when this returns."""
        body = {"functions": {VERSION: number}, "schema": number, "now": True}
        made = await self.call("POST", "/v1/releases", body)
        assert made["number"] == number, made
        self.released.append(number)

    async def node(self) -> Any:
        """Return the node as control sees it."""
        return await self.call("GET", f"/v1/nodes/{NODE}")

    # The node

    async def ask(self, path: str, data: bytes | None = None) -> tuple[int, dict[str, str], bytes]:
        async with self._http.request("POST" if data is not None else "GET", path, data=data) as answer:
            headers = {name.lower(): value for name, value in answer.headers.items()}
            return answer.status, headers, await answer.read()

    async def status(self) -> Any:
        """The node's own; None while its front can't be reached."""
        try:
            async with deadline(5):
                code, _, body = await self.ask("/_skerry/status")
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None
        assert code == 200, body
        return orjson.loads(body)

    def zygote(self) -> int:
        """Return the zygote's process id, 0 where there is none."""
        return process_tree.zygote(self.front.pid)

    def born(self) -> list[int]:
        """The zygote's children that the front waits for: workers, the applier, a compiler."""
        return process_tree.born(self.front.pid)

    async def converged(self, number: int, *, hurry: bool = False) -> Any:
        """Wait until node and control agree that the node is at this release; the node as control sees it.

        With `hurry` the operator says "retry now" where the sync has failed; else where the next attempt is far, as it
        is after one that kept calls waiting for seconds, on a busy machine.
        """
        seen: Any = None
        hurried = 0
        """The failed attempts when the operator said so last."""

        async def there() -> bool:
            nonlocal seen, hurry, hurried
            own = await self.status()
            seen = own and {k: own[k] for k in ("release", "at_target", "error", "sync", "calls", "workers", "control")}
            waits = own and own["failed_generation"] and not own["report_waits"] and own["attempts"] != hurried
            if waits and (hurry or _far(own["next_attempt"])):
                hurry, hurried = False, own["attempts"]
                await self.call("POST", f"/v1/nodes/{NODE}/retry")
            return bool(own and own["release"] and own["release"]["number"] == number and own["at_target"])

        await self.until(f"the node serves release {number}", there, lambda: seen)

        async def known() -> bool:
            nonlocal seen
            seen = await self.node()
            return bool(seen["at_target"] and seen["state"] == "online" and not seen["sync"])

        await self.until(f"control knows that the node is at release {number}", known, lambda: seen)
        return seen

    # Faults

    def arm(self, point: str, action: str) -> None:
        (self.faults / f"{point}.held").unlink(missing_ok=True)
        (self.faults / point).write_text(action)

    def disarm(self) -> None:
        """No point is armed any more, and none is held."""
        for file in self.faults.iterdir():
            file.unlink(missing_ok=True)

    async def reached(self, point: str) -> int:
        """Wait until a process has come to the point; its id."""
        held = self.faults / f"{point}.held"

        async def there() -> bool:
            return held.exists()

        await self.until(f"a process comes to {point}", there)
        return int(held.read_text())

    def let_go(self, point: str) -> None:
        """Let the process that is held at the fault point go on."""
        (self.faults / f"{point}.held").unlink(missing_ok=True)

    # Failures

    async def until(
        self,
        what: str,
        condition: Callable[[], Awaitable[bool]],
        seen: Callable[[], Any] = lambda: "",
        limit: float | None = None,
    ) -> None:
        """Wait until `condition()`; a failure says what was being done, what was seen last, and what the logs say."""
        try:
            async with deadline(LIMIT, limit):
                while not await condition():
                    await asyncio.sleep(0.03)
        except TimeoutError:
            raise self.failure(
                f"after {limit or LIMIT:.0f} s it still wasn't so that {what}; last seen: {seen()}"
            ) from None

    def check(self, good: object, text: str) -> None:
        """Fail unless `good`. Not by `assert`, which would cut the logs short."""
        if not good:
            raise self.failure(text)

    def failure(self, text: str) -> AssertionError:
        """What happened, at what, with the ends of the logs."""
        ends = f"front: {self.front.ends}, control: {self.control.ends}"
        logs = [self.front.log, self.control.log, self.services.metadata.log, self.services.artifacts.log]
        tails = "\n".join(f"--- {log.name}\n{_tail(log)}" for log in logs)
        return AssertionError(f"[{self.doing}] {text}\nends so far: {ends}\n{tails}")

    def check_ends(self) -> None:
        """Control and the front have ended by the test's kills alone."""
        for program in (self.front, self.control):
            other = [status for status in program.ends if status != -signal.SIGKILL]
            self.check(not other, f"{program.log.name}: it ended by itself with {other}")


@asynccontextmanager
async def cluster(
    workers: int = 2, functions: tuple[str, ...] = (VERSION, WRITE, SLOW), **control: str
) -> AsyncIterator[Cluster]:
    """A cluster with one node, at release 1, with these functions; `control`: more of its environment."""
    async with contextlib.AsyncExitStack() as stack:
        home = stack.enter_context(home_folder())
        (home.parent / "faults").mkdir()
        services = await stack.enter_async_context(embedded.services(home))
        metadata_url = stack.enter_context(like_cockroachdb(services.metadata_url))
        made = await stack.enter_async_context(_running(home.parent, services, metadata_url, workers, control))
        try:
            await _first_release(made, functions)
            yield made
        finally:
            made.disarm()


@asynccontextmanager
async def _running(
    folder: Path, services: embedded.LocalServices, metadata_url: str, workers: int, settings: dict[str, str]
) -> AsyncIterator[Cluster]:
    keys = pki.ensure(folder / "pki")
    db = await database.connect(metadata_url, connections=1)
    try:
        await migrations.migrate(db, SystemClock())
        token = await migrations.make_admin(db, SystemClock())
    finally:
        await db.close()
    url, local = (f"127.0.0.1:{free_port()}" for _ in range(2))
    faults = {"SKERRY_FAULTS": str(folder / "faults")}
    serve = {
        "SKERRY_METADATA_URL": with_errors(metadata_url),
        "SKERRY_ARTIFACTS_URL": services.artifacts_url,
        "SKERRY_PORT": url.rpartition(":")[2],
        "SKERRY_TLS_CERT": str(keys.certificate),
        "SKERRY_TLS_KEY": str(keys.key),
        "SKERRY_CA_CERT": str(keys.ca),
        "SKERRY_SPOOL": str(folder),
        **faults,
        **settings,
    }
    # Where the zygote was killed, calls wait for the next one, which takes its time to start on a busy machine.
    patient = {"SKERRY_EDGE_QUEUE_WAIT": "40"}
    run = ["edge_runtime.cli.main", "run", "--state", str(folder / "edge"), "--listen", local]
    tls = ssl.create_default_context(cafile=str(keys.ca))
    headers = {"authorization": f"Bearer {token}"}
    async with contextlib.AsyncExitStack() as stack:
        # A call that hangs is for the test to notice, and one of control's is asked again.
        limits, hung = aiohttp.ClientTimeout(20), aiohttp.ClientTimeout(2 * LIMIT)
        connector = aiohttp.TCPConnector(ssl=tls, limit=0)
        api = aiohttp.ClientSession(f"https://{url}", connector=connector, headers=headers, timeout=limits)
        http = aiohttp.ClientSession(f"http://{local}", connector=aiohttp.TCPConnector(limit=0), timeout=hung)
        await stack.enter_async_context(api)
        await stack.enter_async_context(http)
        held = stack.enter_context((folder / "programs.lock").open("w"))
        control = Supervised("control", ["control.cli", "serve"], serve, folder, held.fileno())
        front = Supervised("front", [*run, "--workers", str(workers)], {**faults, **patient}, folder, held.fileno())
        made = Cluster(folder, services, control, front, api, http, tls)
        made.control_address, made.local_address, made.token = url, local, token or ""
        supervising = [asyncio.ensure_future(control.run())]
        try:
            made_token = await made.call("POST", "/v1/join-tokens", {})
            await join(folder / "edge", f"https://{url}", made_token["token"], NODE, {})
            supervising.append(asyncio.ensure_future(front.run()))
            yield made
        finally:
            for task in supervising:
                task.cancel()
            ended = await asyncio.gather(*supervising, return_exceptions=True)
            failed = [error for error in ended if not isinstance(error, asyncio.CancelledError)]
            assert not failed, failed


async def _first_release(made: Cluster, names: tuple[str, ...]) -> None:
    tables = "CREATE TABLE generation (number INTEGER NOT NULL); INSERT INTO generation VALUES (1);"
    tables += "CREATE TABLE written (id TEXT PRIMARY KEY)"
    others = {
        WRITE: (guest("sql"), Manifest(sql="write")),
        SLOW: (guest("slow"), Manifest(sql="read")),
        LOOP: (guest("loop"), Manifest(time_limit_ms=60_000)),
    }
    chosen = {name: others[name] for name in names if name in others}
    await made.seed(range(1, 2), lambda _: tables, chosen)
    versions = dict.fromkeys([VERSION, *chosen], 1)
    await made.call("POST", "/v1/releases", {"functions": versions, "schema": 1, "now": True})
    made.released.append(1)
    await made.converged(1)


def _far(moment: str | None) -> bool:
    """Whether that is a good part of `LIMIT` away."""
    return moment is not None and datetime.fromisoformat(moment) - datetime.now(UTC) > timedelta(seconds=LIMIT / 4)


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 12_000))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-SHOWN:])
    except OSError as error:
        return str(error)
