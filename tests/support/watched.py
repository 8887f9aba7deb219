"""A cluster that a real Prometheus watches, with a real Alertmanager and a receiver of what that sends."""

import asyncio
import contextlib
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from tests.guests.build import guest
from tests.support.certificates import Authority
from tests.support.cluster import SLOW, VERSION, WRITE, Cluster, cluster
from tests.support.deadlines import deadline, scaled
from tests.support.prometheus import ALERTS, Prometheus, prometheus, quick
from tests.support.webhook_receiver import Receiver, receiving

LIMIT = 150.0
"""Seconds for anything that must come to be."""
ROOM = 0.1
"""The share of the disk's free room that may be used before it counts as low, in the test's copy of the rules."""
LOG_LIMIT = 16 * 2**20
SCRAPED = """
min(min_over_time(up{job="skerry-control"}[3s])) == 1
and max(min_over_time(up{job=~"skerry-edge|skerry-edge-tls"}[3s])) == 1
"""
"""Has a result while control and the node have answered all scrapes for some evaluations of the rules."""
BAD = "bad"
"""The function whose versions tests choose."""


@dataclass
class Watched:
    """All that runs, and what became of the alerts."""

    cluster: Cluster
    prometheus: Prometheus
    receiver: Receiver
    folder: Path
    authority: Authority

    def told(self, alert: str) -> str:
        """What the Alertmanager said last of an alert: firing, while it is so with any labels, resolved, or '' where
        nothing."""
        last = ""
        for message in self.receiver.received:
            if message.body["groupLabels"]["alertname"] == alert:
                last = message.body["status"]
        return last

    async def fires(self, *alerts: str) -> None:
        """Wait until each of these alerts has been firing since this began, and the receiver was told.

        What happened once makes an alert that lasts for `WINDOW` seconds: another one may have ended meanwhile.
        """
        left = set(alerts)

        async def all_have() -> bool:
            firing = await self.prometheus.firing()
            left.difference_update({alert for alert in left if alert in firing and self.told(alert) == "firing"})
            return not left

        await self._until(alerts, all_have)

    async def ends(self, *alerts: str) -> None:
        """Wait until they aren't any more, and the receiver was told.

        One whose series are away, since its target didn't answer a scrape, hasn't ended.
        """

        async def all_have() -> bool:
            scraped = await self.prometheus.query(SCRAPED)
            firing = await self.prometheus.firing()
            return bool(scraped) and all(alert not in firing and self.told(alert) == "resolved" for alert in alerts)

        await self._until(alerts, all_have)

    async def _until(self, alerts: tuple[str, ...], so: Callable[[], Awaitable[bool]]) -> None:
        try:
            async with deadline(LIMIT):
                while not await so():
                    await asyncio.sleep(0.2)
        except TimeoutError:
            firing = await self.prometheus.firing()
            states = {alert: (alert in firing, self.told(alert)) for alert in alerts}
            raise self.cluster.failure(f"firing in Prometheus, and told by the Alertmanager: {states}") from None

    async def call(self, path: str, data: bytes = b"") -> int:
        """Call a function; the status of the answer, 0 where none came."""
        try:
            return (await self.cluster.ask(f"/functions/{path}", data))[0]
        except (aiohttp.ClientError, OSError):
            return 0

    async def serve(self, wasm: bytes, **manifest: Any) -> None:
        """Release another version of the function `BAD`, and wait until control knows that the node serves it.

        For two minutes from then on the node tells every few seconds how its calls went.
        """
        before = (await self.cluster.node())["target_generation"]
        number = await self.cluster.push(BAD, wasm, **manifest)
        await self.cluster.call("POST", "/v1/releases", {"functions": {BAD: number}, "now": True})
        seen: Any = None

        async def there() -> bool:
            nonlocal seen
            seen = await self.cluster.node()
            return bool(seen["generation"] > before and seen["at_target"])

        await self.cluster.until("control knows that the node serves the release", there, lambda: seen, scaled(LIMIT))

    async def tell_now(self) -> None:
        """Have the metrics show the node's own numbers as they are now.

        A node tells them about once a minute, and first of all soon after a change of release: it is started again, and
        gets another one. Control writes them once a minute, and when it ends.
        """
        async with deadline(LIMIT):
            before = await self._taken()
        self.cluster.front.kill()
        await self.serve(guest("echo"))

        async def told() -> bool:
            return await self._taken() > before

        await self.cluster.until("control has taken the node's own numbers", told, limit=scaled(LIMIT))
        await self.restart_control(signal.SIGTERM)

    async def restart_control(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End control, and wait until the next one answers: what a test does then is done to that one alone."""
        control = self.cluster.control
        before = control.starts
        control.kill(how)

        async def started() -> bool:
            return control.starts > before

        await self.cluster.until("control is started again", started, limit=scaled(LIMIT))
        async with deadline(LIMIT):
            await self._taken()

    async def _taken(self) -> float:
        """How often control has taken numbers of nodes since its start."""
        url = f"https://{self.cluster.control_address}/metrics"
        headers = {"authorization": f"Bearer {self.cluster.token}"}
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with self.prometheus.http.get(url, headers=headers, ssl=False) as answer:
                    if answer.status == 200:
                        lines = (await answer.text()).splitlines()
                        [line] = [one for one in lines if one.startswith('skerry_node_numbers_total{result="taken"}')]
                        return float(line.rpartition(" ")[2])
            await asyncio.sleep(0.1)

    async def write(self, sql: str) -> None:
        """Run a statement, again where the call's time was over on a busy machine."""
        async with deadline(LIMIT):
            while True:
                status, _, body = await self.cluster.ask(f"/functions/{WRITE}", orjson.dumps({"sql": sql}))
                if status != 504:
                    break
        assert status == 200, body
        assert b'"error"' not in body, body

    async def metric(self, name: str) -> float:
        """A metric of the node that has no labels, as it is now."""
        _, _, body = await self.cluster.ask("/_skerry/metrics")
        [line] = [line for line in body.decode().splitlines() if line.startswith(f"{name} ")]
        return float(line.partition(" ")[2])


@contextlib.asynccontextmanager
async def watching(folder: Path) -> AsyncIterator[Watched]:
    """Run all of it until the block ends; `folder` has what Prometheus and the Alertmanager keep."""
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
    """Make calls, one after the other, until the block ends; one that fails ends the block."""

    async def forever() -> None:
        while True:
            await call()
            await asyncio.sleep(pause)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(forever())
        yield
        task.cancel()
