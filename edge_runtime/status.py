"""Reports what the node runs and the state of its parts: the document of /_skerry/status, and the counts of calls."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from control.protocol import version, wire
from control.protocol.histogram import quantile
from edge_runtime import clock
from edge_runtime.backup.uploader import Uploader
from edge_runtime.built import parts
from edge_runtime.dispatch.pool import Pool
from edge_runtime.dispatch.served_functions import Tally
from edge_runtime.dispatch.supervisor import Supervisor
from edge_runtime.ipc import frames
from edge_runtime.ipc.zygote_client import ZygoteClient
from edge_runtime.release.checkpoint_schedule import CheckpointSchedule
from edge_runtime.release.compiler import Compiler
from edge_runtime.release.integrity_check import IntegrityCheck
from edge_runtime.release.manager import ReleaseManager
from edge_runtime.release.secrets import Secrets
from edge_runtime.schedules.scheduler import Scheduler
from edge_runtime.telemetry import records
from edge_runtime.telemetry.call_counts import CallCounts
from edge_runtime.telemetry.ring import Ring
from edge_runtime.telemetry.search import FoundLines
from edge_runtime.web.callers import Callers
from edge_runtime.web.server import EdgeServer
from edge_runtime.web.tls_files import TlsFiles
from edge_runtime.web.token_file import TokenFile

AT_ONCE: Final = 50
"""Records that are made before other work gets to run in the loop."""


@dataclass(frozen=True)
class NodeStatus:
    """The parts of the front that the status covers."""

    pool: Pool
    supervisor: Supervisor
    processes: ZygoteClient
    manager: ReleaseManager
    compiler: Compiler
    secrets: Secrets
    verification: IntegrityCheck
    checkpoints: CheckpointSchedule
    server: EdgeServer
    callers: Callers | None
    tls_files: TlsFiles | None
    token_file: TokenFile | None
    ring: Ring
    scheduler: Scheduler
    backup: Uploader | None = None
    since: str = field(default_factory=lambda: records.time_text(time.time()))
    """The time since which calls are counted."""

    def document(self) -> dict[str, Any]:
        """Return the front's part of /_skerry/status; the agent adds the rest."""
        pool, release = self.pool, self.manager.release
        functions = release.functions if release is not None else []
        lacking = self.secrets.lacking(functions)
        fit = [link for link in pool.links if link.usable]
        own: dict[str, Any] = {
            "version": version.running().short,
            "built": parts.document(self.processes.uncompiled),
            "release": release
            and {"id": release.release_id, "number": release.number, "generation": release.generation},
            "schema_version": self.manager.inventory.schema_version,
            "secrets": {"file": str(self.secrets.path), "error": self.secrets.error or None},
            "verified": self.verification.status(),
            "functions": [self._function(f, lacking.get(f.name)) for f in functions],
            "workers": {
                "wanted": pool.settings.workers,
                "fit": sum(not link.spare for link in fit),
                "pids": sorted(link.child.pid for link in fit if not link.spare),
                "spares": sorted(link.child.pid for link in fit if link.spare and not link.jobs),
                "deaths": pool.deaths,
                "zygote": self.processes.pid,
                "unfenced": list(self.processes.lacking),
                "error": self.supervisor.trouble or None,
            },
            "connections": {
                "open": len(self.server.shared.live),
                "limit": self.server.limit,
                "unread_bytes": self.server.shared.unread.bytes,
                "given_up": self.server.shared.unread.given_up,
            },
            "calls": {
                "waiting": pool.waiting,
                "running": sum(len(link.jobs) for link in pool.links),
                "held": pool.hold.name.lower(),
                "refused": dict(pool.refusals),
            },
        }
        if self.callers is not None:
            own["callers"] = self.callers.status()
        if self.tls_files is not None:
            own["tls"] = self.tls_files.status()
        if self.token_file is not None:
            own["token"] = self.token_file.status()
        own["backup"] = self.backup.status() if self.backup is not None else None
        own["records"] = {"dropped": self.ring.lost, "error": self.ring.trouble or None}
        own["database"] = self.checkpoints.status()
        steps = self.manager.steps
        own["database"]["steps"] = {
            "unfinished": steps.busy,
            "doing": steps.doing or None,
            "error": None if steps.error is None else {"code": steps.error.code, "message": steps.error.message},
        }
        if (error := self.manager.error()) is not None:
            own["error"] = error
        return own

    def _function(self, local: frames.LocalFunction, lacking: frames.ChildFailure | None) -> dict[str, Any]:
        pool, name = self.pool, local.name
        tally, served = pool.tallies.get(name) or Tally(name), pool.functions.get(name)
        shown: dict[str, Any] = {
            "name": name,
            "version": local.version,
            "sha256": local.sha256,
            "runs": bool(local.code[0]),
            "compiled": bool(local.aot),
            "best": self.compiler.is_best(local),
            "lost": local.sha256 in self.compiler.lost,
            "recent_ms": round(tally.recent * 1000, 3),
            "calls": tally.outcomes,
            "releases": [_calls(counts) for counts in reversed(tally.counts.values())],
            "denied": dict(tally.denied),
            "schedule": self.scheduler.status(name),
            "error": msgspec.to_builtins(lacking) if lacking is not None else None,
        }
        if served is not None:
            queue, breaker = pool.queues.of(name), served.breaker
            shown |= {
                "waiting": len(queue.calls),
                "running": sum(queue.links.values()),
                "concurrency": queue.concurrency,
                "breaker": {
                    "state": breaker.state,
                    "opened": breaker.opened,
                    "seconds_left": 0 if breaker.closed else max(0.0, round(breaker.until - clock.monotonic(), 3)),
                },
            }
        return shown

    async def counts(self, question: wire.Question) -> FoundLines:
        """Return a record of each function and release: served ones, and earlier ones that had calls.

        If there are more than the question wants, those with the most failed calls come first, then those with the most
        calls.
        """
        found = self._counted(question.function)
        found.sort(key=lambda one: (-one[3].failed, -one[3].calls))
        now = records.time_text(time.time())
        lines = []
        for place, (name, number_of, release, counts) in enumerate(found[: question.limit], 1):
            lines.append(records.encode(self._record(now, name, number_of, release, counts))[:-1])
            if place % AT_ONCE == 0:
                await asyncio.sleep(0)
        return FoundLines(lines, len(found) > len(lines))

    def _counted(self, only: str) -> list[tuple[str, int, int, CallCounts]]:
        """Return name, version and release of what is counted, with its counts.

        The version is 0 if it isn't served any more, the release 0 for those before the newest ones.
        """
        found = []
        for tally in self.pool.tallies.values():
            if only not in ("", tally.name):
                continue
            served = self.pool.functions.get(tally.name)
            for release, counts in (*tally.counts.items(), (0, tally.earlier)):
                runs = served is not None and counts is served.counts
                if runs or counts.times:
                    number = served.function.version if served is not None and runs else 0
                    found.append((tally.name, number, release, counts))
        return found

    def _record(self, now: str, name: str, number: int, release: int, counts: CallCounts) -> dict[str, Any]:
        return {
            "t": now,
            "kind": records.FUNCTION,
            "function": name,
            "version": number,
            "release": release,
            "since": self.since,
            "calls": counts.calls,
            "failed": counts.failed,
            "outcomes": {outcome: count for outcome, count in counts.outcomes.items() if outcome != "ok"},
            "p50": round(quantile(counts.times, 0.5) or 0.0, 6),
            "p99": round(quantile(counts.times, 0.99) or 0.0, 6),
        }


def _calls(counts: CallCounts) -> dict[str, Any]:
    """Return the outcomes of a function's calls on one release."""
    median, slow = quantile(counts.times, 0.5), quantile(counts.times, 0.99)
    return {
        "release": counts.release,
        "calls": counts.calls,
        "errors": counts.failed,
        "p50_ms": None if median is None else round(median * 1000, 3),
        "p99_ms": None if slow is None else round(slow * 1000, 3),
    }
