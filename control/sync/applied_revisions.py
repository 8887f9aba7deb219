"""Which revisions of schema changes nodes have applied, from what they last reported."""

from typing import Any, NamedTuple

from msgspec import Struct

from control.storage import queries
from control.storage.connection import Connection


class NodesAtVersion(NamedTuple):
    """How many nodes have a schema version."""

    schema_version: int
    nodes: int


class NodesOfChange(NamedTuple):
    """How many nodes have applied a revision of a schema change."""

    number: int
    revision: int
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
VERSIONS = SQL.rows("versions", NodesAtVersion)
REVISIONS = SQL.rows("revisions", NodesOfChange)
AMENDED = SQL.rows("amended", NewestOfChange)


async def counts(conn: Connection, number: int | None = None) -> dict[int, list[NodesOfRevision]]:
    """For each change that nodes have applied, or for `number` alone, how many nodes have which revision.

    The oldest revision is the first.
    """
    amended = [row.number for row in await conn.fetch(AMENDED) if number in (None, row.number)]
    versions = await conn.fetch(VERSIONS)
    newest = max((row.schema_version for row in versions), default=0)
    wanted = range(1, newest + 1) if number is None else range(number, min(number, newest) + 1)
    found = {
        one: [NodesOfRevision(1, sum(row.nodes for row in versions if row.schema_version >= one))] for one in wanted
    }
    if amended:
        # What nodes applied is only read where it may differ: that takes a second for 200,000 nodes and a change.
        found |= {one: [] for one in amended}
        for row in sorted(await conn.fetch(REVISIONS, [str(one) for one in amended])):
            found[row.number].append(NodesOfRevision(row.revision, row.nodes))
    return found


async def older(conn: Connection, schema_changes: list[dict[str, Any]]) -> list[OlderRevision]:
    """Those of a node's applied changes that aren't the newest revision, by number."""
    newest = {row.number: row.revision for row in await conn.fetch(AMENDED)}
    return [
        OlderRevision(change["number"], change["revision"], newest[change["number"]])
        for change in schema_changes
        if change["number"] in newest and change["revision"] != newest[change["number"]]
    ]
