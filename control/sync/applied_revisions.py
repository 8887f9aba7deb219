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


class RevisionCounts:
    """The number of nodes that have applied each revision of schema changes."""

    def __init__(self, conn: Connection, amended: list[NewestOfChange], versions: list[NodesAtVersion]) -> None:
        self._conn = conn
        self._amended = {row.number for row in amended}
        self._versions = versions

    async def of(self, number: int) -> list[NodesOfRevision]:
        """Return the number of nodes by revision, oldest first; empty if no node has applied the change."""
        if number in self._amended:
            # Read what nodes applied only if it may differ: that takes a second for 200,000 nodes.
            rows = sorted(await self._conn.fetch(REVISIONS, number))
            return [NodesOfRevision(row.revision, row.nodes) for row in rows]
        nodes = sum(row.nodes for row in self._versions if row.schema_version >= number)
        return [NodesOfRevision(1, nodes)] if nodes else []


async def counts(conn: Connection) -> RevisionCounts:
    """Read the data for the counts of all changes."""
    return RevisionCounts(conn, await conn.fetch(AMENDED), await conn.fetch(VERSIONS))


async def older(conn: Connection, schema_changes: list[dict[str, Any]]) -> list[OlderRevision]:
    """Return those of a node's applied changes that aren't the newest revision, by number."""
    newest = {row.number: row.revision for row in await conn.fetch(AMENDED)}
    return [
        OlderRevision(change["number"], change["revision"], newest[change["number"]])
        for change in schema_changes
        if change["number"] in newest and change["revision"] != newest[change["number"]]
    ]
