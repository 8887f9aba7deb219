"""Joining a real control: first trust, lost answers, tokens that aren't good, a lost disk."""

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from control.local.pki import Pki, ensure
from control.protocol import wire
from edge_runtime.guests.guest import RUNNERS
from edge_runtime.sync import capabilities, identity
from edge_runtime.sync import join as joining
from edge_runtime.sync.control_client import ControlClient, ControlRefused, NoAnswer
from edge_runtime.sync.join import JoinFailed, join
from tests.support.agents import Control, joined, running_control
from tests.support.deadlines import deadline
from tests.support.file_server import file_server
from tests.support.services import ServerUrls, drop_bucket, fresh_bucket

pytestmark = pytest.mark.asyncio(loop_scope="module")

POLL = wire.Poll(generation=0, digest=wire.digest(wire.Inventory()))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(services: ServerUrls, pki: Pki) -> AsyncIterator[Control]:
    """One control for all these tests: each starts with no node in it."""
    database_url = await services.fresh_database()
    bucket_url = await fresh_bucket(services.artifacts_url)
    async with running_control(database_url, bucket_url, pki) as running:
        yield running
    await drop_bucket(bucket_url)
    await services.give_back(database_url)


@pytest_asyncio.fixture(loop_scope="module")
async def control(shared: Control) -> AsyncIterator[Control]:
    yield shared
    for node in (await shared.call("GET", "nodes"))["items"]:
        await shared.call("DELETE", f"nodes/{node['id']}")


async def poll(state: Path) -> None:
    """Poll as the node of this state directory does."""
    who = identity.read(state)
    async with ControlClient(who.control_url, identity.ca_path(state), who.credential) as session:
        await session.poll(POLL)


async def poll_on(session: ControlClient) -> None:
    """Until control's replica has heard of a change, a second at most."""
    async with deadline(60):
        while True:
            await session.poll(POLL)


async def test_a_node_joins_with_a_token_and_polls_with_what_it_got(control: Control, tmp_path: Path) -> None:
    state = tmp_path / "state"
    token = await control.join_token()
    made = await join(state, control.url, token, "edge-1", {"site": "tokyo"})
    assert identity.read(state) == made
    assert (state / "ca.pem").read_text() == control.pki.ca.read_text()
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert stat.S_IMODE((state / "identity.json").stat().st_mode) == 0o600
    assert sorted(file.name for file in state.iterdir()) == ["ca.pem", "identity.json"]
    await poll(state)
    node = await control.node()
    assert (node["id"], node["group"], node["labels"]) == (made.node_id, "default", {"site": "tokyo"})
    assert not any(token.split(".")[0] in f.read_text() for f in state.iterdir())


async def test_the_token_is_not_sent_to_a_control_with_another_authority(control: Control, tmp_path: Path) -> None:
    token = await control.join_token()
    other = ensure(tmp_path / "pki")
    async with file_server(other) as stranger:
        stranger.files["/v1/ca"] = other.ca.read_bytes()
        with pytest.raises(JoinFailed, match="The token was not sent") as caught:
            await join(tmp_path / "state", stranger.url, token, "edge-1", {})
        assert caught.value.code == "ca_mismatch"
        assert [path for path, _ in stranger.requests] == ["/v1/ca"]
        assert "authorization" not in stranger.requests[0][1]
    # The token is as good as new.
    await join(tmp_path / "state", control.url, token, "edge-1", {})


async def test_a_man_in_between_who_shows_the_right_authority_gets_no_token(control: Control, tmp_path: Path) -> None:
    token = await control.join_token()
    async with file_server(ensure(tmp_path / "pki")) as stranger:
        stranger.files["/v1/ca"] = control.pki.ca.read_bytes()
        with pytest.raises(JoinFailed) as caught:
            await join(tmp_path / "state", stranger.url, token, "edge-1", {}, pause=0.01)
        assert caught.value.code == "tls_untrusted"
        assert {path for path, _ in stranger.requests} == {"/v1/ca"}


async def test_without_a_fingerprint_the_authority_comes_from_a_file(control: Control, tmp_path: Path) -> None:
    token = (await control.join_token()).split(".")[0]
    with pytest.raises(JoinFailed) as caught:
        await join(tmp_path / "state", control.url, token, "edge-1", {}, pause=0.01)
    assert caught.value.code == "tls_untrusted"
    await join(tmp_path / "state", control.url, token, "edge-1", {}, ca=control.pki.ca)
    await poll(tmp_path / "state")


async def test_a_lost_answer_loses_nothing(control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = await control.join_token()
    answered: list[wire.Joined] = []
    real = ControlClient.join

    async def lost(self: ControlClient, asked: wire.Join) -> wire.Joined:
        answered.append(await real(self, asked))
        raise NoAnswer("unreachable", "the connection broke after the request")

    state = tmp_path / "state"
    monkeypatch.setattr(ControlClient, "join", lost)
    with pytest.raises(JoinFailed, match="may be run again"):
        await join(state, control.url, token, "edge-1", {}, pause=0.01)
    assert len(answered) == joining.TRIES
    assert not (state / "identity.json").exists()
    monkeypatch.setattr(ControlClient, "join", real)
    # Another process, later: the attempt is on disk.
    made = await join(state, control.url, token, "edge-1", {})
    assert {a.node_id for a in answered} == {made.node_id}
    assert made.credential not in {a.credential for a in answered}
    await poll(state)
    for earlier in answered:
        async with ControlClient(control.url, control.pki.ca, earlier.credential) as session:
            with pytest.raises(ControlRefused) as caught:
                await session.poll(POLL)
            assert caught.value.status == 401


async def test_a_used_token_is_refused_with_what_to_do(control: Control, tmp_path: Path) -> None:
    token = await control.join_token()
    await join(tmp_path / "one", control.url, token, "edge-1", {})
    await poll(tmp_path / "one")
    with pytest.raises(JoinFailed, match="skerry node token") as caught:
        await join(tmp_path / "two", control.url, token, "edge-2", {})
    assert caught.value.code == "token_used"
    assert not (tmp_path / "two" / "identity.json").exists()


async def test_an_expired_token_is_refused(control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import UTC, datetime, timedelta

    token = await control.join_token(expires_in=60)
    clock = control.server.app.services.clock
    monkeypatch.setattr(type(clock), "now", lambda _: datetime.now(UTC) + timedelta(seconds=61))
    with pytest.raises(JoinFailed) as caught:
        await join(tmp_path / "state", control.url, token, "edge-1", {})
    assert caught.value.code == "token_expired"


@pytest.mark.parametrize("token", ["", "skj_x", "sko_" + "0" * 36 + "_" + "a" * 43, "skj_" + "0" * 36 + "_" + "a" * 42])
async def test_what_is_no_join_token_is_not_sent_anywhere(tmp_path: Path, token: str) -> None:
    with pytest.raises(JoinFailed) as caught:
        await join(tmp_path / "state", "https://127.0.0.1:1", token, "edge-1", {})
    assert caught.value.code == "token_malformed"
    assert not (tmp_path / "state").exists()


async def test_an_unknown_token_is_refused(control: Control, tmp_path: Path) -> None:
    token = await control.join_token()
    head, _, fingerprint = token.rpartition(".")
    wrong = f"{head[:-43]}{'A' * 43}.{fingerprint}"
    with pytest.raises(JoinFailed, match="skerry node token") as caught:
        await join(tmp_path / "state", control.url, wrong, "edge-1", {})
    assert caught.value.code == "credentials_invalid"
    assert "A" * 43 not in caught.value.message


async def test_a_name_that_is_taken_is_refused(control: Control, tmp_path: Path) -> None:
    await joined(control, tmp_path / "one")
    with pytest.raises(JoinFailed, match="--rejoin") as caught:
        await joined(control, tmp_path / "two")
    assert caught.value.code == "name_taken"


async def test_a_joined_node_is_not_joined_again_by_accident(control: Control, tmp_path: Path) -> None:
    made = await joined(control, tmp_path / "state")
    with pytest.raises(JoinFailed, match="--again") as caught:
        await joined(control, tmp_path / "state")
    assert caught.value.code == "already_joined"
    assert identity.read(tmp_path / "state") == made


async def test_after_a_lost_disk_the_node_joins_again_as_itself(control: Control, tmp_path: Path) -> None:
    lost = await joined(control, tmp_path / "lost")
    await poll(tmp_path / "lost")
    again = await joined(control, tmp_path / "new", rejoin="edge-1")
    assert again.node_id == lost.node_id
    assert again.credential != lost.credential
    await poll(tmp_path / "new")
    with pytest.raises(ControlRefused) as caught:
        await poll(tmp_path / "lost")
    assert caught.value.status == 401


async def test_again_exchanges_the_identity_only_when_the_new_one_is_there(control: Control, tmp_path: Path) -> None:
    state = tmp_path / "state"
    first = await joined(control, state)
    with pytest.raises(JoinFailed):
        await join(state, control.url, "skj_" + "0" * 36 + "_" + "a" * 43, "edge-2", {}, again=True, ca=control.pki.ca)
    assert identity.read(state) == first
    await poll(state)
    second = await join(state, control.url, await control.join_token(), "edge-2", {}, again=True)
    assert identity.read(state) == second
    assert second.node_id != first.node_id


async def test_nobody_there_is_said_and_may_be_tried_again(control: Control, tmp_path: Path) -> None:
    token = await control.join_token()
    with pytest.raises(JoinFailed) as caught:
        await join(tmp_path / "state", "https://127.0.0.1:1", token, "edge-1", {}, pause=0.01)
    assert caught.value.code == "unreachable"
    made = await join(tmp_path / "state", control.url, token, "edge-1", {})
    assert made.name == "edge-1"


async def test_a_control_that_restarts_meanwhile_is_waited_for(
    control: Control, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As many as a start may take on a busy machine.
    monkeypatch.setattr(joining, "TRIES", 60)
    token = await control.join_token()
    (tmp_path / "ca.pem").write_bytes(control.pki.ca.read_bytes())
    await control.stop()
    task = asyncio.ensure_future(
        join(tmp_path / "state", control.url, token.split(".")[0], "edge-1", {}, ca=tmp_path / "ca.pem", pause=1.0)
    )
    await asyncio.sleep(0.1)
    await control.start()
    assert (await task).name == "edge-1"


async def test_a_new_credential_is_good_and_ends_the_old_one_when_it_is_used(control: Control, tmp_path: Path) -> None:
    made = await joined(control, tmp_path / "state")
    async with ControlClient(control.url, control.pki.ca, made.credential) as session:
        lost = await session.rotate()
        new = await session.rotate()
        await session.poll(POLL)  # the old one is good until then
        session.credential = lost
        with pytest.raises(ControlRefused):
            await session.poll(POLL)
        session.credential = new
        await session.poll(POLL)
        session.credential = made.credential
        with pytest.raises(ControlRefused, match="a newer credential"):
            await poll_on(session)


@pytest.mark.parametrize(
    "content", [b"", b"no PEM at all", b"-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----"]
)
async def test_what_is_no_authority_is_not_trusted(control: Control, pki: Pki, tmp_path: Path, content: bytes) -> None:
    token = await control.join_token()
    async with file_server(pki) as server:
        server.files["/v1/ca"] = content
        with pytest.raises(JoinFailed) as caught:
            await join(tmp_path / "state", server.url, token, "edge-1", {})
        assert caught.value.code == "ca_mismatch"


async def test_what_control_is_told_of_a_node_is_plain() -> None:
    told: Any = capabilities.document()
    assert set(told["abi"]) == set(RUNNERS)
    assert {"route", "route.path", "http.hosts", "secrets", "sql"} <= set(told["manifest"])
    assert set(told) == {"version", "python", "machine", "system", "abi", "manifest", "schema", "questions"}
