"""Every operation that writes leaves a row in the audit log, or has another log."""

from control.web.routes import OPERATIONS

AUDITED = frozenset(
    {
        ("DELETE", "/v1/functions/{name}"),
        ("DELETE", "/v1/functions/{name}/versions/{version}"),
        ("DELETE", "/v1/groups/{group}"),
        ("DELETE", "/v1/join-tokens/{id}"),
        ("DELETE", "/v1/nodes/{node}"),
        ("DELETE", "/v1/operators/{name}"),
        ("POST", "/v1/artifact-store/resume"),
        ("POST", "/v1/functions/{name}/versions"),
        ("POST", "/v1/groups"),
        ("POST", "/v1/join-tokens"),
        ("POST", "/v1/nodes"),
        ("POST", "/v1/nodes/self/credential"),
        ("POST", "/v1/nodes/self/sql"),
        ("POST", "/v1/nodes/{node}/labels"),
        ("POST", "/v1/nodes/{node}/move"),
        ("POST", "/v1/nodes/{node}/rename"),
        ("POST", "/v1/nodes/{node}/retry"),
        ("POST", "/v1/nodes/{node}/revoke"),
        ("POST", "/v1/operators"),
        ("POST", "/v1/operators/{name}/change"),
        ("POST", "/v1/operators/{name}/rotate"),
        ("POST", "/v1/recovery"),
        ("POST", "/v1/releases"),
        ("POST", "/v1/releases/{group}/{number}/retry"),
        ("DELETE", "/v1/groups/{group}/policy"),
        ("PUT", "/v1/groups/{group}/policy"),
        ("DELETE", "/v1/groups/{group}/backup"),
        ("PUT", "/v1/groups/{group}/backup"),
        ("POST", "/v1/nodes/{node}/restores"),
        ("POST", "/v1/nodes/{node}/resume"),
        ("POST", "/v1/rollouts/{group}/{number}/abort"),
        ("POST", "/v1/rollouts/{group}/{number}/pause"),
        ("POST", "/v1/rollouts/{group}/{number}/promote"),
        ("POST", "/v1/rollouts/{group}/{number}/resume"),
        ("POST", "/v1/rollouts/{group}/{number}/retry"),
        ("POST", "/v1/rollouts/{group}/{number}/rollback"),
        ("POST", "/v1/schema-changes"),
        ("POST", "/v1/schema-changes/{number}/revisions"),
        ("POST", "/v1/schema-changes/{number}/withdraw"),
        ("DELETE", "/v1/webhooks/{name}"),
        ("POST", "/v1/webhooks"),
        ("POST", "/v1/webhooks/{name}/test"),
        ("PUT", "/v1/artifacts/{sha256}"),
    }
)
"""Those that `tests/integration/control/api/test_audit.py` tries: each must leave a row."""
SIGNING_IN = frozenset(
    {
        ("DELETE", "/v1/sessions/self"),
        ("POST", "/v1/logins/token"),
        ("POST", "/v1/sign-in-codes"),
    }
)
"""Those that `tests/integration/control/console/test_signing_in.py` tries, likewise."""
LOGGED_ELSEWHERE = frozenset(
    {
        ("PUT", "/v1/syncs/{id}"),
        ("PUT", "/v1/nodes/self/rehearsals/{rehearsal}"),
        ("PUT", "/v1/nodes/self/row-counts"),
        ("POST", "/v1/nodes/self/backup/uploads"),
        ("PUT", "/v1/nodes/self/backup/uploads/{lineage}/{level}/{file}"),
        ("PUT", "/v1/nodes/self/restores/{id}"),
        ("POST", "/v1/nodes/self/watches/{id}"),
        ("POST", "/v1/logins"),
        ("POST", "/v1/nodes/{node}/drill"),
    }
)
"""What nodes report of themselves: the log of syncs, the state of a node, and records of its own log. A login that
somebody begins, who isn't known yet: it has a row when it is answered. And a drill, which needs a backup:
`tests/integration/control/backups/test_drills.py` looks for its row."""


def test_every_operation_that_writes_is_tried_or_has_another_log() -> None:
    writing = {(o.method, o.path) for o in OPERATIONS if o.method not in ("GET", "HEAD")}
    assert writing == AUDITED | SIGNING_IN | LOGGED_ELSEWHERE, "a new one is also to be tried in test_audit.py"
