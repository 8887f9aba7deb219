"""What every endpoint answers to bad input: problem+json, a stable code, the field; and nothing is changed."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import pytest_asyncio

from control.api import pagination, probes
from control.api.operations import Operation, Reply
from control.api.services import Services
from control.local.pki import Pki
from control.tokens import new_token
from control.web import openapi
from control.web.routes import OPERATIONS
from tests.support.control import Control, module, running
from tests.support.deadlines import deadline
from tests.support.lent import Lender
from tests.support.services import ServerUrls

PATH = {"name": "hello", "version": "1", "number": "1", "group": "default", "node": "n1", "sha256": "0" * 64}
PATH["id"] = "00000000-0000-0000-0000-000000000000"
PATH["rehearsal"] = f"{PATH['id']}.1"
PATH |= {"lineage": "0" * 32, "level": "0", "file": f"{1:016x}-{1:016x}.ltx"}
JSON = {"content-type": "application/json"}
TABLES = ("epochs", "generations", "groups", "nodes", "credentials", "join_tokens", "operators", "artifacts")
TABLES += ("functions", "function_versions", "schema_changes", "releases", "release_functions", "syncs", "audit")
TABLES += ("idempotency",)


def fill(path: str, **other: str) -> str:
    return path.format(**{**PATH, **other})


async def contents(control: Control) -> dict[str, list[str]]:
    """Every row of every table that a request could change, but for what refusals and heartbeats write."""

    async def work(conn: Any) -> dict[str, list[str]]:
        return {t: sorted(map(str, await conn.fetch(f"SELECT * FROM {t}"))) for t in TABLES}

    return await control.services.db.read(work)


in_the_modules_loop = pytest.mark.asyncio(loop_scope="module")
"""For a test that is lent the module's replica."""


class Fleet:
    """A control plane with one of everything, and a token of each kind."""

    def __init__(self, control: Control, tokens: dict[str, str]) -> None:
        self.control = control
        self.tokens = tokens

    def token(self, operation: Operation) -> str:
        return self.tokens[operation.role] if operation.role in ("node", "join") else self.control.token


async def one_of_everything(control: Control) -> dict[str, str]:
    """Make a fleet, and return a token of each kind but an operator's."""
    for name in ("hello", "later"):
        await control.push(name, module(name))
    await control.ok("POST", "/v1/schema-changes", {"name": "t", "sql": "CREATE TABLE t (id INTEGER);"})
    await control.release(functions={"hello": 1})
    node = await control.join("n1")
    # Used, so that no later request does what the first use does.
    assert (await control.call("POST", "/v1/poll", {}, token=node.credential)).status == 422
    join = (await control.ok("POST", "/v1/join-tokens", {}))["token"]
    return {"node": node.credential, "join": join}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lender(services: ServerUrls, pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lender]:
    made = Lender(services, pki, tmp_path_factory.mktemp("spool"), one_of_everything, body_limit=200_000)
    yield made
    await made.end()


@pytest_asyncio.fixture(loop_scope="module")
async def fleet(lender: Lender, lent: Control) -> Fleet:
    return Fleet(lent, lender.made)


@in_the_modules_loop
async def test_bodies_that_are_no_good(fleet: Fleet) -> None:
    control = fleet.control
    before = await contents(control)
    poll = Operation("POST", "/v1/poll", "", None, "node", {}, body=dict)  # type: ignore[arg-type]
    for operation in (*OPERATIONS, poll):
        if operation.body in (None, bytes):
            continue
        path, token = fill(operation.path), fleet.token(operation)
        cases: list[tuple[Any, int, str]] = [
            (b"{", 400, "malformed_json"),
            (b"", 400, "malformed_json"),
            (b'{"a": NaN}', 400, "malformed_json"),
            (b"\xff\xfe", 400, "malformed_json"),
            (b'"\\ud800"', 400, "malformed_json"),
            (b"[]", 422, "invalid_body"),
            (b"null", 422, "invalid_body"),
            (b'"text"', 422, "invalid_body"),
            (b"[" * 100_000, 400, "malformed_json"),
            (b" " * 300_000, 413, "body_too_large"),
        ]
        for data, status, code in cases:
            reply = await control.call(operation.method, path, data=data, token=token, headers=JSON)
            assert (reply.status, reply.code) == (status, code), (operation.path, data[:20], reply.body)
        reply = await control.call(
            operation.method, path, data=b"a=1", token=token, headers={"content-type": "text/plain"}
        )
        if operation is not poll:
            assert reply.code == "unsupported_media_type", operation.path
    assert await contents(control) == before


@in_the_modules_loop
async def test_unknown_fields_of_operators_are_refused(fleet: Fleet) -> None:
    control = fleet.control
    before = await contents(control)
    for operation in OPERATIONS:
        if operation.body in (None, bytes) or operation.role in ("node", "join"):
            continue
        reply = await control.call(operation.method, fill(operation.path), {"surprise": 1})
        assert (reply.code, reply.body["field"]) == ("invalid_body", "surprise"), operation.path
    assert await contents(control) == before


async def test_unknown_fields_of_nodes_are_passed_over(control: Control) -> None:
    join = (await control.ok("POST", "/v1/join-tokens", {}))["token"]
    body = {"name": "n2", "attempt": PATH["id"], "surprise": 1}
    assert (await control.call("POST", "/v1/nodes", body, token=join)).status == 201


WRONG_FIELDS: list[tuple[str, Any, str]] = [
    ("/v1/functions/hello/versions", {"sha256": 7}, "sha256"),
    ("/v1/functions/hello/versions", {"sha256": "0" * 63}, "sha256"),
    ("/v1/functions/hello/versions", {"sha256": "0" * 64, "manifest": {"sql": "all"}}, "manifest.sql"),
    ("/v1/functions/hello/versions", {"sha256": "0" * 64, "manifest": {"color": 1}}, "manifest.color"),
    ("/v1/functions/hello/versions", {}, "sha256"),
    ("/v1/schema-changes", {"name": "a", "sql": "x\u0000y"}, "sql"),
    ("/v1/schema-changes", {"name": "a" * 201, "sql": "x"}, "name"),
    ("/v1/schema-changes", {"name": "a", "sql": "x", "number": 2**40}, "number"),
    ("/v1/groups", {"name": "No Such Name"}, "name"),
    ("/v1/groups", {"name": "line-break\n"}, "name"),
    ("/v1/releases", {"functions": {"hello": "1"}}, "functions[...]"),
    ("/v1/releases", {"reason": "x\u0000"}, "reason"),
    ("/v1/releases", {"schema": -1}, "schema"),
    ("/v1/releases", {"remove": "hello"}, "remove"),
    ("/v1/releases", {"rollout": {"steps": []}}, "rollout.steps"),
    ("/v1/releases", {"rollout": {"steps": [{"until": 5}]}}, "rollout.steps[0].until"),
    ("/v1/releases", {"rollout": {"on_failure": "hope"}}, "rollout.on_failure"),
    ("/v1/releases", {"rollout": {"gate": [{"metric": "mood"}]}}, "rollout.gate[0].metric"),
    ("/v1/releases", {"rollout": {"gate": [{"at_least_calls": 0}]}}, "rollout.gate[0].at_least_calls"),
    ("/v1/releases", {"now": "yes"}, "now"),
    ("/v1/rollouts/default/1/abort", {"reason": 7}, "reason"),
    ("/v1/rollouts/default/1/promote", {"all": 1}, "all"),
    ("/v1/rollouts/default/1/pause", {"color": 1}, "color"),
    ("/v1/operators", {"name": "bob", "role": "king"}, "role"),
    ("/v1/join-tokens", {"expires_in": 1}, "expires_in"),
    ("/v1/nodes/n1/move", {"group": None}, "group"),
    ("/v1/logins", {"machine": "of anna\u202e, of a stranger"}, "machine"),
]


@in_the_modules_loop
async def test_the_field_that_is_wrong_is_named(fleet: Fleet) -> None:
    control = fleet.control
    before = await contents(control)
    for path, body, field in WRONG_FIELDS:
        reply = await control.call("POST", path, body)
        assert (reply.status, reply.code, reply.body.get("field")) == (422, "invalid_body", field), (path, body)
    assert await contents(control) == before


WRONG_PARAMETERS = [
    ("/v1/functions/Hello/versions", "name"),
    ("/v1/functions/hello/versions/0", "version"),
    ("/v1/functions/hello/versions/x", "version"),
    ("/v1/functions/hello/versions/99999999999999999999", "version"),
    ("/v1/functions/hello%0A/versions", "name"),
    ("/v1/functions/hello%00/versions", "name"),
    ("/v1/schema-changes/-1", "number"),
    ("/v1/releases/Default/1", "group"),
    ("/v1/rollouts/default/x", "number"),
    ("/v1/rollouts/default/1/nodes?outcome=happy", "outcome"),
    ("/v1/rollouts/default/1/rehearsal?outcome=inconclusive", "outcome"),
    ("/v1/rollouts/default/1/rehearsal?cursor=W10", "cursor"),
    ("/v1/rollouts?open=maybe", "open"),
    ("/v1/rollouts?cursor=x", "cursor"),
    ("/v1/nodes/N%201", "node"),
    ("/v1/syncs/1", "id"),
    ("/v1/functions?cursor=x", "cursor"),
    ("/v1/audit?cursor=W10", "cursor"),
    ("/v1/audit?cursor=%00", "cursor"),
    ("/v1/functions?limit=0", "limit"),
    ("/v1/functions?limit=1001", "limit"),
    ("/v1/functions?limit=ten", "limit"),
    ("/v1/functions?limit=1&limit=2", "limit"),
    ("/v1/nodes?state=happy", "state"),
    ("/v1/syncs?status=happy", "status"),
    ("/v1/functions?color=red", "color"),
]


@in_the_modules_loop
async def test_the_parameter_that_is_wrong_is_named(lent: Control) -> None:
    for path, field in WRONG_PARAMETERS:
        reply = await lent.call("GET", path)
        assert (reply.status, reply.code, reply.body["field"]) == (422, "invalid_parameter", field), path


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
@in_the_modules_loop
async def test_cursors_beyond_all_times_are_refused(lent: Control, time: str) -> None:
    for path, rest in (("audit", [PATH["id"]]), ("syncs", [PATH["id"]]), ("auth-failures", ["a", "b"])):
        reply = await lent.call("GET", f"/v1/{path}?cursor={pagination.write_cursor(time, *rest)}")
        assert (reply.status, reply.code, reply.body["field"]) == (422, "invalid_parameter", "cursor"), path


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "2026-01-01T00:00:00+23:59"])
@in_the_modules_loop
async def test_cursors_at_the_ends_of_time_are_cursors(lent: Control, time: str) -> None:
    for path, rest in (("audit", [PATH["id"]]), ("syncs", [PATH["id"]]), ("auth-failures", ["a", "b"])):
        await lent.ok("GET", f"/v1/{path}?cursor={pagination.write_cursor(time, *rest)}")


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00%2B23:59", "9999-12-31T23:59:59-23:59"])
@in_the_modules_loop
async def test_lists_from_or_to_beyond_all_times_are_lists(lent: Control, time: str) -> None:
    for filter in ("since", "until"):
        await lent.ok("GET", f"/v1/audit?{filter}={time}")


@in_the_modules_loop
async def test_cursors_of_other_lists_are_refused(lent: Control) -> None:
    cursor = (await lent.ok("GET", "/v1/functions?limit=1"))["next"]
    for other in ("/v1/audit", "/v1/releases", "/v1/schema-changes", "/v1/functions/hello/versions"):
        assert (await lent.call("GET", f"{other}?cursor={cursor}")).code == "invalid_parameter"


@in_the_modules_loop
async def test_unknown_parameters_and_methods(lent: Control) -> None:
    by_path: dict[str, set[str]] = {}
    for operation in OPERATIONS:
        by_path.setdefault(operation.path, set()).add(operation.method)
        if operation.role in ("node", "join", None) or operation.body is bytes:
            continue
        reply = await lent.call(operation.method, fill(operation.path) + "?surprise=1")
        if operation.method != "HEAD":
            assert (reply.status, reply.code) == (422, "invalid_parameter"), operation.path
            assert reply.body["field"] == "surprise"
    for path, methods in [*by_path.items(), ("/v1/poll", {"POST"})]:
        for method in {"GET", "POST", "PUT", "DELETE", "PATCH"} - methods:
            reply = await lent.call(method, fill(path))
            assert (reply.status, reply.code) == (405, "method_not_allowed"), (method, path)
            assert {m.strip() for m in reply.headers["allow"].split(",")} == methods
    for path in ("/v1", "/v1/functions/", "/v1/functions/a/versions/1/x", "/v1/poll/", "//v1/nodes"):
        reply = await lent.call("GET", path)
        assert (reply.status, reply.code) == (404, "no_such_path"), path


@in_the_modules_loop
async def test_every_operation_wants_its_own_credentials(fleet: Fleet) -> None:
    control = fleet.control
    before = await contents(control)
    # A reader may do nothing that is more than reading.
    unknown = {kind: new_token(kind).text for kind in ("node", "join", "operator")}  # type: ignore[arg-type]
    poll = Operation("POST", "/v1/poll", "", None, "node", {})  # type: ignore[arg-type]
    for operation in (*OPERATIONS, poll):
        if operation.role is None:
            continue
        own = operation.role if operation.role in ("node", "join") else "operator"
        others = {"node": fleet.tokens["node"], "join": fleet.tokens["join"], "operator": control.token}
        del others[own]
        bad = ["", "x", "sko_", *others.values(), *unknown.values()]
        for token in bad:
            # A join token is looked at after the body.
            body = {"name": "nx", "attempt": PATH["id"]} if operation.role == "join" else None
            reply = await control.call(operation.method, fill(operation.path), body, token=token)
            assert reply.status == 401, (operation.path, token)
            assert reply.headers["www-authenticate"] == "Bearer"
            if operation.method != "HEAD":
                assert reply.code == ("credentials_missing" if token == "" else "credentials_invalid")
        basic = await control.call(
            operation.method, fill(operation.path), token="", headers={"authorization": "Basic YTpi"}
        )
        assert basic.status == 401
    assert await contents(control) == before


@in_the_modules_loop
async def test_calls_without_a_body_take_none(lent: Control) -> None:
    for operation in OPERATIONS:
        if operation.body is None and operation.method in ("POST", "DELETE") and operation.role != "node":
            reply = await lent.call(operation.method, fill(operation.path), {"surprise": 1})
            assert (reply.status, reply.code) == (422, "invalid_body"), operation.path


@in_the_modules_loop
async def test_a_bad_idempotency_key_is_refused(lent: Control) -> None:
    before = await lent.items("/v1/releases")
    for key in ("k" * 201, "with space", "\xfc"):
        reply = await lent.call("POST", "/v1/releases", {}, key=key)
        assert (reply.code, reply.body["field"]) == ("invalid_parameter", "Idempotency-Key")
    assert await lent.items("/v1/releases") == before


async def test_a_body_that_does_not_come_is_given_up(database_url: str, bucket_url: str, pki: Pki) -> None:
    async with running(database_url, bucket_url, pki, body_timeout=0.3) as control:
        for method, path in (("POST", "/v1/groups"), ("PUT", f"/v1/artifacts/{'0' * 64}")):
            parts = urlsplit(control.url)
            context = ssl.create_default_context(cafile=str(pki.ca))
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=context)
            head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {control.token}\r\n"
            writer.write(head.encode() + b"content-length: 100\r\n\r\n{")
            async with deadline(60):
                answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 408")
            assert b"body_timeout" in answer
            writer.close()


@in_the_modules_loop
async def test_an_upload_that_ends_early_leaves_nothing(lent: Control, pki: Pki) -> None:
    parts = urlsplit(lent.url)
    context = ssl.create_default_context(cafile=str(pki.ca))
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=context)
    head = f"PUT /v1/artifacts/{'0' * 64} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {lent.token}\r\n"
    writer.write(head.encode() + b"content-length: 100\r\n\r\nabc")
    await writer.drain()
    writer.close()
    async with deadline(60):
        await reader.read()
    found = "SELECT count(*) FROM artifacts WHERE sha256 = $1"
    assert await lent.services.db.read(lambda conn: conn.fetchval(found, "0" * 64)) == 0


@in_the_modules_loop
async def test_every_answer_has_a_request_id(lent: Control) -> None:
    ids = [(await lent.call("GET", path)).headers["x-request-id"] for path in ("/healthz", "/nowhere", "/v1/nodes")]
    assert len(set(ids)) == 3


@in_the_modules_loop
async def test_a_fault_of_ours_is_internal_and_says_no_more(lent: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(lent.services.readiness, "check", broken)
    reply = await lent.call("GET", "/readyz")
    assert (reply.status, reply.code) == (500, "internal")
    assert "secret detail" not in str(reply.body)
    assert reply.headers["x-request-id"] in reply.body["detail"]


async def test_an_answer_that_breaks_off_is_seen_as_such(
    control: Control, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"a beginning"
        raise RuntimeError("the store has gone")

    async def broken(services: Services) -> Reply:
        return Reply(200, pieces())

    monkeypatch.setattr(probes, "scraped", broken)
    with pytest.raises(aiohttp.ClientPayloadError):
        await control.call("GET", "/metrics")
    assert any("GET /metrics was cut off within its answer" in record.message for record in caplog.records)
    monkeypatch.undo()
    found = (await control.call("GET", "/metrics")).body
    assert 'skerry_http_requests_total{method="GET",route="/metrics",status="200"} 1.0' in str(found)


def test_every_code_of_the_table_is_known_to_the_description() -> None:
    for operation in OPERATIONS:
        assert set(operation.problems) <= openapi.CODES.keys()
