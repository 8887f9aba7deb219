"""Events, from where they happen to a real receiver: what is sent, how it is signed, and what becomes of failures."""

import asyncio
import contextlib
import ipaddress
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from control import wire
from control.local.pki import Pki
from control.sync.leases import Leases
from control.telemetry import webhook_messages, webhook_sender
from control.telemetry.webhook_sender import WebhookSender
from control.web import tls
from tests.support import seeds
from tests.support.control import SettableClock, until
from tests.support.replica import Replica, Site
from tests.support.webhook_receiver import Received, Receiver, receiving

# The replica's own monitor stays out of it.
pytestmark = pytest.mark.usefixtures("quiet", "hurried")

ROOT = Path(__file__).parents[4]
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are made and sent at once."""
    monkeypatch.setattr(webhook_sender, "PERIOD", 0.02)
    monkeypatch.setattr(webhook_sender, "TAKE_EVERY", 0.2)
    monkeypatch.setattr(webhook_messages, "FIRST_WAIT", timedelta())
    monkeypatch.setattr(webhook_messages, "GATHER", 0.02)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as found:
        yield found


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
async def replica(control_site: Site, clock: SettableClock) -> AsyncIterator[Replica]:
    async with control_site.running(clock=clock, webhook_networks=LOOPBACK) as found:
        yield found


async def add(replica: Replica, url: str, name: str = "chat", **more: Any) -> Any:
    answer = await replica.call("POST", "/v1/webhooks", {"name": name, "url": url, **more})
    assert answer.status == 201, answer.body
    return answer.json()


async def send_test(replica: Replica, name: str = "chat") -> str:
    answer = await replica.call("POST", f"/v1/webhooks/{name}/test")
    assert answer.status == 201, answer.body
    return str(answer.json()["id"])


async def look(replica: Replica) -> None:
    """Heartbeats written, and one pass of the monitor."""
    await replica.services.heartbeats.flush()
    await replica.services.monitor().look(replica.services.clock.now())


async def got(receiver: Receiver, kind: str, count: int = 1) -> list[Received]:
    """The messages of a kind, once there are so many."""

    async def there() -> bool:
        return len(receiver.of(kind)) >= count

    await until(there)
    return receiver.of(kind)


def check(headers: dict[str, str], raw: bytes, secret: str, now: float) -> None:
    """What the how-to tells receivers to do, at the time `now`."""
    text = (ROOT / "docs" / "how-to" / "send-events.md").read_text()
    found: dict[str, Any] = {}
    exec(text.partition("```python\n")[2].partition("```")[0], found)
    found["time"] = SimpleNamespace(time=lambda: now)
    found["check"](headers, raw, secret)


async def told(receiver: Receiver, kind: str, **values: Any) -> Any:
    """What happened of a kind, once it is told; with these values."""

    async def found() -> Any:
        return next((item for item in receiver.items(kind) if values.items() <= item.items()), None)

    return await until(found)


async def deliveries(replica: Replica, **query: str) -> list[Any]:
    text = "&".join(f"{name}={value}" for name, value in query.items())
    answer = await replica.call("GET", f"/v1/webhook-deliveries?{text}")
    assert answer.status == 200, answer.body
    return list(answer.json()["items"])


async def one(replica: Replica, id: str, is_so: Callable[[Any], bool]) -> Any:
    """The delivery of a message, once it is so."""

    async def found() -> Any:
        return next((d for d in await deliveries(replica) if d["id"] == id and is_so(d)), None)

    return await until(found)


async def test_a_node_that_goes_offline_is_told_signed_over_tls(
    control_site: Site, clock: SettableClock, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(pki.ca))
    async with (
        receiving(tls.server_context(pki.certificate, pki.key)) as receiver,
        control_site.running(clock=clock, webhook_networks=LOOPBACK) as replica,
    ):
        secret = (await add(replica, receiver.url))["secret"]
        await replica.join("shop-1")
        clock.advance(seconds=76)
        await look(replica)
        [message] = await got(receiver, "node.offline")
        message.verify(secret, clock.now().timestamp())
        with pytest.raises(AssertionError):
            message.verify("whsec_" + "A" * 43 + "=", clock.now().timestamp())
        check(message.headers, message.raw, secret, clock.now().timestamp())
        with pytest.raises(ValueError, match="signature"):
            check(message.headers, message.raw + b" ", secret, clock.now().timestamp())
        with pytest.raises(ValueError, match="old"):
            check(message.headers, message.raw, secret, clock.now().timestamp() + 301)
        assert message.headers["content-type"] == "application/json"
        assert message.path == "/hook"
        [item] = message.items
        assert (item["node"], item["group"], item["at"]) == ("shop-1", "default", message.body["timestamp"])
        assert message.body["data"]["count"] == 1
        delivery = await one(replica, message.id, lambda d: d["state"] == "delivered")
        assert (delivery["kind"], delivery["times"], delivery["attempts"]) == ("node.offline", 1, 1)
        assert (delivery["status"], delivery["error"], delivery["next_at"]) == (204, "", None)


async def test_what_happens_to_nodes_and_releases_is_told(
    replica: Replica, receiver: Receiver, clock: SettableClock
) -> None:
    await add(replica, receiver.url)
    good, bad = await replica.join("good"), await replica.join("bad")
    await asyncio.gather(good.poll(), bad.poll())
    await seeds.function(replica, "hello")
    await seeds.release(replica, functions={"hello": 1})
    act = await told(receiver, "operator.acted", action="release.create")
    assert (act["operator"], act["target"]) == ("admin", "default/1")

    await good.sync()
    plan = await bad.plan()
    error = wire.SyncError("schema_change_failed", "UNIQUE constraint failed: t.a")
    await bad.report(plan.sync_id, "failed", error=error)
    failed = await told(receiver, "sync.failed")
    assert failed.pop("at")
    assert failed == {
        "node": "bad",
        "group": "default",
        "release": 1,
        "code": "schema_change_failed",
        "message": "UNIQUE constraint failed: t.a",
    }
    await look(replica)
    release = await told(receiver, "release.failed")
    assert release.pop("at")
    assert release == {
        "group": "default",
        "release": 1,
        "nodes": 2,
        "arrived": 1,
        "failed": 1,
        "away": 0,
        "codes": {"schema_change_failed": 1},
    }

    # The same failure again is no news, another one is.
    plan = await bad.plan()
    await bad.report(plan.sync_id, "failed", error=error)
    plan = await bad.plan()
    await bad.report(plan.sync_id, "failed", error=wire.SyncError("disk_full", "no room"))
    await told(receiver, "sync.failed", code="disk_full")
    assert [item["code"] for item in receiver.items("sync.failed")] == ["schema_change_failed", "disk_full"]

    clock.advance(seconds=301)
    await good.poll()
    await look(replica)
    assert (await told(receiver, "node.overdue"))["node"] == "bad"
    assert (await told(receiver, "node.offline"))["node"] == "bad"

    await bad.sync()
    await look(replica)
    await look(replica)
    release = await told(receiver, "release.arrived")
    assert (release["release"], release["nodes"], release["arrived"]) == (1, 2, 2)
    await bad.poll()
    await look(replica)
    assert (await told(receiver, "node.online"))["node"] == "bad"
    assert (await told(receiver, "node.caught_up"))["node"] == "bad"
    for kind in ("release.failed", "release.arrived", "node.offline", "node.online", "node.overdue", "node.caught_up"):
        assert len(receiver.items(kind)) == 1


async def test_a_sync_that_expires_is_told(replica: Replica, receiver: Receiver, clock: SettableClock) -> None:
    await add(replica, receiver.url)
    [node] = await seeds.behind(replica, 1)
    await node.plan()
    clock.advance(seconds=61)
    await look(replica)
    failed = await told(receiver, "sync.failed")
    assert (failed["code"], failed["release"]) == ("sync_expired", 1)


async def test_only_the_kinds_that_are_wanted_are_sent(replica: Replica, receiver: Receiver) -> None:
    await add(replica, receiver.url, kinds=["release.arrived"])
    await replica.join("shop-1")
    await send_test(replica)
    await got(receiver, "webhook.test")
    assert receiver.of("operator.acted") == []


async def test_a_failed_message_is_sent_again_with_its_id(
    replica: Replica, receiver: Receiver, clock: SettableClock
) -> None:
    secret = (await add(replica, receiver.url, kinds=["node.online"]))["secret"]
    statuses = iter([500, 302])
    receiver.answers = lambda message: next(statuses, 200)
    id = await send_test(replica)
    first = await one(replica, id, lambda d: d["attempts"] == 1)
    assert (first["state"], first["status"], first["error"]) == ("waiting", 500, "127.0.0.1 answered 500")
    assert first["next_at"] is not None
    clock.advance(seconds=7)
    second = await one(replica, id, lambda d: d["attempts"] == 2)
    assert second["error"] == "127.0.0.1 answered 302, a redirect, which isn't followed: use the URL behind it"
    clock.advance(seconds=25)
    assert (await one(replica, id, lambda d: d["state"] == "delivered"))["attempts"] == 3
    messages = receiver.received
    assert {m.path for m in messages} == {"/hook"}
    assert {m.id for m in messages} == {id}
    assert len({m.raw for m in messages}) == 1
    # The time is the attempt's, and signed: what was kept from an old attempt can't be sent again later.
    assert len({m.headers["webhook-timestamp"] for m in messages}) == 3
    messages[-1].verify(secret, clock.now().timestamp())


async def test_what_is_given_up_is_listed(replica: Replica, receiver: Receiver, clock: SettableClock) -> None:
    await add(replica, receiver.url, kinds=["node.online"])
    receiver.answers = lambda message: 503
    id = await send_test(replica)
    attempts = 0
    while not await deliveries(replica, state="given_up"):
        clock.advance(hours=2)
        attempts += 1
        before = attempts
        await one(replica, id, lambda d, before=before: d["attempts"] >= before)  # type: ignore[misc]
    [given_up] = await deliveries(replica, webhook="chat", state="given_up")
    assert (given_up["id"], given_up["error"], given_up["next_at"]) == (id, "127.0.0.1 answered 503", None)
    [webhook] = (await replica.call("GET", "/v1/webhooks")).json()["items"]
    assert (webhook["waiting"], webhook["given_up"]) == (0, 1)
    assert 10 <= len(receiver.received) <= 14


async def test_a_receiver_that_is_back_gets_all_that_waits(
    control_site: Site, replica: Replica, clock: SettableClock
) -> None:
    async with receiving() as receiver:
        url = receiver.url
    await add(replica, url, kinds=["node.online"])
    ids = [await send_test(replica) for _ in range(3)]
    for id in ids:
        assert "127.0.0.1" in (await one(replica, id, lambda d: d["attempts"] == 1))["error"]
    async with receiving(port=int(url.split(":")[2].partition("/")[0])) as receiver:
        await send_test(replica)
        # Only one of those that wait is due.
        async with asyncio.timeout(60):
            while not {*ids} & {m.id for m in receiver.received}:
                clock.advance(seconds=1)
                await asyncio.sleep(0.02)
        for id in ids:
            await one(replica, id, lambda d: d["state"] == "delivered")


async def test_a_receiver_that_is_gone_gets_nothing_more(
    replica: Replica, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    await add(replica, receiver.url + "/secret-in-the-path", kinds=["node.online"])
    receiver.answers = lambda message: 410
    ids = [await send_test(replica) for _ in range(2)]
    for id in ids:
        assert (await one(replica, id, lambda d: d["state"] == "given_up"))["error"] == (
            "the receiver answered 410: it is gone"
        )
    [webhook] = (await replica.call("GET", "/v1/webhooks")).json()["items"]
    assert webhook["ended_at"] is not None
    refused = await replica.call("POST", "/v1/webhooks/chat/test")
    assert (refused.status, refused.json()["code"]) == (422, "webhook_refused")
    audit = (await replica.call("GET", "/v1/audit?action=webhook.end")).json()["items"]
    assert [(row["actor_kind"], row["actor"], row["target"]) for row in audit] == [("control", "webhooks", "chat")]
    assert "secret-in-the-path" not in caplog.text


async def test_a_slow_receiver_holds_up_no_other(
    replica: Replica, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.answers = lambda message: 3600.0
    await add(replica, receiver.url, "slow", kinds=["node.online"])
    async with receiving() as other:
        await add(replica, other.url, "quick", kinds=["node.online"])
        for _ in range(3):
            await send_test(replica, "slow")
        await got(receiver, "webhook.test")
        for _ in range(5):
            await send_test(replica, "quick")
        await got(other, "webhook.test", 5)
        assert (await replica.call("GET", "/readyz", token="")).status == 200
        # One attempt at a time.
        assert receiver.most_at_once == len(receiver.received) == 1


async def test_a_receiver_that_does_not_answer_in_time_has_failed(
    control_site: Site, receiver: Receiver, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control.telemetry.webhook_client.TIME_LIMIT", 0.2)
    receiver.answers = lambda message: 3600.0
    async with control_site.running(clock=clock, webhook_networks=LOOPBACK) as replica:
        await add(replica, receiver.url, kinds=["node.online"])
        id = await send_test(replica)
        failed = await one(replica, id, lambda d: d["attempts"] == 1)
        assert failed["error"] == "127.0.0.1 hadn't answered after 0.2 s"


async def test_one_replica_sends_at_a_time(control_site: Site, receiver: Receiver, clock: SettableClock) -> None:
    async with contextlib.AsyncExitStack() as stack:
        running = [control_site.running(clock=clock, webhook_networks=LOOPBACK) for _ in range(3)]
        replicas = [await stack.enter_async_context(one) for one in running]
        await add(replicas[0], receiver.url, kinds=["node.online"])
        ids = [await send_test(replica) for _ in range(5) for replica in replicas]
        for id in ids:
            await one(replicas[0], id, lambda d: d["state"] == "delivered")
        assert sorted(m.id for m in receiver.received) == sorted(ids)
        assert receiver.most_at_once == 1


async def test_a_replica_that_is_killed_before_it_records_sends_nothing_twice_under_another_id(
    control_site: Site, receiver: Receiver, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    async def left() -> None:
        """A kill gives no lease back."""

    with monkeypatch.context() as killed:
        killed.setattr(WebhookSender, "_record", never)
        killed.setattr(Leases, "give_back", lambda self: left())
        async with control_site.running(clock=clock, webhook_networks=LOOPBACK) as replica:
            await add(replica, receiver.url, kinds=["node.online"])
            id = await send_test(replica)
            await got(receiver, "webhook.test")
    async with control_site.running(clock=clock, webhook_networks=LOOPBACK) as replica:
        assert (await one(replica, id, lambda d: True))["state"] == "waiting"
        clock.advance(seconds=31)
        await one(replica, id, lambda d: d["state"] == "delivered")
    assert [m.id for m in receiver.received] == [id, id]
    assert receiver.received[0].raw == receiver.received[1].raw


async def test_ten_thousand_nodes_that_go_offline_are_a_few_messages(
    replica: Replica, receiver: Receiver, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_messages, "GATHER", 1.0)
    await add(replica, receiver.url, kinds=["node.offline"])
    await seeds.nodes(replica, 10_000)
    clock.advance(seconds=76)
    await look(replica)

    async def all_told() -> bool:
        return sum(m.body["data"]["count"] for m in receiver.of("node.offline")) == 10_000

    await until(all_told)
    assert len(receiver.received) <= 3
    for message in receiver.received:
        assert len(message.items) == min(50, message.body["data"]["count"])
        assert len(message.raw) < 20_000


async def test_messages_beyond_a_thousand_that_wait_are_given_up(
    replica: Replica, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_messages, "MOST_WAITING", 2)
    receiver.answers = lambda message: 500
    await add(replica, receiver.url, kinds=["operator.acted"])
    for number in range(4):
        await replica.call("POST", "/v1/groups", {"name": f"group-{number}"})

        async def made(count: int = number + 1) -> bool:
            # The webhook's own addition is an act before it is there.
            return len(await deliveries(replica)) >= count

        await until(made)
    states = [(d["state"], d["error"][:10]) for d in await deliveries(replica)]
    assert states.count(("given_up", "1000 messa")) == 2


async def test_without_a_webhook_nothing_is_kept(replica: Replica, receiver: Receiver) -> None:
    await replica.join("shop-1")
    count = "SELECT count(*) FROM events"
    assert await replica.services.db.read(lambda conn: conn.fetchval(count)) == 0
    await add(replica, receiver.url, kinds=["node.online"])
    await replica.call("POST", "/v1/groups", {"name": "east"})

    async def taken() -> bool:
        return bool(await replica.services.db.read(lambda conn: conn.fetchval(count)) == 0)

    await until(taken)
    assert await deliveries(replica) == []


async def test_what_was_left_when_the_last_webhook_went_is_not_told_to_a_new_one(
    control_site: Site, receiver: Receiver, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_sender, "PERIOD", 1e6)
    async with control_site.running(clock=clock, webhook_networks=LOOPBACK) as replica:
        await add(replica, receiver.url)
        await replica.call("POST", "/v1/groups", {"name": "east"})
        assert (await replica.call("DELETE", "/v1/webhooks/chat")).status == 204
    monkeypatch.setattr(webhook_sender, "PERIOD", 0.02)
    async with control_site.running(clock=clock, webhook_networks=LOOPBACK) as replica:
        await add(replica, receiver.url)
        await replica.call("POST", "/v1/groups", {"name": "west"})
        await told(receiver, "operator.acted", action="group.create")
    assert [i["target"] for i in receiver.items("operator.acted") if i["action"] == "group.create"] == ["west"]


async def test_secrets_are_shown_once_and_recorded_nowhere(
    replica: Replica, receiver: Receiver, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    made = await add(replica, receiver.url + "?key=in-the-url")
    secret = made["secret"]
    own = "whsec_" + "Zm9v" * 8
    assert (await add(replica, receiver.url, "own", secret=own))["secret"] is None
    await send_test(replica, "own")
    (await got(receiver, "webhook.test"))[0].verify(own)
    answers = [(await replica.call("GET", path)).body for path in ("/v1/webhooks", "/v1/audit")]
    kept = await replica.services.db.read(lambda conn: conn.fetch("SELECT response::text AS a FROM idempotency"))
    # The receiver's own log is none of control's.
    log = "\n".join(r.getMessage() for r in caplog.records if r.name != "aiohttp.access")
    said = [*(answer.decode() for answer in answers), log, str([row["a"] for row in kept])]
    assert not any(text in one for text in (secret, own) for one in said)
    assert "in-the-url" not in said[1] + said[2]


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"url": "ftp://example.com/"}, "webhook_refused", "url"),
        ({"url": "http://example.com/"}, None, ""),
        ({"url": "https://user:word@example.com/"}, "webhook_refused", "url"),
        ({"url": "https://10.0.0.1/"}, "webhook_refused", "url"),
        ({"url": "https://[::ffff:10.0.0.1]/"}, "webhook_refused", "url"),
        ({"url": "https://2130706433/"}, "webhook_refused", "url"),
        ({"url": "https://127.1/"}, "webhook_refused", "url"),
        ({"url": "https://example.com:99999/"}, "webhook_refused", "url"),
        ({"url": "https://exa mple.com/"}, "webhook_refused", "url"),
        ({"url": "https:///path"}, "webhook_refused", "url"),
        ({"secret": "whsec_short"}, "invalid_body", "secret"),
        ({"secret": "Zm9v" * 8}, "invalid_body", "secret"),
        ({"kinds": ["node.melted"]}, "invalid_body", "kinds[0]"),
    ],
)
async def test_what_can_not_work_is_refused(
    replica: Replica, fields: dict[str, Any], code: str | None, field: str
) -> None:
    answer = await replica.call("POST", "/v1/webhooks", {"name": "chat", "url": "https://example.com/", **fields})
    if code is None:
        assert answer.status == 201, answer.body
        return
    assert (answer.status, answer.json()["code"], answer.json()["field"]) == (422, code, field)
    assert (await replica.call("GET", "/v1/webhooks")).json()["items"] == []


async def test_names_are_unique_and_webhooks_are_few(
    replica: Replica, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control.api.webhooks.MOST", 2)
    calls: list[Awaitable[Any]] = [add(replica, receiver.url), add(replica, receiver.url, "other")]
    await asyncio.gather(*calls)
    body = {"name": "chat", "url": receiver.url}
    assert (await replica.call("POST", "/v1/webhooks", body)).json()["code"] == "name_taken"
    body["name"] = "third"
    assert (await replica.call("POST", "/v1/webhooks", body)).json()["code"] == "too_many_webhooks"
    for path in ("/v1/webhooks/none", "/v1/webhooks/none/test"):
        answer = await replica.call("POST" if path.endswith("test") else "DELETE", path)
        assert (answer.status, answer.json()["code"]) == (404, "unknown_webhook")


async def test_what_became_of_messages_is_kept_for_a_week(
    replica: Replica, receiver: Receiver, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_sender, "CLEAN_EVERY", 0.02)
    await add(replica, receiver.url, kinds=["node.online"])
    id = await send_test(replica)
    await one(replica, id, lambda d: d["state"] == "delivered")
    clock.advance(days=7, seconds=1)

    async def gone() -> bool:
        return await deliveries(replica) == []

    await until(gone)


async def test_the_commands(replica: Replica, receiver: Receiver, tmp_path: Path) -> None:
    environment = {**os.environ, "SKERRY_URL": replica.url, "SKERRY_TOKEN": replica.admin, "SKERRY_CA": str(replica.ca)}

    async def skerry(*arguments: str, ends: int = 0) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "control.cli", "webhook", *arguments),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said = (await process.communicate())[0].decode()
        assert process.returncode == ends, said
        return said

    secret = (await skerry("add", "chat", receiver.url, "--event", "node.offline")).splitlines()[0]
    said = await skerry("test", "chat")
    assert said == "chat: delivered, the receiver answered 204\n"
    receiver.received[0].verify(secret)
    own = tmp_path / "secret"
    own.write_text("whsec_" + "Zm9v" * 8 + "\n")
    assert "whsec_" not in await skerry("add", "own", "https://127.0.0.1:1/", "--secret-file", str(own))
    listed = await skerry("list")
    assert all(text in listed for text in ("chat", receiver.url, "node.offline", "own", "all"))
    failed = await skerry("test", "own", ends=1)
    assert "the request to 127.0.0.1 failed" in failed
    found = json.loads(await skerry("deliveries", "--state", "waiting", "--json"))
    assert ("own", "webhook.test") in [(d["webhook"], d["kind"]) for d in found]
    assert "delivered" in await skerry("deliveries", "--webhook", "chat")
    assert await skerry("remove", "own", "--yes") == "own: removed\n"
    assert "unknown_webhook" in await skerry("remove", "own", "--yes", ends=3)
