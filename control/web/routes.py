"""All operations of the API except the poll.

They are declared where they are handled, served by `starlette_app`, described by `openapi`.
"""

import sys
from functools import cache

from control.api import (
    artifact_store,
    artifacts,
    audit,
    backups,
    fleet,
    functions,
    groups,
    join_tokens,
    logs,
    metadata_recovery,
    node_backups,
    node_data,
    node_views,
    nodes,
    operators,
    probes,
    rehearsals,
    releases,
    replicas,
    rollouts,
    schema,
    syncs,
    undo,
    webhooks,
)
from control.api.operations import ApiCall, Operation, Reply, declared, encode, operation
from control.web import openapi


@operation("GET", "/openapi.json", "This description", role=None, answers={200: dict})
async def describe(call: ApiCall) -> Reply:
    return Reply(200, _description(), ((b"content-type", b"application/json"),))


@cache
def _description() -> bytes:
    # Made once: it takes 20 ms, and anybody may request it.
    return encode(openapi.document(OPERATIONS))


OPERATIONS: tuple[Operation, ...] = declared(
    *(artifacts, artifact_store, functions, releases, undo, rollouts, groups, schema),
    *(nodes, node_views, join_tokens, syncs, rehearsals, node_backups, backups, node_data, logs),
    *(fleet, replicas, probes, audit, metadata_recovery),
    *(operators, webhooks, sys.modules[__name__]),
)
