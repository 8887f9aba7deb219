"""Each alert of docs/alerts, made to fire by breaking what it watches, and to end by mending that: a real control and a
real node, a real Prometheus and Alertmanager, and a receiver of what the Alertmanager sends."""

import asyncio
import contextlib
import itertools
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import aiohttp
import orjson
import psutil
import pytest
import pytest_asyncio

from edge_runtime import wal
from edge_runtime.sync.join import join
from tests.guests.build import guest
from tests.integration.edge_runtime.cli.test_backup import holder
from tests.support.certificates import Authority
from tests.support.cluster import NODE, SLOW, VERSION, WRITE, Cluster, cluster
from tests.support.prometheus import ALERTS, Prometheus, prometheus, quick
from tests.support.webhook_receiver import Receiver, receiving

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMIT = 150.0
"""Seconds for anything that must come to be."""
ROOM = 0.1
"""The share of the disk's free room that may be used before it counts as low, in the test's copy of the rules."""
LOG_LIMIT = 16 * 2**20


@dataclass
class Watched:
    """All that runs, and what became of the alerts."""

    cluster: Cluster
    prometheus: Prometheus
    receiver: Receiver
    folder: Path
    authority: Authority
    seen: set[str] = field(default_factory=set)
    """Alerts that have fired and ended."""

    def told(self, alert: str) -> str:
        """What the Alertmanager said last of an alert: firing, resolved, or '' where nothing."""
        last = ""
        for message in self.receiver.received:
            for one in message.body["alerts"]:
                if one["labels"]["alertname"] == alert:
                    last = one["status"]
        return last

    async def fires(self, *alerts: str) -> None:
        """Wait until these alerts are firing, and the receiver was told."""
        await self._until(alerts, lambda firing, alert: alert in firing and self.told(alert) == "firing")

    async def ends(self, *alerts: str) -> None:
        """Wait until they aren't any more, and the receiver was told."""
        await self._until(alerts, lambda firing, alert: alert not in firing and self.told(alert) == "resolved")
        self.seen |= {*alerts}

    async def _until(self, alerts: tuple[str, ...], so: Callable[[set[str], str], bool]) -> None:
        firing: set[str] = set()
        try:
            async with asyncio.timeout(LIMIT):
                while not all(so(firing, alert) for alert in alerts):
                    await asyncio.sleep(0.2)
                    firing = await self.prometheus.firing()
        except TimeoutError:
            states = {alert: (alert in firing, self.told(alert)) for alert in alerts}
            raise self.cluster.failure(f"firing in Prometheus, and told by the Alertmanager: {states}") from None

    async def call(self, path: str, data: bytes = b"") -> int:
        """Call a function; the status of the answer, 0 where none came."""
        try:
            return (await self.cluster.ask(f"/functions/{path}", data))[0]
        except (aiohttp.ClientError, OSError):
            return 0

    async def write(self, sql: str) -> None:
        status, _, body = await self.cluster.ask(f"/functions/{WRITE}", orjson.dumps({"sql": sql}))
        assert status == 200, body
        assert b'"error"' not in body, body

    async def metric(self, name: str) -> float:
        """A metric of the node that has no labels, as it is now."""
        _, _, body = await self.cluster.ask("/_skerry/metrics")
        [line] = [line for line in body.decode().splitlines() if line.startswith(f"{name} ")]
        return float(line.partition(" ")[2])


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def watched(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    authority = Authority()
    async with contextlib.AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(receiving())
        settings = {"SKERRY_HOLD": "2", "SKERRY_OFFLINE_AFTER": "5", "SKERRY_OVERDUE_AFTER": "6"}
        made = await stack.enter_async_context(
            cluster(functions=(VERSION, WRITE, SLOW), SKERRY_WEBHOOK_NETWORKS="127.0.0.0/8", **settings)
        )
        made.front.environment["SKERRY_EDGE_WAL_LIMIT"] = str(LOG_LIMIT)
        made.front.kill()
        free = shutil.disk_usage(made.folder).free
        thresholds = {
            "SkerryEdgeControlSilent": ("> 120", "> 8"),
            "SkerryEdgeWorkersDie": ("> 5", "> 3"),
            "SkerryEdgeDiskLow": ("< 1e+09", f"< {free * (1 - ROOM):.0f}"),
            "SkerryGroupDiskLow": ("< 1e+09", f"< {free * (1 - ROOM):.0f}"),
            "SkerryGroupLogLong": ("> 1.34217728e+08", f"> {LOG_LIMIT // 2}"),
        }
        (folder / "token").write_text(made.token)
        (folder / "authorities.pem").write_bytes((made.folder / "pki" / "ca.pem").read_bytes() + authority.certificate)
        pages = {"metrics_path": "/_skerry/metrics"}
        replica = {
            "scheme": "https",
            "authorization": {"credentials_file": str(folder / "token")},
            "tls_config": {"ca_file": str(folder / "authorities.pem")},
            "static_configs": [{"targets": [made.control_address]}],
        }
        scraped = [
            {"job_name": "skerry-control", **replica},
            # A scrape waits for the metadata database for 3 s, which the other job doesn't.
            {"job_name": "skerry-control-patient", "scrape_interval": "4s", "scrape_timeout": "4s", **replica},
            {"job_name": "skerry-edge", "static_configs": [{"targets": [made.local_address]}], **pages},
            {
                "job_name": "skerry-edge-tls",
                "scheme": "https",
                "tls_config": {"insecure_skip_verify": True},
                "static_configs": [{"targets": [made.local_address]}],
                **pages,
            },
        ]
        rules = quick((ALERTS / "rules.yml").read_text(), thresholds)
        asked = await stack.enter_async_context(
            prometheus(folder / "prometheus", rules, scraped, receiver.url.removesuffix("/hook") + "/alerts")
        )
        yield Watched(made, asked, receiver, folder, authority)


@contextlib.asynccontextmanager
async def repeating(call: Callable[[], Awaitable[object]], pause: float = 0.05) -> AsyncIterator[None]:
    """Make calls, one after the other, until the block ends."""

    async def forever() -> None:
        while True:
            await call()
            await asyncio.sleep(pause)

    task = asyncio.create_task(forever())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_all_is_scraped(watched: Watched) -> None:
    async with asyncio.timeout(LIMIT):
        for job in ("skerry-control", "skerry-edge"):
            while await watched.prometheus.up(job) != [1.0]:
                await asyncio.sleep(0.2)


async def test_control_is_away(watched: Watched) -> None:
    control = watched.cluster.control
    control.wanted.clear()
    control.kill()
    await watched.fires("SkerryControlDown", "SkerryEdgeControlSilent")
    control.wanted.set()
    await watched.ends("SkerryControlDown", "SkerryEdgeControlSilent")


async def test_a_node_is_away(watched: Watched) -> None:
    front = watched.cluster.front
    front.wanted.clear()
    front.kill()
    alerts = "SkerryEdgeDown", "SkerryNodesOffline", "SkerryGroupOffline"
    await watched.fires(*alerts)
    front.wanted.set()
    await watched.ends(*alerts)


async def test_the_metadata_database_is_away(watched: Watched) -> None:
    database = watched.cluster.services.metadata
    await database.kill()
    await watched.fires("SkerryTargetsStale", "SkerryRequestsFail")
    await database.start()
    await watched.ends("SkerryTargetsStale", "SkerryRequestsFail")


async def test_the_metadata_database_is_slow(watched: Watched) -> None:
    server = psutil.Process(watched.cluster.services.metadata.pid)

    async def stop() -> None:
        """It stands still for a while, in which statements don't come to their limit."""
        family = [server, *server.children(recursive=True)]
        for process in family:
            process.suspend()
        try:
            await asyncio.sleep(1.5)
        finally:
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()

    async with repeating(stop, 0.5):
        await watched.fires("SkerryDatabaseSlow")
    await watched.ends("SkerryDatabaseSlow")


async def test_somebody_guesses_tokens(watched: Watched) -> None:
    url = f"https://{watched.cluster.control_address}/v1/nodes"
    headers = {"authorization": "Bearer sko_00000000-0000-0000-0000-000000000000_guessed"}
    connector = aiohttp.TCPConnector(ssl=False)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as http:

        async def guess() -> None:
            async with http.get(url) as answer:
                assert answer.status in (401, 429, 503), answer.status

        async with repeating(guess):
            await watched.fires("SkerryAuthenticationsRefused")
    await watched.ends("SkerryAuthenticationsRefused")


async def test_a_release_fails_on_the_node(watched: Watched) -> None:
    made = watched.cluster
    for text in ("'xab'", "'xcd'"):
        await watched.write(f"INSERT INTO written VALUES ({text})")
    # The check's own rows are distinct, and the node's aren't.
    await made.prepare(range(2, 3), lambda _: "CREATE UNIQUE INDEX one ON written (length(id)) WHERE id LIKE 'x%'")
    await made.release(2)
    alerts = (
        "SkerrySyncsFail",
        "SkerryEdgeSyncsFail",
        "SkerryEdgeNotAtTarget",
        "SkerryNodesFailing",
        "SkerryNodesOverdue",
    )
    await watched.fires(*alerts)
    await watched.write("DELETE FROM written WHERE id = 'xcd'")
    await made.call("POST", f"/v1/nodes/{NODE}/retry")
    await made.converged(2)
    await watched.ends(*alerts)


async def test_calls_of_a_function_fail(watched: Watched) -> None:
    made = watched.cluster
    number = await made.push("bad", guest("trap"))
    release = await made.call("POST", "/v1/releases", {"functions": {"bad": number}})
    await made.converged(release["number"])
    async with repeating(lambda: watched.call("bad")):
        await watched.fires("SkerryEdgeCallsFail", "SkerryFunctionFails")
        number = await made.push("bad", guest("echo"))
        release = await made.call("POST", "/v1/releases", {"functions": {"bad": number}})
        await made.converged(release["number"])
        await watched.ends("SkerryEdgeCallsFail", "SkerryFunctionFails")


async def test_calls_of_a_function_are_slow(watched: Watched) -> None:
    async with repeating(lambda: watched.call(f"{SLOW}?ms=1500")):
        await watched.fires("SkerryEdgeCallsSlow", "SkerryFunctionSlow")
    async with repeating(lambda: watched.call(f"{SLOW}?ms=1")):
        await watched.ends("SkerryEdgeCallsSlow", "SkerryFunctionSlow")


async def test_a_function_kills_its_workers(watched: Watched) -> None:
    made = watched.cluster
    number = await made.push("bad", guest("loop"), time_limit_ms=100)
    release = await made.call("POST", "/v1/releases", {"functions": {"bad": number}})
    await made.converged(release["number"])
    async with repeating(lambda: watched.call("bad")):
        await watched.fires("SkerryEdgeCircuitOpen", "SkerryEdgeWorkersDie")
        number = await made.push("bad", guest("echo"))
        release = await made.call("POST", "/v1/releases", {"functions": {"bad": number}})
        await made.converged(release["number"])
        await watched.ends("SkerryEdgeCircuitOpen", "SkerryEdgeWorkersDie")


async def test_the_disk_fills(watched: Watched) -> None:
    filled = watched.cluster.folder / "filled"
    size = int(shutil.disk_usage(watched.cluster.folder).free * 2 * ROOM)
    with filled.open("wb") as file:
        await asyncio.to_thread(os.posix_fallocate, file.fileno(), 0, size)
    try:
        await watched.fires("SkerryEdgeDiskLow", "SkerryGroupDiskLow")
    finally:
        filled.unlink()
    await watched.ends("SkerryEdgeDiskLow", "SkerryGroupDiskLow")


async def test_a_long_read_keeps_the_log_from_being_moved(watched: Watched) -> None:
    database = watched.cluster.folder / "edge" / wal.FILE
    async with holder(database, "BEGIN", "SELECT count(*) FROM written"):
        text = "substr(replace(hex(zeroblob(500)), '00', 'ab'), 1, 1000)"
        rows = "WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 100)"
        number, status = 0, 200
        # The metric is some seconds old: the log may be at its limit before it says so.
        while status == 200 and await watched.metric("skerry_edge_wal_bytes") < 0.6 * LOG_LIMIT:
            number += 1
            sql = f"INSERT INTO written {rows} SELECT {number} || '-' || x || {text} FROM c"
            status = await watched.call(WRITE, orjson.dumps({"sql": sql}))
        assert status in (200, 503)
        await watched.fires("SkerryEdgeLogLong", "SkerryGroupLogLong")
    delete = orjson.dumps({"sql": "DELETE FROM written WHERE id LIKE '%-%'"})
    async with asyncio.timeout(LIMIT):
        while await watched.call(WRITE, delete) != 200:
            await asyncio.sleep(0.2)
    await watched.ends("SkerryEdgeLogLong", "SkerryGroupLogLong")


async def test_another_program_holds_the_database(watched: Watched) -> None:
    database = watched.cluster.folder / "edge" / wal.FILE
    delete = orjson.dumps({"sql": "DELETE FROM written"})
    async with holder(database, "BEGIN IMMEDIATE"), repeating(lambda: watched.call(WRITE, delete)):
        await watched.fires("SkerryEdgeDatabaseHeld")
    await watched.ends("SkerryEdgeDatabaseHeld")


async def test_a_certificate_ends_soon(watched: Watched) -> None:
    front, folder = watched.cluster.front, watched.folder / "tls"
    # Alerts are for what ends within 14 days.
    files = watched.authority.issue("the node's", timedelta(days=10)).put(folder, "node")
    settings = dict(zip(("SKERRY_EDGE_TLS_CERT", "SKERRY_EDGE_TLS_KEY"), map(str, files), strict=True))
    front.environment |= settings
    front.kill()
    await watched.fires("SkerryEdgeCertificateEnds", "SkerryGroupCertificateEnds")
    watched.authority.issue("the node's", timedelta(days=60)).put(folder, "node")
    await watched.ends("SkerryEdgeCertificateEnds", "SkerryGroupCertificateEnds")
    for name in settings:
        del front.environment[name]
    front.kill()


async def test_controls_certificate_ends_soon(watched: Watched) -> None:
    control, folder = watched.cluster.control, watched.folder / "tls"
    before = {name: control.environment[name] for name in ("SKERRY_TLS_CERT", "SKERRY_TLS_KEY")}
    files = watched.authority.issue("control's", timedelta(days=10)).put(folder, "control")
    control.environment |= dict(zip(before, map(str, files), strict=True))
    control.kill()
    await watched.fires("SkerryCertificateEnds")
    control.environment |= before
    control.kill()
    await watched.ends("SkerryCertificateEnds")


async def test_a_credential_ends_soon(watched: Watched) -> None:
    made = watched.cluster
    life = {"SKERRY_CREDENTIAL_LIFE": "5"}
    made.control.environment |= life
    made.control.kill()
    # The node's credential has ended: it gets another one, which is good for as short a time.
    await watched.fires("SkerryEdgeCredentialEnds", "SkerryGroupCredentialEnds")
    for name in life:
        del made.control.environment[name]
    made.control.kill()
    # With the longer life its credential is good again; a node looks for another identity where it is refused.
    await made.call("POST", f"/v1/nodes/{NODE}/revoke")
    token = (await made.call("POST", "/v1/join-tokens", {"rejoin": NODE}))["token"]
    await join(made.folder / "edge", f"https://{made.control_address}", token, NODE, {}, again=True)
    await watched.ends("SkerryEdgeCredentialEnds", "SkerryGroupCredentialEnds")


async def test_a_message_to_a_webhook_is_given_up(watched: Watched) -> None:
    made = watched.cluster
    async with receiving() as gone:
        gone.answers = lambda message: 410
        await made.call("POST", "/v1/webhooks", {"name": "gone", "url": gone.url, "kinds": ["node.online"]})
        await made.call("POST", "/v1/webhooks/gone/test")
        await watched.fires("SkerryWebhookGivenUp")
    await made.call("DELETE", "/v1/webhooks/gone")
    await watched.ends("SkerryWebhookGivenUp")


def panels() -> Iterator[tuple[str, str]]:
    """Title and query of each panel of the dashboard, for all nodes and functions."""
    for panel in orjson.loads((ALERTS / "dashboard.json").read_bytes())["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"].replace("$__rate_interval", "1m")
            yield panel["title"], re.sub(r"\$\w+", ".*", query)


async def test_each_panel_of_the_dashboard_shows_something(watched: Watched) -> None:
    calls = itertools.cycle((f"{SLOW}?ms=1", f"{WRITE}?status=500", "none"))
    # What a fleet has none of where all is well, or that this node needn't have.
    none = "denied|auth_failures|failing_nodes|worker_deaths|edge_certificate|edge_credential"
    empty = [(title, query) for title, query in panels() if not re.search(none, query)]
    async with repeating(lambda: watched.call(next(calls))):
        end = time.monotonic() + LIMIT
        while empty and time.monotonic() < end:
            await asyncio.sleep(1)
            empty = [(title, query) for title, query in empty if not await watched.prometheus.query(query)]
    assert empty == []
    for _, query in panels():
        await watched.prometheus.query(query)


def alerts() -> Iterator[str]:
    for line in (ALERTS / "rules.yml").read_text().splitlines():
        if line.strip().startswith("- alert: "):
            yield line.partition(": ")[2].strip()


async def test_each_alert_was_made_to_fire(watched: Watched, request: pytest.FixtureRequest) -> None:
    """A new one fails here until there is a test of it above."""
    ran = {item.name for item in request.session.items if item.path == request.path}
    if len(ran) == len([name for name in globals() if name.startswith("test_")]):
        assert watched.seen == {*alerts()}
