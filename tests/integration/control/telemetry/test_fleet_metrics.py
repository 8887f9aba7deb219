"""The fleet's metrics: what Prometheus reads, who may read it, and what it costs."""

import logging
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from control.problems import ProblemError
from control.protocol import wire
from control.settings import ControlSettingsError, check
from control.sync import fleet_cache
from control.telemetry import fleet_metrics
from tests.support import numbers, seeds
from tests.support.replica import Replica, Site
from tests.support.replica import running as server_running
from tests.support.standings import group, node


@pytest.fixture(autouse=True)
def read_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_metrics, "TOLD_EVERY", 0.0)


Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def scraped(replica: Replica) -> Samples:
    answer = await replica.call("GET", "/metrics")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    families = list(text_string_to_metric_families(answer.body.decode()))
    assert len({family.name for family in families}) == len(families)
    assert all(family.documentation and family.type != "unknown" for family in families)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def of(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return name, tuple(sorted(labels.items()))


async def test_only_who_may_read_everything_gets_them(control_site: Site) -> None:
    async with control_site.running() as replica:
        assert (await replica.call("GET", "/metrics", token="")).status == 401
        made = {"name": "shops-only", "grants": [{"role": "admin", "group": "default"}]}
        limited = (await replica.call("POST", "/v1/operators", made)).json()["token"]
        assert (await replica.call("GET", "/metrics", token=limited)).status == 403
        reader = (await replica.call("POST", "/v1/operators", {"name": "prometheus", "role": "read"})).json()["token"]
        assert (await replica.call("GET", "/metrics", token=reader)).status == 200
        node = await replica.join("one")
        assert (await replica.call("GET", "/metrics", token=node.credential)).status == 401


async def test_a_listener_of_its_own_serves_them_without_a_token(control_site: Site) -> None:
    settings = replace(control_site.settings, metrics_listen="127.0.0.1:0")
    async with server_running(settings) as server, aiohttp.ClientSession() as session:
        assert server.metrics_url.startswith("http://127.0.0.1:")

        async def ask(method: str, path: str) -> tuple[int, bytes]:
            async with session.request(method, server.metrics_url.removesuffix("/metrics") + path) as answer:
                return answer.status, await answer.read()

        status, body = await ask("GET", "/metrics")
        assert status == 200
        assert b"skerry_nodes{" in body
        assert [(await ask(*asked))[0] for asked in (("GET", "/v1/nodes"), ("GET", "/"), ("POST", "/metrics"))] == [
            *(404, 404, 405)
        ]


@pytest.mark.parametrize("text", ["everywhere", "127.0.0.1", "127.0.0.1:", "127.0.0.1:99999", ":9464", "a:b:9"])
def test_a_listener_that_makes_no_sense_is_refused(control_site: Site, text: str) -> None:
    with pytest.raises(ControlSettingsError, match="SKERRY_METRICS_LISTEN"):
        check(replace(control_site.settings, metrics_listen=text))


async def test_how_nodes_stand(control_site: Site) -> None:
    async with control_site.running() as replica:
        await group(replica, "shops", 2)
        for number in range(3):
            await node(replica, f"well-{number}", "shops", confirmed=20)
        await node(replica, "late", "shops", confirmed=10, overdue=True)
        await node(replica, "bad", "shops", confirmed=10, code='a"b\\c\nd', overdue=True)
        await node(replica, "gone", "shops", code="disk_full", removed=True, overdue=True)
        found = await scraped(replica)
        assert {key: value for key, value in found.items() if key[0] == "skerry_nodes" and value} == {
            of("skerry_nodes", group="shops", standing="at_target", release="2"): 3,
            of("skerry_nodes", group="shops", standing="behind", release="1"): 1,
            of("skerry_nodes", group="shops", standing="failing", release="1"): 1,
        }
        # A standing that no node has is there, and 0: else an alert on it wouldn't end.
        assert found[of("skerry_nodes", group="shops", standing="offline", release="2")] == 0
        assert found[of("skerry_failing_nodes", group="shops", code='a"b\\c\nd')] == 1
        assert found[of("skerry_overdue_nodes", group="shops")] == 2
        assert found[of("skerry_overdue_nodes", group="default")] == 0
        assert found[of("skerry_group_release", group="shops")] == 2


async def test_codes_that_nodes_make_up_are_bounded(control_site: Site) -> None:
    async with control_site.running() as replica:
        await group(replica, "shops", 1)
        for number in range(60):
            await node(replica, f"n{number}", "shops", code=f"code-{number}")
        codes = {
            dict(key[1])["code"]: n for key, n in (await scraped(replica)).items() if key[0] == "skerry_failing_nodes"
        }
        assert (len(codes), codes["others"]) == (51, 10)


async def test_calls_and_what_nodes_tell_of_themselves(control_site: Site) -> None:
    async with control_site.running() as replica:
        made = await replica.join("one")
        for function in ("beta", "alpha"):
            await seeds.function(replica, function)
        await seeds.release(replica, functions={"beta": 1, "alpha": 1})
        await made.sync()
        told = wire.NodeNumbers(1000, 200, 5_000_000, 77, 1_900_000_000, 1_800_000_000, "1.2.3", 2, 3, 4)
        sent = [numbers.function(0, calls=5, seconds=0.003), numbers.function(1, calls=7, seconds=3.0, guest_trap=2)]
        await numbers.tell(made, numbers.message(sent, node=told))
        await replica.services.numbers.resolve()
        await replica.services.numbers.nodes.write()
        found = await scraped(replica)
        beta = {"group": "default", "function": "beta", "release": "1"}
        assert found[of("skerry_function_calls_total", **beta, outcome="ok")] == 5
        assert found[of("skerry_function_calls_total", **beta, outcome="guest_trap")] == 2
        buckets = [
            found[of("skerry_function_seconds_bucket", **beta, le=le)] for le in ("0.001953125", "1.0", "4.0", "+Inf")
        ]
        assert buckets == [0, 0, 7, 7]
        assert found[of("skerry_function_seconds_count", **beta)] == 7
        assert found[of("skerry_function_seconds_sum", **beta)] == pytest.approx(21, rel=0.1)
        alpha = {**beta, "function": "alpha"}
        assert found[of("skerry_function_seconds_bucket", **alpha, le="0.00390625")] == 5
        assert found[of("skerry_group_nodes", group="default", version="1.2.3")] == 1
        of_group = {key[0]: value for key, value in found.items() if key[1] == (("group", "default"),)}
        expected = {
            "skerry_group_database_bytes": 1000,
            "skerry_group_largest_database_bytes": 1000,
            "skerry_group_largest_wal_bytes": 200,
            "skerry_group_least_disk_free_bytes": 5_000_000,
            "skerry_group_memory_bytes": 77,
            "skerry_group_certificate_expiry_timestamp_seconds": 1_900_000_000,
            "skerry_group_credential_expiry_timestamp_seconds": 1_800_000_000,
            "skerry_group_worker_deaths_total": 2,
            "skerry_group_log_dropped_total": 3,
            "skerry_group_failed_syncs_total": 4,
        }
        assert {name: of_group.get(name) for name in expected} == expected
        assert found[of("skerry_node_numbers_total", result="taken")] == 1
        # Only grows, over a minute's end too, and has the newest two releases.
        for release in (2, 3):
            await seeds.release(replica, functions={"beta": 1})
            await made.poll()
            sent = [numbers.function(0, release=release, calls=release)]
            await numbers.tell(made, numbers.message(sent, sequence=release))
            await replica.services.numbers.resolve()
        replica.services.numbers._turn(replica.services.clock.now())
        found = await scraped(replica)
        counts = {
            (dict(key[1])["function"], dict(key[1])["release"]): value
            for key, value in found.items()
            if key[0] == "skerry_function_seconds_count"
        }
        assert counts == {("alpha", "2"): 2, ("alpha", "3"): 3}


async def test_no_metric_has_a_nodes_name(control_site: Site) -> None:
    async with control_site.running() as replica:
        made = await replica.join("a-very-special-name")
        await numbers.tell(made, numbers.message([], node=wire.NodeNumbers(database=1)))
        await replica.services.numbers.nodes.write()
        answer = await replica.call("GET", "/metrics")
        assert b"special" not in answer.body


async def test_latencies_of_the_database_and_the_store(control_site: Site) -> None:
    async with control_site.running() as replica:
        await replica.call("GET", "/v1/nodes")
        await seeds.function(replica, "hello")
        found = await scraped(replica)
        assert found[of("skerry_database_seconds_count", work="lists")] > 0
        assert found[of("skerry_database_seconds_count", work="targets")] > 0
        assert found[of("skerry_artifact_store_seconds_count")] > 0
        assert found[of("skerry_certificate_expiry_timestamp_seconds")] > 1_700_000_000


async def test_a_scrape_while_the_database_is_away(control_site: Site, monkeypatch: Any, caplog: Any) -> None:
    """It has what this process knows, and the fleet's gauges are left out rather than told as they were."""
    async with control_site.running() as replica:
        assert of("skerry_overdue_nodes", group="default") in await scraped(replica)

        async def away(work: Any) -> Any:
            raise ProblemError("database_unavailable", "away")

        monkeypatch.setattr(replica.services.databases.lists, "read", away)
        caplog.clear()
        found = await scraped(replica)
        assert of("skerry_overdue_nodes", group="default") not in found
        assert of("skerry_held_polls") in found
        # Others may tell of what earlier tests left to the garbage collector, or have left the log telling more.
        told = [record for record in caplog.records if record.name.startswith("skerry")]
        assert [record for record in told if record.levelno >= logging.ERROR] == []


async def test_they_are_there_while_the_targets_are_not_known(
    control_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the metadata database is away is when somebody looks."""
    async with control_site.running() as replica:
        assert (await replica.call("GET", "/metrics")).status == 200
        monkeypatch.setattr(type(replica.services.fleet), "fresh", False)
        monkeypatch.setattr(fleet_cache, "READING_PATIENCE", 0.0)
        assert (await replica.call("GET", "/v1/nodes")).status == 503
        assert of("skerry_fleet_age_seconds") in await scraped(replica)
