"""Every operation for operators has a rule of who may call it; an integration test tries it with every kind of them."""

from collections.abc import Iterator
from typing import Any

import msgspec

from control.access.rights import ROLES
from control.storage.idempotency import SECRETS
from control.web.routes import OPERATIONS
from tests.support.operation_rules import RULES


def test_every_operation_has_a_rule() -> None:
    assert {(o.method, o.path): o.role for o in OPERATIONS if o.role in ROLES} == {
        key: rule.role for key, rule in RULES.items()
    }, "a new one needs its rule in tests/support/operation_rules.py"
    assert {(o.method, o.path) for o in OPERATIONS if o.role in ROLES and o.everywhere} == {
        key for key, rule in RULES.items() if rule.where == "all"
    }


NAMES = ("token", "secret", "credential", "password", "device_code")
"""What fields with secrets are called."""


def secrets(type: Any, within: str = "") -> Iterator[str]:
    """The fields of an answer that hold what only its owner may know, by their paths."""
    if not isinstance(type, msgspec.StructMeta):
        return
    for field in msgspec.structs.fields(type):
        if field.name in NAMES and field.type in (str, str | None):
            yield f"{within}{field.name}"
        yield from secrets(field.type, f"{within}{field.name}.")


def test_no_secret_of_an_answer_is_kept_under_an_idempotency_key() -> None:
    """Whoever reads the database, or asks again by an old key, would have it. Those within other fields are kept."""
    asked = [o for o in OPERATIONS if o.role in ROLES and o.method in ("POST", "DELETE")]
    found = {name for operation in asked for answer in operation.answers.values() for name in secrets(answer)}
    assert found == set(SECRETS)
