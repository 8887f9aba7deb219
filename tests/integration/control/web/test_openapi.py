"""/openapi.json is true: schemathesis talks to the running server, with right and with wrong input."""

import asyncio

import pytest

from control.api import logs
from control.local.pki import Pki
from control.problems import CODES
from control.web import openapi, routes
from tests.support.control import module, running


@pytest.mark.timeout(480)
# Control shuffles what it wakes up, in another thread than the one that draws examples.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module:hypothesis.errors.HypothesisDeprecationWarning")
async def test_the_server_does_what_the_document_says(
    database_url: str, bucket_url: str, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Here: it takes a while to import, and each process of the tests imports this module.
    from tests.support.made_up_requests import try_out

    # Views of logs would be open until their client goes.
    monkeypatch.setattr(logs, "_ended", lambda *_: "watch_ended")
    async with running(database_url, bucket_url, pki, hold=0.05) as control:
        await control.push("hello", module("1"))
        await control.ok("POST", "/v1/schema-changes", {"name": "t", "sql": "CREATE TABLE t (id INTEGER);"})
        await control.release(functions={"hello": 1})
        node = await control.join("n1")
        join = (await control.ok("POST", "/v1/join-tokens", {"expires_in": 86400}))["token"]
        tokens = {"operator": control.token, "node": node.credential, "join": join}
        document = await control.ok("GET", "/openapi.json", token="")
        sent, statuses = await asyncio.to_thread(try_out, control.url, str(pki.ca), document, tokens)
        assert sent > 200
        assert {200, 201, 404, 422} <= statuses


def test_every_operation_is_described_once() -> None:
    document = openapi.document(routes.OPERATIONS)
    ids = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids)) == len(routes.OPERATIONS) + 1


def test_every_status_of_a_problem_is_one_of_its_codes() -> None:
    document = openapi.document(routes.OPERATIONS)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    codes = response["description"].split(", ")
                    assert {CODES[code].status for code in codes} == {int(status)}, (path, method)
