"""Which revisions of schema changes nodes have applied, from what they last reported."""

from collections import Counter
from typing import Any, NamedTuple

import orjson
from msgspec import Struct

from control.storage import queries
from control.storage.connection import Connection


class SameHistory(NamedTuple):
    """The changes that some nodes have applied, as JSON, and how many nodes have exactly these."""

    schema_changes: str
    nodes: int


class NewestOfChange(NamedTuple):
    """The number of a schema change that has several revisions, and the newest of these."""

    number: int
    revision: int


class NodesOfRevision(Struct):
    revision: int
    nodes: int
    """How many nodes have applied this revision."""


class OlderRevision(Struct):
    """A schema change of which a node has another revision than the newest."""

    number: int
    revision: int
    newest: int


SQL = queries.load("applied_revisions")
HISTORIES = SQL.rows("histories", SameHistory)
AMENDED = SQL.rows("amended", NewestOfChange)


async def counts(conn: Connection) -> dict[int, list[NodesOfRevision]]:
    """For each change that nodes have applied, how many have which revision, the oldest revision first.

    It reads all nodes: 200,000 of them take a second or two.
    """
    found: dict[int, Counter[int]] = {}
    for row in await conn.fetch(HISTORIES):
        for change in orjson.loads(row.schema_changes):
            found.setdefault(change["number"], Counter())[change["revision"]] += row.nodes
    return {number: [NodesOfRevision(*item) for item in sorted(nodes.items())] for number, nodes in found.items()}


async def older(conn: Connection, schema_changes: list[dict[str, Any]]) -> list[OlderRevision]:
    """Those of a node's applied changes that aren't the newest revision, by number."""
    newest = {row.number: row.revision for row in await conn.fetch(AMENDED)}
    return [
        OlderRevision(change["number"], change["revision"], newest[change["number"]])
        for change in schema_changes
        if change["number"] in newest and change["revision"] != newest[change["number"]]
    ]
