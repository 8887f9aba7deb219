"""How messages of webhooks are sent to a real receiver, signed, and what becomes of failures."""

import asyncio
import contextlib

import pytest

from control.access import certificates
from control.local.pki import Pki
from control.sync.leases import Leases
from control.telemetry.webhooks import webhook_messages, webhook_sender
from control.telemetry.webhooks.webhook_client import TIME_LIMIT
from control.telemetry.webhooks.webhook_sender import WebhookSender
from tests.support.clock import SetClock
from tests.support.control import until
from tests.support.deadlines import deadline
from tests.support.ports import free_port
from tests.support.replica import Replica, Site
from tests.support.webhook_receiver import Receiver, receiving
from tests.support.webhooks import LOOPBACK, add, check, deliveries, got, look, one, send_test

# The replica's own monitor stays out of it.
pytestmark = [pytest.mark.usefixtures("hurried"), pytest.mark.background("webhooks")]


@pytest.fixture
def long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is sent again when the test moves the clock, and not while a busy machine stands still."""
    monkeypatch.setattr(webhook_sender, "FIRST_PAUSE", 500.0)


async def test_a_node_that_goes_offline_is_told_signed_over_tls(
    control_site: Site, clock: SetClock, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(pki.ca))
    async with (
        receiving(certificates.server_context(pki.certificate, pki.key)) as receiver,
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


async def test_a_failed_message_is_sent_again_with_its_id(
    long_pauses: None, replica: Replica, receiver: Receiver, clock: SetClock
) -> None:
    secret = (await add(replica, receiver.url, kinds=["node.online"]))["secret"]
    statuses = iter([500, 302])
    receiver.answers = lambda message: next(statuses, 200)
    id = await send_test(replica)
    first = await one(replica, id, lambda d: d["attempts"] == 1)
    assert (first["state"], first["status"], first["error"]) == ("waiting", 500, "127.0.0.1 answered 500")
    assert first["next_at"] is not None
    clock.advance(seconds=601)
    second = await one(replica, id, lambda d: d["attempts"] == 2)
    assert second["error"] == "127.0.0.1 answered 302, a redirect, which isn't followed: use the URL behind it"
    clock.advance(seconds=2401)
    assert (await one(replica, id, lambda d: d["state"] == "delivered"))["attempts"] == 3
    messages = receiver.received
    assert {m.path for m in messages} == {"/hook"}
    assert {m.id for m in messages} == {id}
    assert len({m.raw for m in messages}) == 1
    # The time is the attempt's, and signed: what was kept from an old attempt can't be sent again later.
    assert len({m.headers["webhook-timestamp"] for m in messages}) == 3
    messages[-1].verify(secret, clock.now().timestamp())


async def test_what_is_given_up_is_listed(replica: Replica, receiver: Receiver, clock: SetClock) -> None:
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
    long_pauses: None, replica: Replica, clock: SetClock
) -> None:
    port = free_port()
    await add(replica, f"http://127.0.0.1:{port}/hook", kinds=["node.online"])
    ids = [await send_test(replica) for _ in range(3)]
    for id in ids:
        assert "127.0.0.1" in (await one(replica, id, lambda d: d["attempts"] == 1))["error"]
    async with receiving(port=port) as receiver:
        await send_test(replica)
        # Only one of those that wait is due.
        async with deadline(60):
            while not {*ids} & {m.id for m in receiver.received}:
                clock.advance(seconds=10)
                await asyncio.sleep(0.02)
        for id in ids:
            await one(replica, id, lambda d: d["state"] == "delivered")


async def test_a_receiver_that_is_gone_gets_nothing_more(
    long_pauses: None, replica: Replica, receiver: Receiver, clock: SetClock, caplog: pytest.LogCaptureFixture
) -> None:
    await add(replica, receiver.url + "/secret-in-the-path", kinds=["node.online"])
    receiver.answers = lambda message: 500
    ids = [await send_test(replica) for _ in range(2)]
    for id in ids:
        await one(replica, id, lambda d: d["attempts"] == 1)
    receiver.answers = lambda message: 410
    clock.advance(seconds=601)
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


async def test_a_slow_receiver_holds_up_no_other(control_site: Site, receiver: Receiver) -> None:
    # The one attempt lasts for as long as all else takes: of the time that all waits by, hardly any passes.
    clock = SetClock(timers="stand")
    receiver.answers = lambda message: 3600.0
    async with receiving() as other, control_site.running(clock=clock, webhook_networks=LOOPBACK) as replica:
        await add(replica, receiver.url, "slow", kinds=["node.online"])
        await add(replica, other.url, "quick", kinds=["node.online"])
        for _ in range(3):
            await send_test(replica, "slow")
        await clock.passes_until(lambda: receiver.of("webhook.test"), webhook_sender.PERIOD / 10)
        for _ in range(5):
            await send_test(replica, "quick")
        await clock.passes_until(lambda: len(other.of("webhook.test")) == 5, webhook_sender.PERIOD / 10)

        async def ready() -> bool:
            return bool((await replica.call("GET", "/readyz", token="")).status == 200)

        await until(ready)
        # One attempt at a time.
        assert receiver.most_at_once == len(receiver.received) == 1


async def test_a_receiver_that_does_not_answer_in_time_has_failed(control_site: Site, receiver: Receiver) -> None:
    clock = SetClock(timers="stand")
    receiver.answers = lambda message: 3600.0
    async with control_site.running(clock=clock, webhook_networks=LOOPBACK) as replica:
        await add(replica, receiver.url, kinds=["node.online"])
        id = await send_test(replica)
        await clock.passes_until(lambda: receiver.received, webhook_sender.PERIOD)
        clock.advance(TIME_LIMIT - 0.1)
        await replica.services.fleet.refresh()
        assert (await one(replica, id, lambda d: True))["attempts"] == 0
        clock.advance(0.1)
        failed = await one(replica, id, lambda d: d["attempts"] == 1)
        assert failed["error"] == f"127.0.0.1 hadn't answered after {TIME_LIMIT:g} s"


async def test_one_replica_sends_at_a_time(control_site: Site, receiver: Receiver, clock: SetClock) -> None:
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
    control_site: Site, receiver: Receiver, clock: SetClock, monkeypatch: pytest.MonkeyPatch
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


async def test_messages_beyond_a_thousand_that_wait_are_given_up(
    replica: Replica, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_messages, "MOST_WAITING", 2)
    receiver.answers = lambda message: 500
    await add(replica, receiver.url, kinds=["operator.acted"])
    for number in range(4):

        async def made(count: int = number + 1) -> bool:
            # The first tells of the webhook's own addition.
            return len(await deliveries(replica)) == count

        await until(made)
        await replica.call("POST", "/v1/groups", {"name": f"group-{number}"})

    async def all_made() -> bool:
        return len(await deliveries(replica)) == 5

    await until(all_made)
    states = [(d["state"], d["error"][:10]) for d in await deliveries(replica)]
    assert states.count(("given_up", "1000 messa")) == 3


async def test_what_became_of_messages_is_kept_for_a_week(
    replica: Replica, receiver: Receiver, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_sender, "CLEAN_EVERY", 0.02)
    await add(replica, receiver.url, kinds=["node.online"])
    id = await send_test(replica)
    await one(replica, id, lambda d: d["state"] == "delivered")
    clock.advance(days=7, seconds=1)

    async def gone() -> bool:
        return await deliveries(replica) == []

    await until(gone)
