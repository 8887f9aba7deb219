"""Every operation for operators has a rule of who may call it; an integration test tries it with every kind of them."""

from control.access.rights import ROLES
from control.web.routes import OPERATIONS
from tests.support.operation_rules import RULES


def test_every_operation_has_a_rule() -> None:
    assert {(o.method, o.path): o.role for o in OPERATIONS if o.role in ROLES} == {
        key: rule.role for key, rule in RULES.items()
    }, "a new one needs its rule in tests/support/operation_rules.py"
    assert {(o.method, o.path) for o in OPERATIONS if o.role in ROLES and o.everywhere} == {
        key for key, rule in RULES.items() if rule.where == "all"
    }
