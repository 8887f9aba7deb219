"""A replica's metrics for Prometheus. Each replica has its own registry, so a process can have several replicas.

Requests and polls are counted in plain numbers, which become metrics when they are scraped: prometheus_client's
counters cost two microseconds per request, a tenth of a poll.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import accumulate, repeat

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from control.protocol import version

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0)
"""Upper bounds of the histogram of requests' times."""


NO_TIMES = [0.0] * (len(SECONDS) + 2)
"""An empty histogram: how many took up to each of `SECONDS`, how many took longer, and the sum of their seconds."""


class _Counts(Collector):
    """Counts of requests and polls.

    Requests are counted by method, route and status: how many took up to each of `SECONDS`, how many took longer, and
    the sum of their seconds. Polls are counted by answer.
    """

    def __init__(self) -> None:
        self.requests: defaultdict[tuple[str, str, int], list[float]] = defaultdict(NO_TIMES.copy)
        self.polls: defaultdict[str, int] = defaultdict(int)
        self.database: defaultdict[str, list[float]] = defaultdict(NO_TIMES.copy)
        self.store = NO_TIMES.copy()

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "skerry_http_requests", "HTTP requests answered", labels=["method", "route", "status"]
        )
        by_route: dict[str, list[float]] = {}
        for (method, route, status), counted in self.requests.items():
            requests.add_metric([method, route, str(status)], sum(counted[:-1]))
            by_route[route] = [a + b for a, b in zip(counted, by_route.get(route, repeat(0.0)), strict=False)]
        yield requests
        seconds = HistogramMetricFamily(
            "skerry_http_request_seconds", "From a request's head to its answer; held polls included", labels=["route"]
        )
        for route, counted in by_route.items():
            _add(seconds, [route], counted)
        yield seconds
        database = HistogramMetricFamily(
            "skerry_database_seconds",
            "Transactions of the metadata database, with their repetitions, by the kind of work",
            labels=["work"],
        )
        for work, counted in self.database.items():
            _add(database, [work], counted)
        yield database
        store = HistogramMetricFamily(
            "skerry_artifact_store_seconds", "Requests to the artifact store that carry no artifact", labels=[]
        )
        _add(store, [], self.store)
        yield store
        polls = CounterMetricFamily("skerry_polls", "Polls, by what they were answered", labels=["answer"])
        for answer, count in self.polls.items():
            polls.add_metric([answer], count)
        yield polls


def _add(family: HistogramMetricFamily, labels: list[str], counted: list[float]) -> None:
    *counts, total = counted
    bounds = (*map(str, SECONDS), "+Inf")
    family.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total)


class ControlMetrics:
    """The metrics of a replica."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._counts = _Counts()
        registry.register(self._counts)
        self._syncs = Counter("skerry_syncs", "Syncs, opened and by how they ended", ["status"], registry=registry)
        self._auth_failures = Counter("skerry_auth_failures", "Refused authentications", ["reason"], registry=registry)
        self.heartbeats = Counter("skerry_heartbeats", "Nodes seen, as written to the database", registry=registry)
        self._retries = Counter(
            "skerry_database_retries", "Transactions run again after a serialization conflict", registry=registry
        )
        self._webhooks = Counter(
            "skerry_webhook_attempts", "Attempts to send messages to webhooks, by result", ["result"], registry=registry
        )
        # The first increase of a series shows only if the series exists from the start.
        for status in ("opened", "succeeded", "failed", "expired", "superseded", "late"):
            self._syncs.labels(status)
        for result in ("delivered", "failed", "given_up"):
            self._webhooks.labels(result)
        build = Gauge("skerry_build_info", "1; the label says what runs", ["version"], registry=registry)
        build.labels(version.running().short).set(1)
        self._held = Gauge("skerry_held_polls", "Polls that wait for a new target", registry=registry)
        self._nodes = Gauge("skerry_cached_nodes", "Nodes that this replica has in memory", registry=registry)
        self._certificate: Gauge | None = None
        self._authorities: Gauge | None = None
        self._unfit = Gauge(
            "skerry_files_unfit",
            "1 while files that were changed can't be used, and what was read before stays in use",
            ["files"],
            registry=registry,
        )
        self._streams = Gauge(
            "skerry_console_streams", "Pages of the console that are sent what changes", registry=registry
        )
        self._views = Gauge(
            "skerry_record_views", "Views of nodes' records that operators have open", registry=registry
        )
        self._age = Gauge(
            "skerry_fleet_age_seconds", "Since the targets were last read from the database", registry=registry
        )

    def watch(self, held: Callable[[], float], nodes: Callable[[], float], age: Callable[[], float]) -> None:
        """Set the functions that each scrape calls: held polls, nodes, and seconds since the targets were read."""
        self._held.set_function(held)
        self._nodes.set_function(nodes)
        self._age.set_function(age)

    def watch_readers(self, streams: Callable[[], float], views: Callable[[], float]) -> None:
        """Set the functions that each scrape calls: the number of live console pages, and of views of records."""
        self._streams.set_function(streams)
        self._views.set_function(views)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request. `route` is a route's pattern, not a path: clients can make up any number of paths."""
        counted = self._counts.requests[method, route, status]
        counted[bisect_left(SECONDS, seconds)] += 1
        counted[-1] += seconds

    @property
    def database(self) -> defaultdict[str, list[float]]:
        """Return how long transactions of the metadata database took, by kind of work, each a list like `NO_TIMES`."""
        return self._counts.database

    def store(self, seconds: float) -> None:
        """Count a request to the artifact store."""
        self._counts.store[bisect_left(SECONDS, seconds)] += 1
        self._counts.store[-1] += seconds

    def certificates_end(self, own: datetime | None, authority: datetime | None) -> None:
        """Set when control's certificate and the last of the CAs for nodes end; None: there is none."""
        # A missing gauge means that there is no certificate; 0 would be an end long ago.
        if own is not None:
            self._certificate = self._certificate or Gauge(
                "skerry_certificate_expiry_timestamp_seconds",
                "When control's own certificate ends, or one between it and the CA that nodes trust",
                registry=self.registry,
            )
            self._certificate.set(own.timestamp())
        if authority is not None:
            self._authorities = self._authorities or Gauge(
                "skerry_ca_expiry_timestamp_seconds",
                "When the last of the CAs ends that nodes are to trust",
                registry=self.registry,
            )
            self._authorities.set(authority.timestamp())

    def watch_files(self, what: str, unfit: Callable[[], float]) -> None:
        """Set the function that each scrape calls for files that are reread: it returns 1 while they can't be used."""
        self._unfit.labels(what).set_function(unfit)

    def poll(self, answer: str) -> None:
        """Count a poll: `at_target`, `plan`, `report`, `watch`, `rehearse`, `back_up`, `restore`, `renamed`, `held` (at
        a restore), or `waits` (until it retries a failed target)."""
        self._counts.polls[answer] += 1

    def sync(self, status: str, count: int = 1) -> None:
        """Count syncs: `opened`, the status with which they ended, or `late` for a result that came after the end."""
        self._syncs.labels(status).inc(count)

    def auth_failure(self, reason: str) -> None:
        """Count a refused authentication."""
        self._auth_failures.labels(reason).inc()

    def webhook(self, result: str) -> None:
        """Count an attempt to send a message: `delivered`, `failed` (it will be retried), or `given_up`."""
        self._webhooks.labels(result).inc()

    def retried(self) -> None:
        """Count a transaction that is run again after a conflict."""
        self._retries.inc()

    def render(self) -> bytes:
        """Return the metrics in the text format of `CONTENT_TYPE`."""
        return generate_latest(self.registry)
