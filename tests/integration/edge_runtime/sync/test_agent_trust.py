"""The agent's credentials, which are exchanged, refused, taken away, and the authority that it trusts."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from control.protocol import wire
from edge_runtime.sync import identity
from edge_runtime.sync.control_client import ControlClient, NoAnswer
from edge_runtime.sync.join import join
from tests.support.agents import Control, Edge, edge, joined
from tests.support.deadlines import deadline
from tests.support.releases import answers, first_release, push

EMPTY = wire.Poll(generation=0, digest=wire.digest(wire.Inventory()))


async def test_a_removed_node_serves_on_and_says_what_to_do(control: Control, node: Edge) -> None:
    await first_release(control)
    await answers(node, 1)
    await control.call("DELETE", "nodes/edge-1")
    own = await node.until(lambda s: s["error"])
    assert own["error"]["code"] == "node_removed"
    assert "removed" in own["error"]["message"]
    assert "--rejoin" not in own["error"]["message"]
    assert "skerry-edge join --again" in own["error"]["message"]
    assert own["next_attempt"] is not None
    await answers(node, 1)


async def test_a_revoked_node_serves_on_and_says_that_it_is(control: Control, node: Edge, tmp_path: Path) -> None:
    await first_release(control)
    await answers(node, 1)
    await node.until(lambda s: s["at_target"])
    assert not node.agent.facts().refused
    await control.call("POST", "nodes/edge-1/revoke", {})
    own = await node.until(lambda s: s["error"])
    assert own["error"]["code"] == "node_revoked"
    said = own["error"]["message"]
    assert "an operator has revoked it" in said
    assert "skerry node token --rejoin edge-1" in said
    assert f"skerry-edge join --again --control {control.url} --state {tmp_path}" in said
    # Whether it is at its target isn't known any more.
    assert (own["control"]["refused"], own["control"]["reachable"], own["at_target"]) == (True, False, None)
    assert (node.agent.facts().refused, node.agent.facts().at_target) == (True, False)
    await answers(node, 1)


async def test_a_node_that_joins_again_while_it_runs_goes_on_by_itself(
    control: Control, node: Edge, tmp_path: Path
) -> None:
    await first_release(control)
    await answers(node, 1)
    await control.call("POST", "nodes/edge-1/revoke", {})
    await node.until(lambda s: s["error"])
    token = await control.join_token(rejoin="edge-1")
    await join(tmp_path, control.url, token, "edge-1", {}, again=True)
    await node.until(lambda s: s["at_target"] and s["error"] is None)
    await push(control, 2)
    await answers(node, 2)


async def test_an_old_credential_is_exchanged_and_used(control: Control, tmp_path: Path) -> None:
    before = await joined(control, tmp_path)
    async with edge(tmp_path, rotate_after=timedelta(0)) as node:
        await first_release(control)
        await answers(node, 1)
        async with deadline(60):
            while identity.read(tmp_path).credential == before.credential:
                await asyncio.sleep(0.02)
    after = identity.read(tmp_path)
    assert after.next_credential == ""
    assert after.credential_since > before.credential_since


async def test_a_new_credential_that_is_refused_is_given_up_for_the_old_one(control: Control, tmp_path: Path) -> None:
    who = await joined(control, tmp_path)
    wrong = f"skn_{'0' * 8}-0000-0000-0000-{'0' * 12}_{'A' * 43}"
    identity.write(tmp_path, who.rotated(wrong))
    async with edge(tmp_path) as node:
        await node.until(lambda s: s["control"]["reachable"])
    assert identity.read(tmp_path) == who


async def test_an_authority_that_was_damaged_does_not_keep_the_node_from_serving(
    control: Control, tmp_path: Path
) -> None:
    await joined(control, tmp_path)
    async with edge(tmp_path) as node:
        await first_release(control)
        await answers(node, 1)
    (tmp_path / "ca.pem").write_text("not PEM")
    async with edge(tmp_path) as node:
        await answers(node, 1)
        own = await node.until(lambda s: s["error"])
        assert own["error"]["code"] == "identity_unusable"
        assert "join again" in own["error"]["message"]
        (tmp_path / "ca.pem").write_bytes(control.pki.ca.read_bytes())
        await node.until(lambda s: s["at_target"])


def later(control: Control, monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    """Have this many days passed for control. By the node's clock, which stays behind, its credential is young."""
    clock = control.server.app.services.clock
    monkeypatch.setattr(type(clock), "now", lambda _: datetime.now(UTC) + timedelta(days=days))


async def test_a_node_that_was_offline_for_a_hundred_days_returns_by_itself(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await joined(control, tmp_path)
    async with edge(tmp_path) as node:
        await first_release(control)
        await answers(node, 1)
        await control.until(lambda n: n["at_target"])
    later(control, monkeypatch, 100)
    await push(control, 2)
    async with edge(tmp_path) as node:
        await answers(node, 2)
        await node.until(lambda s: s["at_target"] and s["error"] is None)
    assert identity.read(tmp_path).credential != before.credential
    assert identity.read(tmp_path).next_credential == ""


async def test_a_node_returns_whose_new_credential_got_lost_on_the_way(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await joined(control, tmp_path)
    later(control, monkeypatch, 100)
    real, lost = ControlClient.rotate, list[str]()

    async def answer_lost(self: ControlClient) -> str:
        lost.append(await real(self))
        if len(lost) == 1:
            raise NoAnswer("unreachable", "the connection broke after the request")
        return lost[-1]

    monkeypatch.setattr(ControlClient, "rotate", answer_lost)
    async with edge(tmp_path) as node:
        await node.until(lambda s: s["at_target"] and s["error"] is None)
    assert identity.read(tmp_path).credential == lost[1]
    assert lost[0] != before.credential


async def test_a_node_returns_that_ended_between_using_a_new_credential_and_keeping_that(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = await joined(control, tmp_path)
    async with ControlClient(who.control_url, identity.ca_path(tmp_path), who.credential) as session:
        await session.poll(EMPTY)
        session.credential = await session.rotate()
        identity.write(tmp_path, who.rotated(session.credential))
        await session.poll(EMPTY)  # for control the first one has ended; the file doesn't say so
    later(control, monkeypatch, 100)
    async with edge(tmp_path) as node:
        await node.until(lambda s: s["at_target"] and s["error"] is None)
    assert identity.read(tmp_path).credential not in (who.credential, session.credential)


async def test_a_node_that_was_offline_for_too_long_says_how_it_joins_again(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await joined(control, tmp_path)
    async with edge(tmp_path) as node:
        await first_release(control)
        await answers(node, 1)
    later(control, monkeypatch, 400)
    async with edge(tmp_path) as node:
        own = await node.until(lambda s: s["error"])
        assert own["error"]["code"] == "credentials_invalid"
        assert "skerry node token --rejoin edge-1" in own["error"]["message"]
        assert "skerry-edge join --again" in own["error"]["message"]
        await answers(node, 1)
        token = await control.join_token(rejoin="edge-1")
        await join(tmp_path, control.url, token, "edge-1", {}, again=True)
        await node.until(lambda s: s["at_target"] and s["error"] is None)


async def test_a_credential_dated_by_a_clock_that_was_ahead_is_exchanged(control: Control, tmp_path: Path) -> None:
    before = await joined(control, tmp_path)
    identity.write(tmp_path, replace(before, credential_since=before.credential_since + timedelta(days=3650)))
    async with edge(tmp_path), deadline(60):
        while identity.read(tmp_path).credential == before.credential:
            await asyncio.sleep(0.02)
    assert identity.read(tmp_path).credential_since < before.credential_since + timedelta(days=1)
