"""Requirement 7: who is let in, and over what; 7.4 is in test_r7_refusals."""

import asyncio
import hmac
import re
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

from control import tokens
from control.local.pki import ensure
from control.protocol import wire
from tests.guests.version import version
from tests.support import deploy, repeating
from tests.support.clock import SetClock
from tests.support.deadlines import deadline
from tests.support.deploy import code, ok
from tests.support.programs import command, until
from tests.support.replica import Answered, Replica, Site
from tests.support.tokens import ask, failures, other_secret, secret_of


async def test_r7_1_a_nodes_token_is_verified(
    replica: Replica, clock: SetClock, metadata: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, other = await replica.join("one"), await replica.join("two")
    await other.poll()
    join_token = (await ok(replica, "POST", "/v1/join-tokens", {}))["token"]
    await repeating.saved(replica.services.heartbeats.flush)
    stored = "SELECT * FROM nodes AS n JOIN node_presence AS p ON p.node_id = n.id ORDER BY name"
    before = await metadata.fetch(stored)
    clock.advance(10)
    unknown = f"skn_{uuid4()}_{secret_of(node.credential)}"
    for token, reason in (
        ("", "missing"),
        ("nonsense", "malformed"),
        (node.credential[:-1], "malformed"),
        (other_secret(node.credential), "wrong_secret"),
        (unknown, "unknown"),
        # What is a secret of control's too, but for something else.
        (replica.admin, "malformed"),
        (join_token, "malformed"),
    ):
        counted = (await failures(replica)).get(reason, 0)
        answer = await ask(replica, token)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer"), reason
        assert code(answer) == ("credentials_missing" if reason == "missing" else "credentials_invalid")
        # Whoever asks doesn't learn which of them it was.
        assert reason == "missing" or "isn't known, isn't for this call, or was revoked" in answer.json()["detail"]
        assert (await failures(replica))[reason] == counted + 1
    await repeating.saved(replica.services.heartbeats.flush)
    assert await metadata.fetch(stored) == before

    # The right one, compared in constant time.
    compared: list[tuple[bytes, bytes]] = []

    def compare(known: bytes, given: bytes) -> bool:
        compared.append((known, given))
        return hmac.compare_digest(known, given)

    monkeypatch.setattr(tokens, "hmac", SimpleNamespace(compare_digest=compare))
    for token, asking in (
        (node.credential, ask(replica, node.credential)),
        (replica.admin, replica.call("GET", "/v1/nodes")),
        (join_token, replica.call("POST", "/v1/nodes", wire.Join("three", str(uuid4())), token=join_token)),
    ):
        compared.clear()
        assert (await asking).status in (200, 201)
        hashed = tokens.hash_secret(secret_of(token)).encode()
        assert set(compared) == {(hashed, hashed)}  # more than once where it had to ask again
    assert (await ask(replica, node.credential)).status == 200


async def test_r7_1_a_node_can_do_nothing_to_anothers_sync(replica: Replica, metadata: asyncpg.Connection) -> None:
    node, other = await replica.join("one"), await replica.join("two")
    await deploy.push(replica, "show", version(1), sql="read")
    await deploy.release(replica, functions={"show": 1})
    plan = await node.plan()
    await other.plan()
    before = await metadata.fetch("SELECT * FROM syncs ORDER BY id")
    for status in ("running", "succeeded", "failed"):
        answer = await other.report(plan.sync_id, status)
        assert (answer.status, code(answer)) == (404, "unknown_sync")
        operators = await replica.call("PUT", f"/v1/syncs/{plan.sync_id}", wire.SyncUpdate(status="running"))
        assert operators.status == 401
    assert await metadata.fetch("SELECT * FROM syncs ORDER BY id") == before
    # Nor what only operators may.
    for method, path in (("GET", "/v1/nodes"), ("POST", "/v1/join-tokens"), ("DELETE", "/v1/nodes/two")):
        assert (await replica.call(method, path, token=node.credential)).status == 401
    node.apply(plan)
    assert (await node.report(plan.sync_id, "succeeded")).json()["status"] == "succeeded"


async def test_r7_1_a_revoked_credential_is_refused_everywhere(control_site: Site) -> None:
    async with control_site.running() as one, control_site.running() as two:
        node, other = await one.join("one"), await one.join("two")
        for replica in (one, two):
            for which in (node, other):
                assert (await ask(replica, which.credential)).status == 200
        await ok(one, "POST", "/v1/nodes/one/revoke")
        assert code(await ask(one, node.credential)) == "node_revoked"

        async def refused() -> bool:
            return (await ask(two, node.credential)).status == 401

        await until(refused, "the other replica refuses it")
        assert (await two.call("POST", "/v1/nodes/self/credential", token=node.credential)).status == 401
        assert (await two.call("GET", f"/v1/artifacts/{'0' * 64}", token=node.credential)).status == 401
        assert (await failures(one))["revoked"] >= 1
        for replica in (one, two):
            assert (await ask(replica, other.credential)).status == 200
        # A removed node's, too.
        await ok(one, "DELETE", "/v1/nodes/two")
        assert (await ask(one, other.credential)).status == 401


@asynccontextmanager
async def handshake(url: str, context: ssl.SSLContext) -> AsyncIterator[ssl.SSLObject]:
    parts = urlsplit(url)
    _, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=context)
    try:
        yield writer.get_extra_info("ssl_object")
    finally:
        writer.transport.abort()


def client(ca: Path, lowest: ssl.TLSVersion, highest: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version, context.maximum_version = lowest, highest
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


async def test_r7_2_control_speaks_tls_alone(live: Replica, tmp_path: Path) -> None:
    v1_1, v1_2, v1_3 = ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
    for allowed, name in ((v1_2, "TLSv1.2"), (v1_3, "TLSv1.3")):
        async with handshake(live.url, client(live.ca, allowed, allowed)) as tls:
            assert tls.version() == name
    # The client could: it does with a server that lets it.
    old = client(live.ca, ssl.TLSVersion.TLSv1, v1_1)
    async with _server_of_old_tls(live) as url, handshake(url, old) as tls:
        assert tls.version() == "TLSv1.1"
    with pytest.raises((ssl.SSLError, ConnectionError)) as refused:
        async with handshake(live.url, old):
            pass
    assert "PROTOCOL_VERSION" in str(refused.value) or isinstance(refused.value, ConnectionError)

    # Plain HTTP on its port is no HTTP.
    parts = urlsplit(live.url)
    for path in ("/healthz", "/v1/ca", "/v1/nodes"):
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        request = f"GET {path} HTTP/1.1\r\nHost: control\r\nAuthorization: Bearer {live.admin}\r\n\r\n"
        writer.write(request.encode())
        async with deadline(20):
            try:
                answer = await reader.read()
            except ConnectionError:
                answer = b""
        writer.transport.abort()
        assert b"HTTP/" not in answer

    # It shows a certificate of its CA, by which others are told apart.
    stranger = ensure(tmp_path / "stranger")
    with pytest.raises(ssl.SSLCertVerificationError):
        async with handshake(live.url, ssl.create_default_context(cafile=str(stranger.ca))):
            pass


@asynccontextmanager
async def _server_of_old_tls(control: Replica) -> AsyncIterator[str]:
    settings = control.services.settings
    assert settings.tls_cert is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(settings.tls_cert, settings.tls_key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
    context.set_ciphers("ALL:@SECLEVEL=0")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_r7_2_nobody_can_do_without_tls(control_site: Site, tmp_path: Path) -> None:
    site = {
        "SKERRY_METADATA_URL": control_site.settings.metadata_url,
        "SKERRY_ARTIFACTS_URL": control_site.settings.artifacts_url,
        "SKERRY_PORT": "0",
    }
    # Control: not to other machines, nor to a database or a store elsewhere.
    wrong = (
        ({"SKERRY_BIND": "0.0.0.0"}, "SKERRY_TLS_CERT"),
        ({"SKERRY_METADATA_URL": "postgresql://u:hush@192.0.2.1/skerry"}, "sslmode"),
        ({"SKERRY_ARTIFACTS_URL": "http://key:hush@192.0.2.1/bucket"}, "https"),
    )
    for changed, word in wrong:
        done = await command("control.cli", "serve", **(site | changed))
        assert done.status != 0
        assert word in done.err
        assert "hush" not in done.err
    # The node and the operator: not to a control without TLS.
    node = ("join", "--state", tmp_path / "node", "--control", "http://192.0.2.1:8443", "--name", "one")
    token = tokens.new_token("join").text
    done = await command("edge_runtime.cli.main", *node, SKERRY_JOIN_TOKEN=token)
    assert done.status != 0
    assert "HTTPS" in done.err
    done = await command("control.cli", "status", SKERRY_URL="http://192.0.2.1:8443", SKERRY_TOKEN="x")
    assert done.status != 0
    assert "https" in done.err


async def test_r7_3_every_node_has_a_credential_of_its_own(replica: Replica, metadata: asyncpg.Connection) -> None:
    nodes = [await replica.join(f"node-{number}") for number in range(4)]
    credentials = [node.credential for node in nodes]
    assert len({secret_of(credential) for credential in credentials}) == 4
    # 256 bits, of which a hash is kept.
    for credential in credentials:
        assert re.fullmatch(r"[A-Za-z0-9_-]{43}", secret_of(credential))
    # A join that was asked for twice ends the credential of its first answer.
    rows = await metadata.fetch("SELECT node_id, secret_hash FROM credentials WHERE revoked_at IS NULL")
    assert sorted((str(row["node_id"]), row["secret_hash"]) for row in rows) == sorted(
        (node.id, tokens.hash_secret(secret_of(node.credential))) for node in nodes
    )
    # Each is that node's and no other's.
    await deploy.push(replica, "show", version(1), sql="read")
    await deploy.release(replica, functions={"show": 1})
    await nodes[1].sync()
    assert [n["at_target"] for n in await deploy.items(replica, "/v1/nodes")] == [False, True, False, False]
    # Revoked on its own.
    await ok(replica, "POST", "/v1/nodes/node-2/revoke")
    assert [(await ask(replica, token)).status for token in credentials] == [200, 200, 401, 200]


async def test_r7_3_a_credential_is_rotated_without_a_gap(replica: Replica) -> None:
    node = await replica.join("one")
    await node.poll()
    old = node.credential
    new = (await ok(replica, "POST", "/v1/nodes/self/credential", token=old))["credential"]
    assert new != old
    # The old one is good until the new one was used: an answer that got lost loses nothing.
    assert (await ask(replica, old)).status == 200
    newer = (await ok(replica, "POST", "/v1/nodes/self/credential", token=old))["credential"]
    assert (await ask(replica, newer)).status == 200
    for token in (old, new):

        async def refused(token: str = token) -> bool:
            return (await ask(replica, token)).status == 401

        await until(refused, "the one before is refused")
    assert (await ask(replica, newer)).status == 200


async def test_r7_3_a_join_token_is_good_once_and_for_a_time(
    replica: Replica, clock: SetClock, metadata: asyncpg.Connection
) -> None:
    async def token() -> str:
        return str((await ok(replica, "POST", "/v1/join-tokens", {"expires_in": 600}))["token"])

    async def joins(token: str, name: str, attempt: str = "") -> Answered:
        return await replica.call("POST", "/v1/nodes", wire.Join(name, attempt or str(uuid4())), token=token)

    used = await token()
    attempt = str(uuid4())
    first = (await joins(used, "one", attempt)).json()
    # The same attempt may ask again until the credential was used; then, as anybody else at any time, not.
    stolen = await joins(used, "thief")
    assert (stolen.status, code(stolen)) == (401, "token_used")
    second = (await joins(used, "one", attempt)).json()
    assert (await ask(replica, second["credential"])).status == 200
    assert (await ask(replica, first["credential"])).status == 401
    again = await joins(used, "one", attempt)
    assert (again.status, code(again)) == (401, "token_used")

    late = await token()
    clock.advance(601)
    expired = await joins(late, "two")
    assert (expired.status, code(expired)) == (401, "token_expired")
    guessed = await joins(other_secret(await token()), "three")
    assert (guessed.status, code(guessed)) == (401, "credentials_invalid")
    node = await joins(second["credential"], "four")
    assert node.status == 401
    assert await metadata.fetchval("SELECT count(*) FROM nodes") == 1
    counted = await failures(replica)
    assert {reason: counted[reason] for reason in ("token_used", "expired", "join_token_unknown")} == {
        "token_used": 2,
        "expired": 1,
        "join_token_unknown": 1,
    }
