"""The metadata database of a run, and what a replica has of it: whole transactions, which may fail or die.

Transactions are serializable, so here they are run one after the other. What a database adds to that is drawn from the
seed: one that fails before it is committed, one that is run again because of a conflict, and one whose COMMIT was
done, or wasn't, while nobody hears which.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol, TypeVar

from control.problems import ProblemError
from control.storage.database import UnknownCommit
from control.storage.queries import Rows, Value
from tests.support.simulation import fleet_statements, monitor_statements, operator_statements
from tests.support.simulation.loop import VirtualLoop
from tests.support.simulation.processes import Process
from tests.support.simulation.statements import HANDLERS
from tests.support.simulation.tables import Key, Row, Tables

assert fleet_statements is not None
assert monitor_statements is not None
assert operator_statements is not None

T = TypeVar("T")
Work = Callable[[Any], Awaitable[T]]
Written = list[tuple[str, Key, dict[str, Any] | None]]


class Mirror(Protocol):
    """A real database beside the one in memory, which is given the same statements."""

    def fill(self, tables: Tables) -> None:
        """Hold the rows of `tables` and no others."""
        ...

    def begin(self) -> None: ...

    def asked(self, query: str, arguments: tuple[Any, ...], answer: "list[Row] | int") -> None:
        """Give it a statement of the run and what was answered to that in memory."""
        ...

    def end(self, *, commit: bool) -> None: ...


class Observer(Protocol):
    """Hears what becomes of transactions."""

    def observe(self, written: Written) -> None:
        """A transaction was committed, which has replaced these rows."""
        ...

    def wrong(self, text: str) -> None:
        """A statement failed, whatever the program makes of that."""
        ...


class Connection:
    """What work in a transaction asks the database with, as `control.storage.connection.Connection`."""

    def __init__(self, tables: Tables, mirror: Mirror | None, observer: Observer) -> None:
        self._tables = tables
        self._mirror = mirror
        self._observer = observer

    async def fetch(self, query: Rows[Any], *arguments: Any) -> list[Any]:
        """All rows that a statement answers."""
        return [query.row(*row.values()) for row in self._rows(query.text, arguments)]

    async def fetchrow(self, query: Rows[Any], *arguments: Any) -> Any:
        rows = await self.fetch(query, *arguments)
        return rows[0] if rows else None

    async def one(self, query: Rows[Any], *arguments: Any) -> Any:
        return (await self.fetch(query, *arguments))[0]

    async def fetchval(self, query: Value[Any], *arguments: Any) -> Any:
        values = await self.column(query, *arguments)
        return values[0] if values else None

    async def column(self, query: Value[Any], *arguments: Any) -> list[Any]:
        return [next(iter(row.values())) for row in self._rows(query.text, arguments)]

    def _rows(self, text: str, arguments: tuple[Any, ...]) -> list[Row]:
        answer = self._ask(text, arguments)
        return [] if isinstance(answer, int) else answer

    async def execute(self, query: str, *arguments: Any, **_more: Any) -> str:
        """Run a statement and return its status: ``UPDATE 3``."""
        answer = self._ask(query, arguments)
        return f"{query.split(maxsplit=1)[0]} {answer if isinstance(answer, int) else len(answer)}"

    def _ask(self, query: str, arguments: tuple[Any, ...]) -> list[Row] | int:
        try:
            if query not in HANDLERS:
                raise LookupError(f"nothing in tests/support/simulation says what this statement does: {query}")
            answer = HANDLERS[query](self._tables, *arguments)
            if self._mirror is not None:
                self._mirror.asked(query, arguments, answer)
        except Exception as error:
            # The program may go on after it, as it does after any mistake of its own.
            self._observer.wrong(f"a statement failed: {error!r}")
            raise
        return answer


@dataclass
class Weather:
    """How likely what goes wrong is, for one transaction; all 0 when faults have stopped."""

    refused: float = 0.0
    conflict: float = 0.0
    unknown: float = 0.0
    slow: float = 0.0


class Server:
    """The database server: its tables, and the transactions that are under way."""

    def __init__(self, loop: VirtualLoop, random: Random, observer: Observer, mirror: Mirror | None = None) -> None:
        self.tables = Tables()
        self.tables.now = loop.clock
        self.weather = Weather()
        self.up = True
        self._random = random
        self._observer = observer
        self._mirror = mirror
        self._one = asyncio.Lock()
        self._connection = Connection(self.tables, mirror, observer)

    async def run(self, process: Process, work: Work[T], *, readonly: bool = False) -> T:
        """One transaction of a process; raises `ProblemError`."""
        process.step("database.begin")
        weather, draw = self.weather, self._random.random
        if not self.up or (weather.refused and draw() < weather.refused):
            raise ProblemError("database_unavailable", "the simulated database is away; nothing was changed, try again")
        if weather.slow and draw() < weather.slow:
            await asyncio.sleep(draw() * 2)
        async with self._one:
            if not readonly and weather.conflict and draw() < weather.conflict:
                # What a conflict undoes must have had no effect but through the connection.
                await self._attempt(process, work, commit=False)
                await asyncio.sleep(0.01)
            if readonly or not (weather.unknown and draw() < weather.unknown):
                result = await self._attempt(process, work, commit=True)
            else:
                await self._attempt(process, work, commit=draw() < 0.5)
                raise UnknownCommit
        if weather.slow and draw() < weather.slow:
            # Others go on with what was committed before this process knows of it.
            await asyncio.sleep(draw() * 2)
        process.step("database.end")
        return result

    async def restore(self, backup: dict[str, dict[Key, dict[str, Any]]]) -> set[Key]:
        """Have all rows as they were in a backup; return the ids of the releases and syncs that there were."""
        async with self._one:
            before = {*self.tables["releases"], *self.tables["syncs"]}
            self.tables.restore(backup)
            self.filled()
            return before

    def filled(self) -> None:
        """The tables were filled otherwise than by transactions."""
        self.tables.journal.clear()
        if self._mirror is not None:
            self._mirror.fill(self.tables)

    async def _attempt(self, process: Process, work: Work[T], *, commit: bool) -> T:
        if self._mirror is not None:
            self._mirror.begin()
        try:
            result = await work(self._connection)
            process.step("database.commit")
        except BaseException:
            self._end(commit=False)
            raise
        self._end(commit=commit)
        return result

    def _end(self, *, commit: bool) -> None:
        tables = self.tables
        if self._mirror is not None:
            self._mirror.end(commit=commit)
        if not commit:
            if tables.journal:
                tables.undo()
        elif tables.journal:
            written = tables.journal
            tables.journal = []
            self._observer.observe(written)


class Database:
    """A replica's way to the server, in the place of `control.storage.database.Database`."""

    def __init__(self, server: Server, process: Process) -> None:
        self._server = server
        self._process = process

    async def transaction(self, work: Work[T]) -> T:
        return await self._server.run(self._process, work)

    async def read(self, work: Work[T]) -> T:
        return await self._server.run(self._process, work, readonly=True)
