"""What a replica counts, for Prometheus. Each replica has a registry of its own, so several can live in a process."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 30)


class Metrics:
    """The counters. A call costs about a microsecond: the children of labels are kept."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "skerry_http_requests", "HTTP requests answered", ["method", "route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "skerry_http_request_seconds",
            "Time from a request's head to its answer; held polls included",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._polls = Counter("skerry_polls", "Polls, by what they were answered", ["answer"], registry=registry)
        self._syncs = Counter("skerry_syncs", "Syncs, opened and by how they ended", ["status"], registry=registry)
        self._auth_failures = Counter("skerry_auth_failures", "Refused authentications", ["reason"], registry=registry)
        self.heartbeats = Counter("skerry_heartbeats", "Nodes seen, as written to the database", registry=registry)
        self.retries = Counter(
            "skerry_database_retries", "Transactions run again after a serialization conflict", registry=registry
        )
        self._held = Gauge("skerry_held_polls", "Polls that wait for a new target", registry=registry)
        self._nodes = Gauge("skerry_nodes", "Nodes that this replica knows", registry=registry)
        self._age = Gauge(
            "skerry_fleet_age_seconds", "Since the targets were last read from the database", registry=registry
        )
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._answers: dict[str, Counter] = {}

    def watch(self, held: Callable[[], float], nodes: Callable[[], float], age: Callable[[], float]) -> None:
        """Give the gauges their sources, which are asked at each scrape."""
        self._held.set_function(held)
        self._nodes.set_function(nodes)
        self._age.set_function(age)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request; `route` is a pattern, never a path that a client chose."""
        try:
            counter, histogram = self._children[method, route, status]
        except KeyError:
            counter, histogram = self._requests.labels(method, route, str(status)), self._seconds.labels(route)
            self._children[method, route, status] = counter, histogram
        counter.inc()
        histogram.observe(seconds)

    def poll(self, answer: str) -> None:
        """Count a poll: `at_target`, `plan`, `report`, `waits` (a failed generation) or a problem's code."""
        try:
            counter = self._answers[answer]
        except KeyError:
            counter = self._answers[answer] = self._polls.labels(answer)
        counter.inc()

    def sync(self, status: str, count: int = 1) -> None:
        """Count syncs that were `opened`, or ended with a status of the log, or `late`."""
        self._syncs.labels(status).inc(count)

    def auth_failure(self, reason: str) -> None:
        self._auth_failures.labels(reason).inc()

    def retried(self) -> None:
        self.retries.inc()

    def render(self) -> bytes:
        """The exposition, in the text format of `CONTENT_TYPE`."""
        return generate_latest(self.registry)
