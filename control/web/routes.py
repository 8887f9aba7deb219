"""All operations of the API but the poll: declared where they are handled, served by `starlette_app`, described by
`openapi`.
"""

import sys
from functools import cache

from control.api import (
    artifacts,
    bucket,
    functions,
    join_tokens,
    node_views,
    nodes,
    operators,
    probes,
    records,
    releases,
    schema,
    syncs,
    webhooks,
)
from control.api.fleet import logs, naming, overview, replicas, scrape, trust
from control.api.operations import ApiCall, Operation, Reply, declared, encode, operation
from control.api.recovery import recover, store_check
from control.web import openapi


@operation("GET", "/openapi.json", "This description", role=None, answers={200: dict})
async def describe(call: ApiCall) -> Reply:
    return Reply(200, _description(), ((b"content-type", b"application/json"),))


@cache
def _description() -> bytes:
    # Made once: it takes 20 ms, and anybody may ask for it.
    return encode(openapi.document(OPERATIONS))


OPERATIONS: tuple[Operation, ...] = declared(
    *(artifacts, bucket, functions, releases, schema),
    *(nodes, node_views, join_tokens, syncs, naming, logs),
    *(overview, trust, replicas, scrape, probes, records, recover, store_check),
    *(operators, webhooks, sys.modules[__name__]),
)
