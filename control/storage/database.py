"""The metadata database: transactions that are retried as a whole, and the handling of lost connections."""

import asyncio
import contextlib
import itertools
import logging
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TypeVar

import asyncpg
import orjson

from control import tracing
from control.clock import Clock, SystemClock
from control.log_throttle import Outage
from control.problems import ProblemError
from control.settings import check_metadata_url
from control.storage import queries, sqlstates
from control.storage.connection import (
    AsyncpgConnection,
    Connection,
    PooledConnection,
    TracedConnection,
    Transaction,
    is_gone,
    lines_at_commit,
    tell,
    terminate,
)
from control.storage.connection_quotas import Share, Turns

SQL = queries.load("database")
T = TypeVar("T")
Work = Callable[[Connection], Awaitable[T]]
"""The work of a transaction, which gets its connection."""

ATTEMPTS = 10
LOST_ATTEMPTS = 4
"""Attempts when each of them loses its connection."""
RETRY_FOR = 5.0
"""Seconds after which no further attempt is begun."""
FIRST_PAUSE = 0.01
LONGEST_PAUSE = 1.0
CONNECT_TIMEOUT = 5.0
DDL_TIMEOUT = 600.0
LOCK_TIMEOUT = 2.0
"""Seconds for which a statement waits for a row that another transaction has locked."""
IDLE_TIMEOUT = 10.0
"""Seconds without a statement after which the server ends a transaction because its client is stopped or gone."""
CANCEL_TIMEOUT = 0.5
"""Seconds for the ROLLBACK of a cancelled transaction before its connection is cut, so no stop waits for a server."""
CLOSE_TIMEOUT = 0.5
"""Seconds for all connections of a pool to close properly before they are cut."""
ANSWER_GRACE = 2.0
"""Seconds beyond a statement's own limit to wait for the server's error."""

log = logging.getLogger("skerry.database")

# asyncpg's protocol is out of step: the server's last message, as in a crash, came between two statements.
_BROKEN = asyncpg.InternalClientError


class UnknownCommit(ProblemError):
    """The answer to COMMIT was lost: the write may be saved or not. Repeating the request with the same key is safe."""

    def __init__(self) -> None:
        super().__init__(
            "commit_unknown",
            "the connection to the metadata database was lost while the write was being saved; "
            "send the same request again (with the same Idempotency-Key if it had one)",
        )


class Locked(ProblemError):
    """Another transaction held a row for longer than the lock timeout; nothing was changed."""

    def __init__(self, what: str) -> None:
        super().__init__(
            "database_locked",
            f"{what} is locked by another transaction, which may be stuck; nothing was changed, try again",
        )


class NoConnectionError(ConnectionError):
    """The server can't be reached or accepts no connections."""


class Outages:
    """Logs the outages of a database once for all its shares."""

    def __init__(self) -> None:
        self.away = Outage(log, "transactions fail")
        self.locked = Outage(log, "rows that transactions need are locked by others")


class Database:
    """A share of a pool of connections, and the only way to run statements: whole transactions."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        share: Share,
        outages: Outages,
        on_retry: Callable[[], None] = lambda: None,
        turns: Turns | None = None,
    ) -> None:
        self._pool = pool
        self._share = share
        self._outages = outages
        self._on_retry = on_retry
        self._turns = turns

    def share(self, connections: int, what: str) -> "Database":
        """Return the same database for one kind of work, which may use `connections` of the pool at once."""
        return Database(self._pool, self._share.another(connections, what), self._outages, self._on_retry)

    def taking(self, turns: Turns) -> "Database":
        """Return the same share with transactions that take turns with those of every other share that has `turns`."""
        return Database(self._pool, self._share, self._outages, self._on_retry, turns)

    async def transaction(self, work: Work[T]) -> T:
        """Run `work` in a SERIALIZABLE transaction and commit it; after a conflict, run it again as a whole.

        `work` must have no effects except through its connection. Raises: Locked, when a row is locked; UnknownCommit,
        when the answer to COMMIT was lost; ProblemError database_busy, when no connection becomes free or after
        `ATTEMPTS` conflicts, body_too_large, database_read_only, database_full, or database_unavailable, when the
        server fails.
        """
        async with self._share.one():
            if self._turns is None:
                return await self._retried(lambda: self._attempt(work, readonly=False))
            async with self._turns.turn():
                return await self._retried(lambda: self._attempt(work, readonly=False))

    async def read(self, work: Work[T]) -> T:
        """Run `work`, which only reads, in a transaction: it sees one consistent state. Raises as `transaction`."""
        async with self._share.one():
            return await self._retried(lambda: self._attempt(work, readonly=True))

    async def alone(self, statement: str) -> None:
        """Run one repeatable statement outside a transaction, as CockroachDB requires for DDL.

        While DDL waits for a lock, every other user of the table waits behind it, so it waits for only `LOCK_TIMEOUT`
        at a time.
        """

        async def attempt() -> None:
            conn = await self._acquire()
            try:
                # It may build an index of existing rows.
                await conn.execute(SQL["no_time_limit"])
                await conn.execute(statement, timeout=DDL_TIMEOUT)
                await conn.execute(SQL["usual_time_limit"])
            except BaseException:
                terminate(conn)
                raise
            finally:
                await self._give_back(conn)

        for left in reversed(range(ATTEMPTS)):
            try:
                return await self._retried(attempt, DDL_TIMEOUT)
            except Locked:
                if not left:
                    raise
                await asyncio.sleep(LONGEST_PAUSE)
        return None

    async def ready(self, name: str, now: datetime) -> None:
        """Write the row `name`, which nobody else writes. Raises: ProblemError, when the database takes no writes."""
        await self.transaction(lambda conn: conn.execute(SQL["prove_writes"], name, now))

    async def close(self) -> None:
        """Close the pool; connections that don't end within `CLOSE_TIMEOUT` are cut."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def _retried(self, run: Callable[[], Awaitable[T]], retry_for: float = RETRY_FOR) -> T:
        began = time.monotonic()
        for attempt in itertools.count(1):
            try:
                result = await run()
            except ProblemError:
                raise
            except Exception as error:
                # Whatever the error was, nothing was committed.
                last = attempt >= ATTEMPTS or time.monotonic() - began >= retry_for
                if sqlstates.is_lost(error):
                    # A new connection may work, as after a restart of the database.
                    last = last or attempt >= LOST_ATTEMPTS
                elif sqlstates.is_read_only(error):
                    # So may it after a failover: this connection is to what is now a standby.
                    last = last or attempt >= 2
                elif not sqlstates.is_conflict(error):
                    last = True
                if last:
                    problem = self._judged(error, attempt)
                    if problem is None:
                        raise
                    raise problem from error
            else:
                self._outages.away.worked()
                self._outages.locked.worked()
                return result
            self._on_retry()
            longest = min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE)
            await asyncio.sleep(random.uniform(longest / 4, longest))  # noqa: S311
        raise AssertionError("unreachable")

    def _judged(self, error: Exception, attempts: int) -> ProblemError | None:
        """Return the problem for a transaction that failed with `error`; None for a bug in control."""
        if sqlstates.is_locked(error):
            table = sqlstates.locked_table(error)
            locked = Locked(f"a row of {table}" if table else "a row that this needs")
            self._outages.locked.failed(f"a row of {table}" if table else str(error))
            return locked
        if sqlstates.is_too_large(error):
            return ProblemError("body_too_large", f"the metadata database takes less at once: {_cause(error)}")
        if sqlstates.is_conflict(error) and not isinstance(error, asyncpg.UniqueViolationError):
            return ProblemError(
                "database_busy", f"other writers were in the way {attempts} times; nothing was changed, try again"
            )
        if sqlstates.is_read_only(error):
            code, what = "database_read_only", "the metadata database takes no writes"
        elif sqlstates.is_full(error):
            code, what = "database_full", "the disk of the metadata database is full"
        elif sqlstates.is_lost(error):
            code, what = "database_unavailable", "the metadata database can't be reached, or doesn't answer in time"
        elif sqlstates.is_failing(error):
            code, what = "database_unavailable", "the metadata database fails"
        else:
            return None
        cause = _cause(error)
        self._outages.away.failed(f"{what}: {cause}")
        return ProblemError(code, f"{what} ({cause}); nothing was changed, try again")

    async def _acquire(self) -> PooledConnection:
        try:
            conn: PooledConnection = await self._pool.acquire(timeout=CONNECT_TIMEOUT)
        except (OSError, TimeoutError, asyncpg.PostgresError) as error:
            raise NoConnectionError(_cause(error)) from error
        return conn

    async def _attempt(self, work: Work[T], *, readonly: bool) -> T:
        conn = await self._acquire()
        try:
            return await self._work(conn, work, readonly=readonly)
        finally:
            await self._give_back(conn)

    async def _work(self, conn: PooledConnection, work: Work[T], *, readonly: bool) -> T:
        transaction = conn.transaction(isolation="serializable", readonly=readonly)
        try:
            await transaction.start()
            with lines_at_commit() as lines:
                result = await work(conn if tracing.TRACED.get() is None else TracedConnection(conn))
        except BaseException as error:
            if isinstance(error, _BROKEN):
                terminate(conn)
                raise ConnectionResetError(str(error)) from error
            if is_gone(conn):
                # asyncpg raises InterfaceError for this and for mistakes in our own calls alike.
                if isinstance(error, asyncpg.InterfaceError):
                    raise ConnectionResetError(str(error)) from error
                raise
            if readonly and sqlstates.is_read_only(error):
                raise AssertionError("work that only reads has written") from error
            if isinstance(error, TimeoutError) or sqlstates.is_read_only(error):
                # A server that doesn't answer wouldn't answer ROLLBACK either; a standby is of no more use.
                terminate(conn)
                raise
            await _undo(conn, transaction, CANCEL_TIMEOUT if isinstance(error, asyncio.CancelledError) else None)
            raise
        try:
            with tracing.NOTHING if tracing.TRACED.get() is None else tracing.statement("COMMIT", ""):
                await transaction.commit()
        except asyncio.CancelledError:
            terminate(conn)
            raise
        except Exception as error:
            if sqlstates.undoes_commit(error):
                raise
            terminate(conn)
            if readonly:
                raise ConnectionResetError("lost at the end of a read") from error
            log.warning("the connection was lost at COMMIT: %s: %s", type(error).__name__, error)
            tell(lines, "it isn't known whether this was done: ")
            raise UnknownCommit from error
        tell(lines)
        return result

    async def _give_back(self, conn: PooledConnection) -> None:
        """Return a connection to the pool, which closes it if it is lost.

        An error here says nothing about the work, so none is raised: committed work must not be run again.
        """
        try:
            await self._pool.release(conn)
        except (OSError, TimeoutError, asyncpg.PostgresError, _BROKEN, asyncpg.InterfaceError) as error:
            log.info("a connection to the metadata database was lost after its use: %s", error)


async def connect(
    url: str,
    *,
    connections: int = 16,
    statement_timeout: float = 10.0,
    lock_timeout: float = LOCK_TIMEOUT,
    outages: Outages | None = None,
    on_retry: Callable[[], None] = lambda: None,
    times: defaultdict[str, list[float]] | None = None,
    clock: Clock | None = None,
) -> Database:
    """Open a pool of at most `connections` to the database at `url`.

    The server itself enforces the timeouts (seconds): for a statement, for a row that another transaction has locked,
    and for an idle transaction. So a client that is stopped within a transaction blocks nobody.
    Raises: ControlSettingsError, when the connection to another machine wouldn't be encrypted; ProblemError, when there
    is no connection.
    """
    check_metadata_url(url)
    limits = {"statement_timeout": statement_timeout, "lock_timeout": lock_timeout}
    limits["idle_in_transaction_session_timeout"] = IDLE_TIMEOUT
    try:
        pool = await asyncpg.create_pool(
            url,
            min_size=1,
            max_size=connections,
            timeout=CONNECT_TIMEOUT,
            command_timeout=statement_timeout + ANSWER_GRACE,
            connection_class=AsyncpgConnection,
            init=_prepare,
            # Nothing here changes a session (only SET LOCAL), and resetting it would be another round trip to the
            # database after each transaction. A transaction that is left open is rolled back all the same.
            reset=_nothing,
            # Idle connections are closed; a proxy or a database restart may have cut them unnoticed.
            max_inactive_connection_lifetime=60.0,
            # PostgreSQL and CockroachDB both know these, and both read "2000ms".
            server_settings={
                "application_name": "skerry",
                **{name: f"{max(1, round(seconds * 1000))}ms" for name, seconds in limits.items()},
            },
        )
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        text = f"the metadata database can't be reached: {_cause(error)}"
        raise ProblemError("database_unavailable", text) from error
    return Database(
        pool, Share(connections, "everything", clock or SystemClock(), times), outages or Outages(), on_retry
    )


def _cause(error: BaseException) -> str:
    """Return the cause of an error in a few words."""
    if isinstance(error, NoConnectionError):
        return str(error)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return str(error).partition("\n")[0] or type(error).__name__


async def _undo(conn: PooledConnection, transaction: Transaction, seconds: float | None) -> None:
    """Roll back. If that fails or takes longer than `seconds`, end the connection, and the transaction with it.

    Raises nothing itself: the error that the transaction failed with says what went wrong.
    """
    try:
        # After a cancelled statement this waits for the server's answer first.
        async with asyncio.timeout(seconds):
            await transaction.rollback()
    except (OSError, TimeoutError, asyncpg.PostgresError, _BROKEN, asyncpg.InterfaceError):
        terminate(conn)
    except asyncio.CancelledError:
        # Cancelled a second time: the caller doesn't wait any longer.
        terminate(conn)
        raise


async def _nothing(_conn: PooledConnection) -> None:
    pass


async def _prepare(conn: asyncpg.Connection) -> None:
    # A type in pg_catalog, so that asyncpg knows its OID without a query (slow on CockroachDB).
    await conn.set_type_codec("jsonb", schema="pg_catalog", encoder=_to_json, decoder=orjson.loads, format="text")
    if hasattr(conn.get_settings(), "crdb_version"):
        # Versions of CockroachDB without the variable always plan with the values.
        with contextlib.suppress(asyncpg.UndefinedObjectError):
            await conn.execute(SQL["plan_with_values"])


def _to_json(value: object) -> str:
    return orjson.dumps(value).decode()
