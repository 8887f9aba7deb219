"""Finds the name that is meant, where control knows no node, group, function, operator or webhook of the one given.

Of a function that it knows, and a version that it doesn't: the command that shows those that there are.
"""

import re
from collections.abc import Awaitable, Callable
from difflib import get_close_matches
from typing import Any

MOST = 500
"""Names that an unknown one is compared with, at most."""
_UNKNOWN = re.compile(r"\bno (node|group|function|operator|webhook) ([a-z0-9-]{1,63})$")
_UNKNOWN_VERSION = re.compile(r"\bno version [0-9]+ of ([a-z0-9-]{1,63})$")


async def cure(code: str, message: str, items: Callable[..., Awaitable[list[dict[str, Any]]]]) -> str:
    """Say which name may be meant, of those that this operator may see; '' for an error that is about no such name.

    `code` and `message` are the error's; `items` asks control for a list, as `Client.items` does, and raises what it
    raises.
    """
    if not code.startswith("unknown_"):
        return ""
    if version := _UNKNOWN_VERSION.search(message):
        kind, name = "function", version[1]
    elif unknown := _UNKNOWN.search(message):
        kind, name = unknown.groups()
    else:
        return ""
    half = (len(name) + 1) // 2
    # Of a large fleet all names aren't read: a name with one slip mostly has one of its halves right.
    queries = [{"find": part} for part in (name[:half], name[half:]) if part] if kind == "node" else [{}]
    found = {one["name"] for query in queries for one in await items(f"/v1/{kind}s", MOST, **query)}
    if name in found:
        return f"`skerry function show {name}` shows its versions" if version else ""
    near = get_close_matches(name, sorted(found), 1, 0.7)
    return f"is {near[0]} meant?" if near else f"`skerry {kind} list` shows those that there are"
