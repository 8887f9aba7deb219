"""The node's metrics in the text format of Prometheus, collected when they are asked for."""

from collections.abc import Iterable
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from edge_runtime.dispatch.pool import Pool
from edge_runtime.dispatch.served_functions import TIMES
from edge_runtime.ipc.zygote_client import ZygoteClient
from edge_runtime.logs import dropped
from edge_runtime.release.checkpoint_schedule import CheckpointSchedule
from edge_runtime.web.callers import Callers

_BOUNDS: Final = (*map(str, TIMES), "+Inf")
_UNKNOWN: Final = ""
"""Value of the label `function` for calls of names that aren't functions of the release."""


class PoolCollector(Collector):
    def __init__(
        self, pool: Pool, processes: ZygoteClient, checkpoints: CheckpointSchedule, callers: Callers | None = None
    ) -> None:
        self._callers = callers
        self._pool = pool
        self._processes = processes
        self._checkpoints = checkpoints

    def collect(self) -> Iterable[Metric]:
        pool = self._pool
        calls = CounterMetricFamily("skerry_edge_calls", "Calls by their outcome", labels=["function", "outcome"])
        seconds = HistogramMetricFamily(
            "skerry_edge_call_seconds", "Time of calls in workers that they didn't end", labels=["function"]
        )
        denied = CounterMetricFamily(
            "skerry_edge_denied", "Uses of what a function's manifest doesn't grant", labels=["function", "kind"]
        )
        recent = GaugeMetricFamily(
            "skerry_edge_recent_seconds", "Time of a call, as the recent ones took", labels=["function"]
        )
        left_out = CounterMetricFamily(
            "skerry_edge_function_log_dropped", "Lines of its log that were left out", labels=["function"]
        )
        for tally in pool.tallies.values():
            left_out.add_metric([tally.name], tally.log_dropped)
            for outcome, count in tally.outcomes.items():
                calls.add_metric([tally.name, outcome], count)
            counts = zip(_BOUNDS, accumulate(tally.times), strict=True)
            seconds.add_metric([tally.name], list(counts), tally.total)
            recent.add_metric([tally.name], tally.recent)
            for kind, times in tally.denied.items():
                denied.add_metric([tally.name, kind], times)
        for outcome, count in pool.refusals.items():
            calls.add_metric([_UNKNOWN, outcome], count)
        yield calls
        yield seconds
        yield recent
        yield denied
        yield left_out
        yield CounterMetricFamily("skerry_edge_log_dropped", "Lines of its log that were dropped", value=dropped())
        yield from self._functions()
        if self._callers is not None:
            yield self._calls_of(self._callers)
        yield GaugeMetricFamily("skerry_edge_waiting_calls", "Calls in the queue", value=pool.waiting)
        yield GaugeMetricFamily(
            "skerry_edge_running_calls", "Calls in workers", value=sum(len(link.jobs) for link in pool.links)
        )
        usable = sum(link.usable and not link.spare for link in pool.links)
        yield GaugeMetricFamily("skerry_edge_workers", "Workers that are fit for calls", value=usable)
        yield CounterMetricFamily("skerry_edge_worker_deaths", "Workers that ended", value=pool.deaths)
        yield CounterMetricFamily("skerry_edge_zygotes", "Zygotes that were started", value=self._processes.zygotes)
        wal = self._checkpoints
        yield GaugeMetricFamily("skerry_edge_wal_bytes", "The database's write-ahead log", value=wal.size)
        yield GaugeMetricFamily("skerry_edge_wal_limit_bytes", "From which on writes are refused", value=wal.limit)
        yield CounterMetricFamily("skerry_edge_checkpoints", "Times that the log could begin anew", value=wal.made)
        sizes = wal.sizes()
        yield GaugeMetricFamily("skerry_edge_database_bytes", "The database file", value=sizes.file)
        yield GaugeMetricFamily("skerry_edge_database_free_bytes", "Pages of it that hold nothing", value=sizes.free)
        yield GaugeMetricFamily("skerry_edge_wal_file_bytes", "The log's file", value=sizes.log)
        yield GaugeMetricFamily("skerry_edge_disk_free_bytes", "Free on the database's disk", value=sizes.disk_free)
        yield GaugeMetricFamily(
            "skerry_edge_database_held", "1 while another program holds the database", value=int(bool(pool.held_by))
        )
        if pool.release is not None:
            yield GaugeMetricFamily("skerry_edge_release", "Number of the release", value=pool.release.number)
            yield GaugeMetricFamily("skerry_edge_generation", "Its generation", value=pool.release.generation)

    def _calls_of(self, callers: Callers) -> Metric:
        """Return how the calls of each caller in the file ended; calls of nobody in the file have no caller."""
        made = CounterMetricFamily(
            "skerry_edge_caller_calls", "Calls of callers by their outcome", labels=["caller", "function", "outcome"]
        )
        for caller in callers:
            for (function, outcome), count in caller.counts.items():
                made.add_metric([caller.name, function, outcome], count)
        made.add_metric(["", _UNKNOWN, "caller_unknown"], callers.unknown)
        return made

    def _functions(self) -> Iterable[Metric]:
        """Return the metrics of the functions that are served."""
        waiting = GaugeMetricFamily("skerry_edge_function_waiting", "Calls in its queue", labels=["function"])
        running = GaugeMetricFamily("skerry_edge_function_running", "Calls in workers", labels=["function"])
        is_open = GaugeMetricFamily("skerry_edge_circuit_open", "1 while it is cut off", labels=["function"])
        opened = CounterMetricFamily("skerry_edge_circuit_opened", "Times it was cut off", labels=["function"])
        for name, served in self._pool.functions.items():
            queue = self._pool.queues.of(name)
            waiting.add_metric([name], len(queue.calls))
            running.add_metric([name], sum(queue.links.values()))
            is_open.add_metric([name], int(not served.breaker.closed))
            opened.add_metric([name], served.breaker.opened)
        return waiting, running, is_open, opened


class EdgeMetrics:
    def __init__(
        self, pool: Pool, processes: ZygoteClient, checkpoints: CheckpointSchedule, callers: Callers | None = None
    ) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(PoolCollector(pool, processes, checkpoints, callers))

    def text(self) -> bytes:
        """Return the metrics in the exposition format."""
        return generate_latest(self._registry)
