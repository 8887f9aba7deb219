"""A node as built here, and beside it the same node uncompiled, to measure both in the same rounds."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from . import rounds
from .rounds import Rounds
from .servers import Alone, node_alone

PURE = {"SKERRY_EDGE_PURE": "1"}
"""The settings of a node that runs nothing compiled, even if it is built."""
UNCOMPILED = "_uncompiled"
"""The suffix for names of measurements on the uncompiled node."""


def parts(node: Alone) -> dict[str, bool]:
    """Return, by name, whether each part that can be compiled is compiled in this node, according to its status."""
    return {name: part["compiled"] for name, part in node.status["built"].items()}


@asynccontextmanager
async def nodes(
    functions: Mapping[str, tuple[bytes, dict[str, Any]]], schema: str = ""
) -> AsyncIterator[dict[str, Alone]]:
    """Yield the node under the name "", and the uncompiled one under UNCOMPILED, which exists only if the first has
    something compiled."""
    async with AsyncExitStack() as stack:
        found = {"": await stack.enter_async_context(node_alone(functions, schema))}
        if any(parts(found[""]).values()):
            found[UNCOMPILED] = await stack.enter_async_context(node_alone(functions, schema, **PURE))
            assert not any(parts(found[UNCOMPILED]).values())
        yield found


def ratios(nodes: Mapping[str, Alone], found: Rounds, other: str) -> dict[str, Any]:
    """Return as details: the other's CPU of a request over that of `ours` in each round, our requests a second over the
    other's, what runs compiled, and the CPU ratio of the uncompiled node if there is one."""
    details: dict[str, Any] = {
        "ratios": [round(ratio, 3) for ratio in rounds.ratios(found, other, "ours", "cpu_us")],
        "rate_over": round(rounds.over(found, "ours", other), 3),
        "compiled": parts(nodes[""]),
    }
    if UNCOMPILED in nodes:
        details["uncompiled"] = round(rounds.over(found, other, "ours" + UNCOMPILED, "cpu_us"), 3)
    return details
