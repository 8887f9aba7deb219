from prometheus_client.parser import text_string_to_metric_families

from control.metrics import ControlMetrics


def samples(metrics: ControlMetrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What a scraper reads, by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


async def test_what_is_counted_is_what_a_scraper_reads() -> None:
    metrics = ControlMetrics()
    metrics.watch(lambda: 3, lambda: 10, lambda: 0.25)
    for seconds in (0.0005, 0.001, 0.01, 100):
        metrics.request("POST", "/v1/poll", 204, seconds)
    metrics.request("GET", "/healthz", 200, 0.01)
    metrics.poll("at_target")
    metrics.poll("at_target")
    metrics.sync("opened", 2)
    metrics.sync("failed")
    metrics.auth_failure("unknown")
    metrics.heartbeats.inc(5)
    metrics.retried()
    found = samples(metrics)
    poll = ("route", "/v1/poll")
    expected = {
        ("skerry_http_requests_total", (("method", "POST"), poll, ("status", "204"))): 4,
        ("skerry_http_requests_total", (("method", "GET"), ("route", "/healthz"), ("status", "200"))): 1,
        ("skerry_http_request_seconds_bucket", (("le", "0.001"), poll)): 2,
        ("skerry_http_request_seconds_bucket", (("le", "0.02"), poll)): 3,
        ("skerry_http_request_seconds_bucket", (("le", "30.0"), poll)): 3,
        ("skerry_http_request_seconds_bucket", (("le", "+Inf"), poll)): 4,
        ("skerry_http_request_seconds_count", (poll,)): 4,
        ("skerry_polls_total", (("answer", "at_target"),)): 2,
        ("skerry_syncs_total", (("status", "opened"),)): 2,
        ("skerry_syncs_total", (("status", "failed"),)): 1,
        ("skerry_auth_failures_total", (("reason", "unknown"),)): 1,
        ("skerry_heartbeats_total", ()): 5,
        ("skerry_database_retries_total", ()): 1,
        ("skerry_held_polls", ()): 3,
        ("skerry_cached_nodes", ()): 10,
        ("skerry_fleet_age_seconds", ()): 0.25,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert abs(found["skerry_http_request_seconds_sum", (poll,)] - 100.0115) < 1e-6


def test_two_replicas_count_apart() -> None:
    one, two = ControlMetrics(), ControlMetrics()
    one.poll("plan")
    assert ("skerry_polls_total", (("answer", "plan"),)) not in samples(two)
