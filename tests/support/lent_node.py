"""A node that the tests of a module are lent, one after the other: those that only call its functions or ask it.

What a test leaves behind is looked for when it gives the node back: processes, calls, connections, bodies in memory,
descriptors, files, locks of the database and its rows. It has a moment to go by itself; else the test fails, and the
next one is lent a new node. Workers that calls have ended may have followers. A test that kills one itself, fills the
node, changes its release or moves its clock has a node of its own, by `edge.node`.
"""

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from edge_runtime import aot_cache, database_users, wal
from edge_runtime.dispatch.pool import Hold
from edge_runtime.sync import sql_runs
from edge_runtime.telemetry import ring
from tests.support.edge import Node, client, node
from tests.support.process_tree import children
from tests.support.returned import descriptors, left_behind, processes, told

Functions = Mapping[str, bytes | tuple[bytes, Mapping[str, Any]]]
OWN = (aot_cache.FOLDER, "artifacts", ring.FOLDER, sql_runs.FOLDER.parts[0])
"""Folders of what a node keeps by itself: of its functions, also of those that a release failed with; of calls, and of
statements that commands ran."""


class NodeLender:
    """Has one node at a time, with a release of these functions and changes of the schema."""

    def __init__(
        self,
        folder: Path,
        functions: Functions,
        changes: Sequence[str] = (),
        *,
        written: Collection[str] = (),
        **settings: Any,
    ) -> None:
        """The state directories are made in `folder`. `written` are tables whose rows the tests leave to each other."""
        self.node: Node | None = None
        self._folder, self._functions, self._changes = folder, functions, changes
        self._written, self._settings = written, settings
        self._made = 0
        self.stack = AsyncExitStack()
        """What ends with the node."""

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[Node]:
        """Lend the node until the block ends, with a client of the block's own."""
        edge = self.node or await self._start()
        before = await self._traces(edge)
        async with client(edge.front.port) as edge.http:
            yield edge
        if left := await left_behind(before, lambda: self._traces(edge)):
            await self.end()
            pytest.fail(told(left))

    async def end(self) -> None:
        """End the node, if there is one."""
        self.node = None
        stack, self.stack = self.stack, AsyncExitStack()
        await stack.aclose()

    async def _start(self) -> Node:
        self._made += 1
        started = node(self._folder / f"state-{self._made}", **self._settings)
        self.node = edge = await self.stack.enter_async_context(started)
        await edge.release(self._functions, self._changes)
        return edge

    async def _traces(self, edge: Node) -> set[str]:
        """What there is now of all that a test may leave behind."""
        front, pool = edge.front, edge.front.pool
        found = processes() | {f"process: {pid}" for pid in children(front.processes.pid)}
        found -= {f"process: {link.child.pid}" for link in pool.links}
        found |= {f"serving zygote: {front.processes.pid}"}
        release = front.manager.release
        found |= {f"serving generation: {release.generation if release is not None else 0}"}
        found |= {f"serving worker {number}" for number in range(len(edge.workers()))}
        found |= {f"call that runs: {job!r}" for link in edge.busy() for job in link.jobs}
        found |= {f"call that waits, the {number}th" for number in range(pool.waiting)}
        if pool.hold is not Hold.NOTHING:
            found.add(f"calls that are held: {pool.hold}")
        found |= {f"connection: {id(each)}" for each in front.server.shared.live}
        if held := front.server.shared.memory.held:
            found.add(f"bytes of bodies: {held}")
        path = edge.state.path
        found |= {f"file: {file}" for file in path.rglob("*") if file.relative_to(path).parts[0] not in OWN}
        if holder := database_users.lock_holder(path / wal.FILE):
            found.add(f"lock of the database: {holder}")
        found |= {trace for trace in descriptors() if f"{path / ring.FOLDER}/" not in trace}
        return found | self._rows(path / wal.FILE)

    def _rows(self, file: Path) -> set[str]:
        found = set()
        with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as opened:
            tables = opened.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
            for (table,) in tables:
                found.add(f"row of the schema: {table}")
                if table not in self._written and not table.startswith("sqlite_"):
                    found |= {f"row of {table}: {row}" for row in opened.execute(f'SELECT * FROM "{table}"')}
        return found
