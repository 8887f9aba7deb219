"""Requests that schemathesis makes up from an OpenAPI document, right ones and wrong ones."""

import os
import time
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import hypothesis
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

from control.web import routes

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
EACH = int(os.environ.get("SKERRY_TEST_REQUESTS", "1"))
"""Requests of each kind that are made of an operation: right ones and wrong ones, of what is there and of anything."""
SLOW = (
    "post-v1-schema-changes",
    "post-v1-schema-changes-number-revisions",
    "get-v1-schema-changes-number-reversal",
)
"""Operations that start a process: 2 of each kind at most are made of them."""
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
                    examples(one, operation.as_strategy(mode, **overrides), min(2, EACH) if name in SLOW else EACH)
                except Exception as error:
                    if "is not possible to generate" in str(error) or "Unsatisfiable" in type(error).__name__:
                        continue  # nothing of this operation's input can be wrong
                    raise
    return sent, statuses
