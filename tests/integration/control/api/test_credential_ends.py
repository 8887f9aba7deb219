"""A node's credential ends by its age: then it is good to return with, and in the end for nothing."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from control.access import rate_limits
from control.access.rate_limits import NodeLimits
from control.api import request_input
from control.problems import ProblemError
from control.protocol import wire
from control.sync.reconciler import NodeRequest
from control.sync.write_batches import MOST_OF_NODE
from tests.support.control import Control, Joined, Reply, module, until
from tests.support.replica import Site, deaf

POLL = {"generation": 0, "digest": wire.digest(wire.Inventory()), "inventory": {}}


async def poll(control: Control, credential: str) -> Reply:
    return await control.call("POST", "/v1/poll", POLL, token=credential)


async def rotate(control: Control, credential: str) -> Reply:
    return await control.call("POST", "/v1/nodes/self/credential", token=credential)


@pytest.fixture
async def node(control: Control) -> Joined:
    joined = await control.join("n1")
    assert (await poll(control, joined.credential)).status == 204
    return joined


async def test_from_its_end_on_a_credential_is_good_to_get_its_successor_alone(control: Control, node: Joined) -> None:
    sha256 = await control.upload(module("1"))
    control.clock.advance(days=89, hours=23)
    assert (await poll(control, node.credential)).status == 204
    control.clock.advance(hours=2)
    for method, path, body in (("POST", "/v1/poll", POLL), ("GET", f"/v1/artifacts/{sha256}", None)):
        refused = await control.call(method, path, body, token=node.credential)
        assert (refused.status, refused.code) == (401, "credential_expired")
        assert "/v1/nodes/self/credential" in refused.body["detail"]
    new = await rotate(control, node.credential)
    assert new.status == 201
    assert (await poll(control, node.credential)).code == "credential_expired"
    assert (await poll(control, new.body["credential"])).status == 204
    assert (await poll(control, node.credential)).code == "credentials_invalid"
    assert (await rotate(control, node.credential)).code == "credentials_invalid"


async def test_a_rotation_whose_answer_is_lost_is_asked_for_again(control: Control, node: Joined) -> None:
    control.clock.advance(days=100)
    lost, new = [(await rotate(control, node.credential)).body["credential"] for _ in range(2)]
    assert (await poll(control, new)).status == 204
    for ended in (lost, node.credential):
        assert (await poll(control, ended)).code == "credentials_invalid"


async def test_who_has_a_credential_fills_no_log_with_it(
    control: Control, node: Joined, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is too much is refused so that a node asks again, and told once; other nodes and acts go on."""
    passed = 0.0
    limits = NodeLimits(lambda: passed)
    monkeypatch.setattr(control.services, "node_limits", limits)
    for act in rate_limits.MOST:
        monkeypatch.setitem(rate_limits.MOST, act, 3)

    async def tell(credential: str) -> Reply:
        run = {"id": str(uuid4()), "at": "2026-11-27T12:00:00Z", "user": "a", "kind": "read", "statement": "SELECT 1"}
        return await control.call("POST", "/v1/nodes/self/sql", run, token=credential)

    for act in (tell, partial(rotate, control)):
        assert [(await act(node.credential)).status for _ in range(5)] == [*[204 if act is tell else 201] * 3, 503, 503]
    refused = await tell(node.credential)
    assert (refused.code, refused.headers["retry-after"]) == ("too_many_acts", "1201")
    passed += 1201
    assert [(await tell(node.credential)).status for _ in range(2)] == [204, 503]
    assert (await tell((await control.join("other")).credential)).status == 204
    rows = [row["action"] for row in await control.items("/v1/audit?actor=n1")]
    assert (rows.count("node.sql"), rows.count("node.rotate")) == (4, 3)
    told = [record.getMessage() for record in caplog.records if "rows about" in record.getMessage()]
    assert len(told) == 2
    assert all(text.startswith("node n1 has left as many rows") for text in told)
    # So is an attempt to join whose answer is said to be lost again and again.
    token = (await control.ok("POST", "/v1/join-tokens", {}))["token"]
    body = {"name": "again", "attempt": str(uuid4())}
    answers = [(await control.call("POST", "/v1/nodes", body, token=token)).status for _ in range(5)]
    assert answers == [201, 201, 201, 201, 503]


async def test_who_has_a_credential_holds_no_memory_with_it(
    control: Control, node: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bodies that don't end are bounded for each who sends them, and inventories that wait for a decision."""
    monkeypatch.setattr(request_input, "MOST_BODIES", 4)
    goes_on = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b'{"generation": '
        await goes_on.wait()
        yield b"0}"

    async def send() -> Reply:
        return await control.call("POST", "/v1/poll", data=slowly(), token=node.credential)

    async def all_come() -> bool:
        return request_input._coming.total() == 4

    slow = [asyncio.create_task(send()) for _ in range(4)]
    await until(all_come)
    refused = await control.call("PUT", "/v1/nodes/self/row-counts", {"counts": {}}, token=node.credential)
    assert (refused.status, refused.code) == (503, "too_many_acts")
    assert (await poll(control, (await control.join("other")).credential)).status == 204
    goes_on.set()
    assert [(await task).status for task in slow] == [422] * 4
    assert not request_input._coming

    # None of them is taken into a batch.
    monkeypatch.setattr(control.services.decisions, "_put", lambda _: None)
    request = NodeRequest(node.id, "0" * 64, None, None)
    asked = [asyncio.create_task(control.services.decisions.ask(request)) for _ in range(MOST_OF_NODE)]
    await asyncio.sleep(0)
    with pytest.raises(ProblemError, match="too_many_acts"):
        await control.services.decisions.ask(request)
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    assert not control.services.decisions._of_node


async def test_a_successor_that_was_never_used_has_a_return_of_its_own(control: Control, node: Joined) -> None:
    """The node was cut off between the answer and its next poll; asking with it ends what was before it."""
    next_one = (await rotate(control, node.credential)).body["credential"]
    control.clock.advance(days=100)
    assert (await poll(control, next_one)).code == "credential_expired"
    new = (await rotate(control, next_one)).body["credential"]
    assert (await poll(control, new)).status == 204
    assert (await rotate(control, node.credential)).code == "credentials_invalid"


async def test_past_the_return_limit_nothing_is_accepted_and_the_way_back_is_told(
    control: Control, node: Joined
) -> None:
    control.clock.advance(days=364, hours=23)
    assert (await rotate(control, node.credential)).status == 201
    control.clock.advance(hours=2)
    for refused in (await rotate(control, node.credential), await poll(control, node.credential)):
        assert (refused.status, refused.code) == (401, "credentials_invalid")
        assert "skerry node token --rejoin n1" in refused.body["detail"]
        assert "skerry-edge join --again" in refused.body["detail"]


async def test_an_earlier_edge_drops_the_report_that_waits_and_asks_for_a_credential(
    control: Control, node: Joined
) -> None:
    """It sends the report first, and goes on only when that is taken or refused for good (404, not 401)."""
    control.clock.advance(days=100)
    update = {"status": "failed", "error": {"code": "x", "message": "x"}}
    reported = await control.call("PUT", f"/v1/syncs/{uuid4()}", update, token=node.credential)
    assert (reported.status, reported.code) == (404, "unknown_sync")
    assert (await rotate(control, node.credential)).status == 201


async def test_a_shortened_life_is_that_of_present_credentials_too(control_site: Site) -> None:
    day = 86400.0
    async with control_site.running() as usual, control_site.running(credential_life=0.001) as strict:
        node = await usual.join("n1")
        assert (await node.poll()).status == 204
        refused = await strict.call("POST", "/v1/poll", POLL, token=node.credential)
        assert refused.json()["code"] == "credential_expired"
        shown = (await usual.node("n1"))["credential"], (await strict.node("n1"))["credential"]
        made = datetime.fromisoformat(shown[0]["created_at"])
        assert [datetime.fromisoformat(each["ends_at"]) - made for each in shown] == [
            timedelta(seconds=90 * day),
            timedelta(milliseconds=1),
        ]
        assert datetime.fromisoformat(shown[0]["return_until"]) - made == timedelta(days=365)


async def test_a_node_shows_the_credential_that_it_uses(control: Control, node: Joined) -> None:
    async def shown() -> Any:
        return (await control.ok("GET", "/v1/nodes/n1"))["credential"]

    first = await shown()
    control.clock.advance(days=30)
    new = (await rotate(control, node.credential)).body["credential"]
    assert await shown() == first, "the node has not used the other one yet"
    assert (await poll(control, new)).status == 204
    assert (await shown())["ends_at"] > first["ends_at"]
    await control.ok("POST", "/v1/nodes/n1/revoke")
    assert await shown() is None


async def test_a_revoked_credential_gets_no_successor_on_a_replica_that_has_not_heard_of_it(
    control_site: Site,
) -> None:
    """Else who stole it would stay in by asking all the time."""
    async with control_site.running() as one:
        node = (await one.join("n1")).credential
        async with control_site.running(clock=deaf()) as other:
            assert (await other.call("POST", "/v1/poll", POLL, token=node)).status == 204
            assert (await one.call("POST", "/v1/nodes/n1/revoke")).status == 204
            assert (await other.call("POST", "/v1/poll", POLL, token=node)).status == 204, "it hasn't heard of it"
            run = wire.SqlRun(str(uuid4()), datetime.now(UTC), "eve", "read", "SELECT 1")
            for path, body in (("/v1/nodes/self/credential", None), ("/v1/nodes/self/sql", run)):
                refused = await other.call("POST", path, body, token=node)
                assert (refused.status, refused.json()["code"]) == (401, "credentials_invalid")


async def test_a_successor_that_was_given_up_ends_no_other_where_that_is_not_known_yet(
    control_site: Site,
) -> None:
    """A repeated request for a successor has ended the first one, unused. Else no credential of the node was good."""
    path = "/v1/nodes/self/credential"
    async with control_site.running() as one:
        node = (await one.join("n1")).credential
        assert (await one.call("POST", "/v1/poll", POLL, token=node)).status == 204
        first = (await one.call("POST", path, token=node)).json()["credential"]
        async with control_site.running(clock=deaf()) as other:
            assert await other.services.fleet.credential(first.split("_")[1]) is not None
            second = (await one.call("POST", path, token=node)).json()["credential"]
            assert (await other.call("POST", "/v1/poll", POLL, token=first)).status == 401
        async with control_site.running() as fresh:
            for good in (node, second):
                assert (await fresh.call("POST", "/v1/poll", POLL, token=good)).status == 204
