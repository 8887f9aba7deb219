"""Who may call each operation for operators, and a request of each, for tests that ask them all."""

from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import uuid4

from tests.support.control import Joined


class Rule(NamedTuple):
    """Who may call an operation."""

    role: str
    where: str
    """`all`: with the role for all groups; `any`: for a group at least; `group`: for the group of what is named."""
    path: Callable[[str, Joined], str] = lambda group, node: ""
    """The path, where it has parameters, by the group and a node of it."""
    body: Callable[[str, Joined], Any] = lambda group, node: None
    hidden: bool = False
    """Whether what is in a group that the operator may not see isn't there for it (404), rather than refused."""


SHA = "0" * 64
RULES: dict[tuple[str, str], Rule] = {
    ("PUT", "/v1/artifacts/{sha256}"): Rule("push", "any", lambda g, n: f"/v1/artifacts/{SHA}"),
    ("HEAD", "/v1/artifacts/{sha256}"): Rule("push", "any", lambda g, n: f"/v1/artifacts/{SHA}"),
    ("GET", "/v1/artifact-store"): Rule("read", "any"),
    ("POST", "/v1/artifact-store/resume"): Rule("admin", "all"),
    ("GET", "/v1/artifact-store/check"): Rule("admin", "all"),
    ("GET", "/v1/artifact-store/trial"): Rule("admin", "all"),
    ("GET", "/v1/artifact-store/unknown"): Rule("admin", "all"),
    ("GET", "/v1/recovery"): Rule("admin", "all"),
    ("POST", "/v1/recovery"): Rule("admin", "all"),
    ("GET", "/v1/functions"): Rule("read", "any"),
    ("GET", "/v1/functions/{name}"): Rule("read", "any", lambda g, n: "/v1/functions/orders"),
    ("DELETE", "/v1/functions/{name}"): Rule("deploy", "all", lambda g, n: "/v1/functions/none"),
    ("GET", "/v1/functions/{name}/versions"): Rule("read", "any", lambda g, n: "/v1/functions/orders/versions"),
    ("POST", "/v1/functions/{name}/versions"): Rule(
        "push", "any", lambda g, n: "/v1/functions/orders/versions", lambda g, n: {"sha256": SHA}
    ),
    ("GET", "/v1/functions/{name}/versions/{version}"): Rule(
        "read", "any", lambda g, n: "/v1/functions/orders/versions/1"
    ),
    ("DELETE", "/v1/functions/{name}/versions/{version}"): Rule(
        "deploy", "all", lambda g, n: "/v1/functions/none/versions/1"
    ),
    ("GET", "/v1/schema-changes"): Rule("read", "any"),
    ("POST", "/v1/schema-changes"): Rule("deploy", "all", body=lambda g, n: {"name": "x", "sql": "x", "number": 99}),
    ("GET", "/v1/schema-changes/{number}"): Rule("read", "any", lambda g, n: "/v1/schema-changes/99"),
    ("POST", "/v1/schema-changes/{number}/revisions"): Rule(
        "deploy", "all", lambda g, n: "/v1/schema-changes/99/revisions", lambda g, n: {"sql": "x"}
    ),
    ("POST", "/v1/schema-changes/{number}/withdraw"): Rule(
        "deploy", "all", lambda g, n: "/v1/schema-changes/99/withdraw"
    ),
    ("GET", "/v1/schema-changes/{number}/reversal"): Rule("read", "any", lambda g, n: "/v1/schema-changes/99/reversal"),
    ("POST", "/v1/sign-in-codes"): Rule("read", "any"),
    ("GET", "/v1/sessions/self"): Rule("read", "any"),
    ("DELETE", "/v1/sessions/self"): Rule("read", "any"),
    ("GET", "/v1/groups"): Rule("read", "any"),
    ("POST", "/v1/groups"): Rule("deploy", "all", body=lambda g, n: {"name": "north"}),
    ("DELETE", "/v1/groups/{group}"): Rule("admin", "all", lambda g, n: f"/v1/groups/{g}"),
    ("PUT", "/v1/groups/{group}/policy"): Rule(
        "deploy", "group", lambda g, n: f"/v1/groups/{g}/policy", lambda g, n: {"bake": "1s"}, hidden=True
    ),
    ("DELETE", "/v1/groups/{group}/policy"): Rule(
        "deploy", "group", lambda g, n: f"/v1/groups/{g}/policy", hidden=True
    ),
    ("PUT", "/v1/groups/{group}/backup"): Rule(
        "deploy", "group", lambda g, n: f"/v1/groups/{g}/backup", lambda g, n: {"interval": 5}, hidden=True
    ),
    ("DELETE", "/v1/groups/{group}/backup"): Rule(
        "deploy", "group", lambda g, n: f"/v1/groups/{g}/backup", hidden=True
    ),
    ("GET", "/v1/rollouts"): Rule("read", "group", lambda g, n: f"/v1/rollouts?group={g}", hidden=True),
    ("GET", "/v1/rollouts/{group}/{number}"): Rule("read", "group", lambda g, n: f"/v1/rollouts/{g}/1", hidden=True),
    ("GET", "/v1/rollouts/{group}/{number}/nodes"): Rule(
        "read", "group", lambda g, n: f"/v1/rollouts/{g}/1/nodes", hidden=True
    ),
    ("GET", "/v1/rollouts/{group}/{number}/rehearsal"): Rule(
        "read", "group", lambda g, n: f"/v1/rollouts/{g}/1/rehearsal", hidden=True
    ),
    **{
        ("POST", f"/v1/rollouts/{{group}}/{{number}}/{deed}"): Rule(
            role, "group", lambda g, n, deed=deed: f"/v1/rollouts/{g}/1/{deed}", lambda g, n: {}, hidden=True
        )
        for deed, role in (
            *(("pause", "deploy"), ("resume", "deploy"), ("promote", "push")),
            *(("abort", "deploy"), ("retry", "deploy"), ("rollback", "deploy")),
        )
    },
    ("GET", "/v1/releases"): Rule("read", "group", lambda g, n: f"/v1/releases?group={g}", hidden=True),
    ("POST", "/v1/releases"): Rule("push", "group", body=lambda g, n: {"group": g, "functions": {"orders": 99}}),
    ("GET", "/v1/releases/{group}/{number}"): Rule("read", "group", lambda g, n: f"/v1/releases/{g}/1", hidden=True),
    ("GET", "/v1/releases/{group}/{number}/restores"): Rule(
        "read", "group", lambda g, n: f"/v1/releases/{g}/1/restores", hidden=True
    ),
    ("GET", "/v1/rollouts/{group}/{number}/undo"): Rule(
        "deploy", "group", lambda g, n: f"/v1/rollouts/{g}/1/undo", hidden=True
    ),
    ("POST", "/v1/releases/{group}/{number}/retry"): Rule(
        "deploy", "group", lambda g, n: f"/v1/releases/{g}/1/retry", hidden=True
    ),
    ("GET", "/v1/fleet"): Rule("read", "group", lambda g, n: f"/v1/fleet?group={g}", hidden=True),
    ("GET", "/v1/fleet/calls"): Rule("read", "group", lambda g, n: f"/v1/fleet/calls?group={g}", hidden=True),
    ("GET", "/v1/fleet/schedules"): Rule("read", "group", lambda g, n: f"/v1/fleet/schedules?group={g}", hidden=True),
    ("GET", "/metrics"): Rule("read", "all"),
    ("GET", "/v1/nodes"): Rule("read", "group", lambda g, n: f"/v1/nodes?group={g}", hidden=True),
    ("GET", "/v1/nodes/{node}"): Rule("read", "group", lambda g, n: f"/v1/nodes/{n.name}", hidden=True),
    ("DELETE", "/v1/nodes/{node}"): Rule("admin", "group", lambda g, n: f"/v1/nodes/{n.name}", hidden=True),
    ("GET", "/v1/nodes/{node}/move"): Rule(
        "read", "group", lambda g, n: f"/v1/nodes/{n.name}/move?group={g}", hidden=True
    ),
    ("POST", "/v1/nodes/{node}/move"): Rule(
        "deploy", "group", lambda g, n: f"/v1/nodes/{n.name}/move", lambda g, n: {"group": g}, hidden=True
    ),
    ("POST", "/v1/nodes/{node}/rename"): Rule(
        "admin", "group", lambda g, n: f"/v1/nodes/{n.name}/rename", lambda g, n: {"name": n.name}, hidden=True
    ),
    ("POST", "/v1/nodes/{node}/drill"): Rule("deploy", "group", lambda g, n: f"/v1/nodes/{n.name}/drill", hidden=True),
    ("GET", "/v1/nodes/{node}/data"): Rule("admin", "group", lambda g, n: f"/v1/nodes/{n.name}/data", hidden=True),
    ("POST", "/v1/nodes/{node}/labels"): Rule(
        "deploy", "group", lambda g, n: f"/v1/nodes/{n.name}/labels", lambda g, n: {"remove": ["none"]}, hidden=True
    ),
    ("POST", "/v1/nodes/{node}/revoke"): Rule("admin", "group", lambda g, n: f"/v1/nodes/{n.name}/revoke", hidden=True),
    ("POST", "/v1/nodes/{node}/retry"): Rule("deploy", "group", lambda g, n: f"/v1/nodes/{n.name}/retry", hidden=True),
    ("GET", "/v1/backups"): Rule("read", "group", lambda g, n: f"/v1/backups?group={g}", hidden=True),
    ("GET", "/v1/nodes/{node}/backup"): Rule("read", "group", lambda g, n: f"/v1/nodes/{n.name}/backup", hidden=True),
    ("GET", "/v1/nodes/{node}/restores"): Rule(
        "read", "group", lambda g, n: f"/v1/nodes/{n.name}/restores", hidden=True
    ),
    ("POST", "/v1/nodes/{node}/restores"): Rule(
        "deploy", "group", lambda g, n: f"/v1/nodes/{n.name}/restores", lambda g, n: {"to": "latest"}, hidden=True
    ),
    ("POST", "/v1/nodes/{node}/resume"): Rule(
        "deploy", "group", lambda g, n: f"/v1/nodes/{n.name}/resume", hidden=True
    ),
    ("GET", "/v1/join-tokens"): Rule("admin", "any"),
    ("POST", "/v1/join-tokens"): Rule("admin", "group", body=lambda g, n: {"group": g}),
    ("DELETE", "/v1/join-tokens/{id}"): Rule("admin", "any", lambda g, n: f"/v1/join-tokens/{uuid4()}"),
    ("GET", "/v1/syncs"): Rule("read", "any"),
    ("GET", "/v1/logs"): Rule("read", "group", lambda g, n: f"/v1/logs?group={g}&limit=1", hidden=True),
    ("GET", "/v1/syncs/{id}"): Rule("read", "any", lambda g, n: f"/v1/syncs/{uuid4()}"),
    ("GET", "/v1/audit"): Rule("admin", "all"),
    ("GET", "/v1/audit/sealed"): Rule("admin", "all"),
    ("GET", "/v1/audit/seals"): Rule("admin", "all"),
    ("GET", "/v1/auth-failures"): Rule("admin", "all"),
    ("GET", "/v1/operators"): Rule("admin", "any"),
    ("GET", "/v1/settings"): Rule("admin", "all"),
    ("GET", "/v1/replicas"): Rule("read", "all"),
    ("GET", "/v1/certificates"): Rule("read", "any"),
    ("GET", "/v1/certificates/nodes"): Rule("read", "any"),
    ("POST", "/v1/operators"): Rule(
        "admin", "group", body=lambda g, n: {"name": "reader", "grants": [{"role": "read", "group": g}]}
    ),
    ("DELETE", "/v1/operators/{name}"): Rule("admin", "any", lambda g, n: "/v1/operators/nobody"),
    ("GET", "/v1/webhooks"): Rule("admin", "all"),
    ("POST", "/v1/webhooks"): Rule("admin", "all", body=lambda g, n: {"name": "chat", "url": "ftp://x"}),
    ("DELETE", "/v1/webhooks/{name}"): Rule("admin", "all", lambda g, n: "/v1/webhooks/none"),
    ("POST", "/v1/webhooks/{name}/test"): Rule("admin", "all", lambda g, n: "/v1/webhooks/none/test"),
    ("GET", "/v1/webhook-deliveries"): Rule("admin", "all"),
    ("GET", "/v1/operators/{name}"): Rule("admin", "any", lambda g, n: "/v1/operators/nobody"),
    ("POST", "/v1/operators/{name}/rotate"): Rule(
        "admin", "any", lambda g, n: "/v1/operators/nobody/rotate", lambda g, n: {"keep_old": 0}
    ),
    ("POST", "/v1/operators/{name}/change"): Rule(
        "admin", "any", lambda g, n: "/v1/operators/nobody/change", lambda g, n: {"endless": True}
    ),
}
"""Of every operation for operators. What a test asks for is refused later, or changes nothing that another needs."""
