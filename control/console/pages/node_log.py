"""GET /nodes/{node}/log: what a node logs, and its slow and failed calls, as they occur.

The node is asked only while somebody is viewing. Without scripts, the page shows what the node had when it was loaded.
"""

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import msgspec

from control.api import logs, node_views
from control.api.logs import LogFilter
from control.api.node_views import NodeFilter
from control.api.operations import Reply
from control.api.request_input import convert, path_value
from control.console import hub, live, rendering
from control.console.visits import ConsolePage, Visit
from control.problems import ProblemError

SINCE = timedelta(minutes=10)
"""Maximum age of the records shown at first."""
FIRST = 200
"""Maximum existing records shown at first."""
FILTERS = ("kind", "level", "function", "call")


async def show(visit: Visit) -> Reply:
    """GET /nodes/{node}/log?kind=&level=&function=&call=; with `once` it shows what the node has now."""
    node, query, shown = await _asked(visit, follow=False)
    lines: list[dict[str, Any]] = []
    if visit.query.get("once"):
        async with aclosing(await visit.ask(logs.watch, query=query)) as pieces:
            async for piece in pieces:
                lines += _records(piece)
    return await visit.html("node_log.html", node=node, lines=lines, shown=shown, once=bool(visit.query.get("once")))


async def stream(visit: Visit) -> Reply:
    """GET /nodes/{node}/log/live: the same as server-sent events `lines`, each with some elements of a list."""
    _, query, _ = await _asked(visit, follow=True)
    pieces: AsyncIterator[bytes] = await visit.ask(logs.watch, query=query)
    return Reply(200, _events(visit, pieces), live.HEADERS)


async def _asked(visit: Visit, *, follow: bool) -> tuple[str, LogFilter, dict[str, str]]:
    """Return the node's name, the query for it, and which of that comes from the URL. Raises: ProblemError."""
    name = path_value("node", visit.path["node"])
    found, _ = await visit.items(node_views.list_nodes, msgspec.Raw, NodeFilter(names=name))
    if not found:
        raise ProblemError("unknown_node", f"there is no node {name}", field="node")
    shown = {key: visit.query[key] for key in FILTERS if visit.query.get(key)}
    asked = convert(shown, LogFilter, "invalid_parameter", strict=False)
    if asked.kind == "functions":
        raise ProblemError("invalid_parameter", "a log has lines and calls", field="kind")
    return name, msgspec.structs.replace(asked, node=name, follow=follow, since=visit.now - SINCE, limit=FIRST), shown


async def _events(visit: Visit, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async with aclosing(pieces):  # type: ignore[type-var]
        async for piece in pieces:
            records = _records(piece)
            if records:
                made = rendering.parts("node_log_lines.html", visit.now)
                yield hub.event("lines", "".join(made("line", line=record) for record in records))
            else:
                yield hub.event("beat", 0)


def _records(piece: bytes) -> list[dict[str, Any]]:
    """Return the records and notices in a piece of the answer."""
    return [msgspec.json.decode(line) for line in piece.splitlines() if line.strip()]


PAGES = (
    ConsolePage("GET", "/nodes/{node}/log", show),
    ConsolePage("GET", "/nodes/{node}/log/live", stream),
)
