"""What is counted of each function's calls, as records: made when an operator asks, and not before."""

import asyncio
import time
from typing import Any, Final

from control.protocol import histogram, wire
from edge_runtime.dispatch.pool import Pool
from edge_runtime.telemetry import records
from edge_runtime.telemetry.call_counts import CallCounts
from edge_runtime.telemetry.search import FoundLines

AT_ONCE: Final = 50
"""Records that are made before other work gets the loop."""


class FunctionRecords:
    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._since = records.time_text(time.time())

    async def told(self, question: wire.Question) -> FoundLines:
        """Return a record of each function and release: those that are served, and earlier ones that had calls. Where
        there are more than the question wants, those with the most failed calls, then those with the most calls."""
        found = self._counted(question.function)
        found.sort(key=lambda one: (-one[3].failed, -one[3].calls))
        now = records.time_text(time.time())
        lines = []
        for number, (name, version, release, counts) in enumerate(found[: question.limit], 1):
            lines.append(records.encode(self._record(now, name, version, release, counts))[:-1])
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
        return FoundLines(lines, len(found) > len(lines))

    def _counted(self, only: str) -> list[tuple[str, int, int, CallCounts]]:
        """Return name, version and release of what is counted, with its counts. The version is 0 where it isn't served
        any more, the release 0 for those before the newest ones."""
        found = []
        for tally in self._pool.tallies.values():
            if only not in ("", tally.name):
                continue
            served = self._pool.functions.get(tally.name)
            for release, counts in (*tally.counts.items(), (0, tally.earlier)):
                runs = served is not None and counts is served.counts
                if runs or counts.times:
                    version = served.function.version if served is not None and runs else 0
                    found.append((tally.name, version, release, counts))
        return found

    def _record(self, now: str, name: str, version: int, release: int, counts: CallCounts) -> dict[str, Any]:
        return {
            "t": now,
            "kind": records.FUNCTION,
            "function": name,
            "version": version,
            "release": release,
            "since": self._since,
            "calls": counts.calls,
            "failed": counts.failed,
            "outcomes": {outcome: count for outcome, count in counts.outcomes.items() if outcome != "ok"},
            "p50": round(histogram.quantile(counts.times, 0.5) or 0.0, 6),
            "p99": round(histogram.quantile(counts.times, 0.99) or 0.0, 6),
        }
