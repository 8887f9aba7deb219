"""/openapi.json is true: schemathesis talks to the running server, with right and with wrong input."""

import asyncio
import time
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import hypothesis
import pytest
import requests
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from control.api.fleet import logs
from control.local.pki import Pki
from control.problems import CODES
from control.web import openapi, routes
from tests.support.control import module, running

CHECKS = [
    negative_data_rejection,
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
SECONDS = 200.0
"""A busy machine needs more than a minute; what comes after them isn't tried."""
EXAMPLES = {
    "post-v1-schema-changes": 3,
    "post-v1-schema-changes-number-revisions": 3,
    "get-v1-schema-changes-number-reversal": 3,
}
"""How many requests are made of operations that start a process; others get more."""
KNOWN = {"name": "hello", "version": 1, "number": 1, "group": "default", "node": "n1"}
"""What there is, so that not every path is of something unknown."""


@schemathesis.serializer("application/wasm", "application/x-ndjson")
def as_it_is(ctx: Any, value: Any) -> dict[str, Any]:
    """A binary body, for requests."""
    return {"data": value if isinstance(value, bytes) else str(value).encode()}


def credentials(operation: Any, tokens: dict[str, str]) -> str:
    security = operation.definition.raw.get("security") or []
    return tokens[next(iter(security[0]))] if security else ""


def names_in(url: str) -> set[str]:
    """The names in the query of an address."""
    return {name for name, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True)}


def examples(test: Any, strategy: Any, count: int) -> None:
    """Run `test` on `count` values of the strategy."""

    @hypothesis.settings(
        max_examples=count,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(strategy)
    def run(case: Any) -> None:
        test(case)

    run()


def try_out(url: str, ca: str, document: dict[str, Any], tokens: dict[str, str]) -> tuple[int, set[int]]:
    """Send what schemathesis makes up; returns how many requests it sent and the statuses that came."""
    schema = schemathesis.openapi.from_dict(document)
    deadline = time.monotonic() + SECONDS
    sent, statuses = 0, set()
    with requests.Session() as session:
        session.trust_env = False
        operations = [result.ok() for result in schema.get_all_operations()]
        assert len(operations) == len(routes.OPERATIONS) + 1
        for operation in operations:
            name = operation.definition.raw["operationId"]
            known = {key: value for key, value in KNOWN.items() if f"{{{key}}}" in operation.path}
            runs: list[tuple[GenerationMode, dict[str, Any]]] = [
                (GenerationMode.POSITIVE, {}),
                (GenerationMode.NEGATIVE, {}),
            ]
            if known and operation.method.upper() != "DELETE":
                runs += [
                    (mode, {"path_parameters": known}) for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
                ]
            for mode, overrides in runs:

                def one(case: Any, token: str = credentials(operation, tokens)) -> None:
                    nonlocal sent
                    if time.monotonic() > deadline:
                        return
                    headers = {"authorization": f"Bearer {token}"} if token else {}
                    response = case.call(
                        base_url=url, session=session, headers=headers, allow_redirects=False, verify=ca
                    )
                    sent += 1
                    statuses.add(response.status_code)
                    # What isn't sent, as an empty list, can't be refused.
                    refusable = set(case.query or {}) <= names_in(response.request.url)
                    case.validate_response(response, checks=CHECKS if refusable else CHECKS[1:])

                try:
                    examples(one, operation.as_strategy(mode, **overrides), EXAMPLES.get(name, 6))
                except Exception as error:
                    if "is not possible to generate" in str(error) or "Unsatisfiable" in type(error).__name__:
                        continue  # nothing of this operation's input can be wrong
                    raise
    return sent, statuses


@pytest.mark.timeout(480)
# Control shuffles what it wakes up, in another thread than the one that draws examples.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module:hypothesis.errors.HypothesisDeprecationWarning")
async def test_the_server_does_what_the_document_says(
    database_url: str, bucket_url: str, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
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
