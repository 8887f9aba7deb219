"""The node's metrics in the text format of Prometheus, collected on request."""

import platform
from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from control.protocol import version
from control.protocol.histogram import FOLDED, fold
from edge_runtime import clock
from edge_runtime.backup.uploader import Uploader
from edge_runtime.dispatch.pool import Pool
from edge_runtime.ipc.zygote_client import ZygoteClient
from edge_runtime.logs import dropped
from edge_runtime.release.checkpoint_schedule import CheckpointSchedule
from edge_runtime.schedules.scheduler import Scheduler
from edge_runtime.sync.node_agent import NodeAgent
from edge_runtime.telemetry.ring import Ring
from edge_runtime.web.callers import Callers
from edge_runtime.web.tls_files import TlsFiles

_BOUNDS: Final = (*map(str, FOLDED), "+Inf")
_UNKNOWN: Final = ""
"""The value of the label `function` for calls of names that aren't functions of the release."""


class PoolCollector(Collector):
    def __init__(
        self,
        pool: Pool,
        processes: ZygoteClient,
        checkpoints: CheckpointSchedule,
        callers: Callers | None = None,
        *,
        agent: NodeAgent | None = None,
        tls_files: TlsFiles | None = None,
        ring: Ring | None = None,
        backup: Uploader | None = None,
        scheduler: Scheduler | None = None,
    ) -> None:
        self._callers = callers
        self._agent = agent
        self._tls_files = tls_files
        self._ring = ring
        self._backup = backup
        self._scheduler = scheduler
        self._started = clock.monotonic()
        self._pool = pool
        self._processes = processes
        self._checkpoints = checkpoints

    def collect(self) -> Iterable[Metric]:
        pool = self._pool
        calls = CounterMetricFamily(
            "skerry_edge_calls", "Calls that ended, by how they did", labels=["function", "outcome"]
        )
        seconds = HistogramMetricFamily(
            "skerry_edge_call_seconds", "Time of calls, from their arrival to their end", labels=["function"]
        )
        denied = CounterMetricFamily(
            "skerry_edge_denied", "Uses of what a function's manifest doesn't grant", labels=["function", "kind"]
        )
        recent = GaugeMetricFamily(
            "skerry_edge_recent_seconds", "Time of a call in its worker, a moving mean", labels=["function"]
        )
        left_out = CounterMetricFamily(
            "skerry_edge_function_log_dropped", "Lines that were left out, as it logs too much", labels=["function"]
        )
        for tally in pool.tallies.values():
            left_out.add_metric([tally.name], tally.log_dropped)
            counts = tally.all
            for outcome, count in counts.outcomes.items():
                calls.add_metric([tally.name, outcome], count)
            buckets = zip(_BOUNDS, fold(counts.times), strict=True)
            seconds.add_metric([tally.name], list(buckets), counts.total)
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
        yield CounterMetricFamily("skerry_edge_log_dropped", "Lines of the node's log that were lost", value=dropped())
        if self._ring is not None:
            text = "Lines of its records that were dropped"
            yield CounterMetricFamily("skerry_edge_records_dropped", text, value=self._ring.lost)
            text = "1 while its records can't be written"
            yield GaugeMetricFamily("skerry_edge_records_failing", text, value=int(bool(self._ring.trouble)))
        yield from self._functions()
        if self._scheduler is not None:
            yield from _schedules(self._scheduler)
        yield from self._node()
        if self._callers is not None:
            yield self._calls_of(self._callers)
        yield GaugeMetricFamily("skerry_edge_waiting_calls", "Calls that wait for a worker", value=pool.waiting)
        yield GaugeMetricFamily(
            "skerry_edge_running_calls", "Calls that workers have", value=sum(len(link.jobs) for link in pool.links)
        )
        usable = sum(link.usable and not link.spare for link in pool.links)
        yield GaugeMetricFamily("skerry_edge_workers", "Workers that are fit for calls", value=usable)
        yield CounterMetricFamily(
            "skerry_edge_worker_deaths", "Workers that ended, whatever the reason", value=pool.deaths
        )
        yield CounterMetricFamily("skerry_edge_zygotes", "Zygotes that were started", value=self._processes.zygotes)
        wal = self._checkpoints
        yield GaugeMetricFamily("skerry_edge_wal_bytes", "Size of the database's write-ahead log", value=wal.size)
        yield GaugeMetricFamily(
            "skerry_edge_wal_limit_bytes", "Size of the log from which on writes are refused", value=wal.limit
        )
        yield CounterMetricFamily(
            "skerry_edge_checkpoints", "Times that the whole log was moved into the file", value=wal.made
        )
        sizes = wal.sizes()
        yield GaugeMetricFamily("skerry_edge_database_bytes", "Size of the database file", value=sizes.file)
        yield GaugeMetricFamily(
            "skerry_edge_database_free_bytes", "Part of the file that holds nothing", value=sizes.free
        )
        yield GaugeMetricFamily(
            "skerry_edge_wal_file_bytes", "Size of the file that has the write-ahead log", value=sizes.log
        )
        yield GaugeMetricFamily("skerry_edge_disk_free_bytes", "Free on the database's disk", value=sizes.disk_free)
        yield GaugeMetricFamily(
            "skerry_edge_database_held", "1 while another program holds the database", value=int(bool(pool.held_by))
        )
        if self._backup is not None and self._backup.interval:
            yield from _backup(self._backup)
        if pool.release is not None:
            yield GaugeMetricFamily(
                "skerry_edge_release", "Number of the release that is served", value=pool.release.number
            )
            yield GaugeMetricFamily(
                "skerry_edge_generation", "Generation of the release that is served", value=pool.release.generation
            )

    def _node(self) -> Iterable[Metric]:
        """Return the metrics of the node itself: its software, its contact with control, and what will expire."""
        build = GaugeMetricFamily("skerry_edge_build_info", "1; the labels say what runs", labels=["version", "python"])
        build.add_metric([version.running().short, platform.python_version()], 1)
        yield build
        if self._agent is not None:
            facts = self._agent.facts()
            since = self._started if facts.heard is None else facts.heard
            yield GaugeMetricFamily(
                "skerry_edge_at_target",
                "1 where control said last that the node is at its target",
                value=facts.at_target,
            )
            yield GaugeMetricFamily(
                "skerry_edge_control_answer_age_seconds",
                "Time since control last answered a poll, or since the start",
                value=max(0.0, clock.monotonic() - since),
            )
            yield GaugeMetricFamily(
                "skerry_edge_credential_refused", "1 while control refuses the node's credential", value=facts.refused
            )
            yield CounterMetricFamily("skerry_edge_failed_syncs", "Syncs that failed", value=facts.failed_syncs)
            if facts.credential_ends is not None:
                yield GaugeMetricFamily(
                    "skerry_edge_credential_expiry_timestamp_seconds",
                    "When the node's credential ends",
                    value=facts.credential_ends,
                )
            if facts.trust_ends is not None:
                yield GaugeMetricFamily(
                    "skerry_edge_trust_expiry_timestamp_seconds",
                    "When the last CA ends by which the node trusts control",
                    value=facts.trust_ends,
                )
        if self._tls_files is not None and self._tls_files.expires is not None:
            yield GaugeMetricFamily(
                "skerry_edge_certificate_expiry_timestamp_seconds",
                "When the certificate of the local HTTPS ends",
                value=self._tls_files.expires,
            )

    def _calls_of(self, callers: Callers) -> Metric:
        """Return how the calls of each caller in the file ended; other calls have an empty caller."""
        made = CounterMetricFamily(
            "skerry_edge_caller_calls", "Calls of callers by their outcome", labels=["caller", "function", "outcome"]
        )
        for caller in callers:
            for (function, outcome), count in caller.counts.items():
                made.add_metric([caller.name, function, outcome], count)
        made.add_metric(["", _UNKNOWN, "caller_unknown"], callers.unknown)
        return made

    def _functions(self) -> Iterable[Metric]:
        """Return the metrics of the served functions."""
        waiting = GaugeMetricFamily(
            "skerry_edge_function_waiting", "Calls of it that wait for a worker", labels=["function"]
        )
        running = GaugeMetricFamily(
            "skerry_edge_function_running", "Calls of it that workers have", labels=["function"]
        )
        is_open = GaugeMetricFamily("skerry_edge_circuit_open", "1 while the function is cut off", labels=["function"])
        opened = CounterMetricFamily(
            "skerry_edge_circuit_opened", "Times that the function was cut off", labels=["function"]
        )
        for name, served in self._pool.functions.items():
            if name != served.function.name:
                continue
            queue = self._pool.queues.of(name)
            waiting.add_metric([name], len(queue.calls))
            running.add_metric([name], sum(queue.links.values()))
            is_open.add_metric([name], int(not served.breaker.closed))
            opened.add_metric([name], served.breaker.opened)
        return waiting, running, is_open, opened


def _schedules(scheduler: Scheduler) -> Iterable[Metric]:
    """Return the metrics of functions' schedules; `cron` is empty for calls after releases."""
    labels = ["function", "cron"]
    last = GaugeMetricFamily("skerry_edge_schedule_last_run_timestamp_seconds", "When it last ran", labels=labels)
    following = GaugeMetricFamily("skerry_edge_schedule_next_run_timestamp_seconds", "When it is due", labels=labels)
    late = GaugeMetricFamily(
        "skerry_edge_schedule_late_seconds", "How late it is, or its last run began", labels=labels
    )
    failed = CounterMetricFamily("skerry_edge_schedule_failures", "Ticks that failed", labels=labels)
    now = clock.now().timestamp()
    for line in scheduler.lines():
        key = [line.function, line.cron]
        if line.last_run is not None:
            last.add_metric(key, line.last_run)
        if (due := line.next_run) is not None:
            following.add_metric(key, due)
        late.add_metric(key, line.overdue(now))
        failed.add_metric(key, line.failures)
    return last, following, late, failed


def _backup(backup: Uploader) -> Iterable[Metric]:
    """Return the metrics of the node's backup, while there is one."""
    yield GaugeMetricFamily(
        "skerry_edge_backup_lag_seconds", "Time since when the store lacks what was written", value=backup.lag()
    )
    yield GaugeMetricFamily(
        "skerry_edge_backup_pending_bytes", "Files that wait on the node's disk for the store", value=backup.pending
    )
    yield GaugeMetricFamily(
        "skerry_edge_backup_interval_seconds", "Time between two uploads while somebody writes", value=backup.interval
    )
    yield GaugeMetricFamily(
        "skerry_edge_backup_failing",
        "1 while it doesn't go on, or its history was interrupted",
        value=int(backup.fails),
    )
    yield CounterMetricFamily("skerry_edge_backup_uploads", "Files that the store has got", value=backup.uploads)
    yield CounterMetricFamily(
        "skerry_edge_backup_failures", "Attempts to make or to upload a file that failed", value=backup.failures
    )


class EdgeMetrics:
    def __init__(
        self,
        pool: Pool,
        processes: ZygoteClient,
        checkpoints: CheckpointSchedule,
        callers: Callers | None = None,
        *,
        agent: NodeAgent | None = None,
        tls_files: TlsFiles | None = None,
        ring: Ring | None = None,
        backup: Uploader | None = None,
        scheduler: Scheduler | None = None,
    ) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(
            PoolCollector(
                pool,
                processes,
                checkpoints,
                callers,
                agent=agent,
                tls_files=tls_files,
                ring=ring,
                backup=backup,
                scheduler=scheduler,
            )
        )

    def text(self) -> bytes:
        """Return the metrics in the exposition format."""
        return generate_latest(self._registry)
