"""The metadata database: transactions that are retried whole, and what a lost connection means."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import asyncpg
import orjson

from control import queries
from control.problems import ProblemError
from control.settings import check_metadata_url

SQL = queries.load("database")
T = TypeVar("T")
Connection = asyncpg.pool.PoolConnectionProxy | asyncpg.Connection
Work = Callable[[Any], Awaitable[T]]

ATTEMPTS = 10
FIRST_PAUSE = 0.01
LONGEST_PAUSE = 1.0
CONNECT_TIMEOUT = 5.0
DDL_TIMEOUT = 600.0

log = logging.getLogger("skerry.database")

# The whole work again: 40001, a deadlock, and a key that another writer took after the work had looked for it
# (PostgreSQL may say so before it finds the conflict); the work then sees the other's row and says what is wrong.
_CONFLICTS = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.UniqueViolationError,
)
# The connection is gone or the server is: TimeoutError is a statement's own time limit.
_LOST = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.QueryCanceledError,
)
# asyncpg's protocol is out of step: the server's last words, as a crash sends them, came between two statements.
_BROKEN = asyncpg.InternalClientError


class UnknownCommit(ProblemError):
    """The answer to COMMIT was lost: the write may be saved or not. Asking again under the same key is safe."""

    def __init__(self) -> None:
        super().__init__(
            "commit_unknown",
            "the connection to the metadata database was lost while the write was being saved; "
            "send the same request again (with the same Idempotency-Key if it had one)",
        )


class Database:
    """A pool of connections, and the only way to run statements: whole transactions."""

    def __init__(self, pool: asyncpg.Pool, on_retry: Callable[[], None] = lambda: None) -> None:
        self._pool = pool
        self._on_retry = on_retry

    async def transaction(self, work: Work[T]) -> T:
        """Run `work` in a SERIALIZABLE transaction and commit; run it again, whole, where the database says so.

        `work` must have no effect but through its connection. Raises `ProblemError` database_busy after `ATTEMPTS`
        conflicts, database_unavailable where there is no connection, and `UnknownCommit`.
        """
        return await self._retried(lambda: self._attempt(work, readonly=False))

    async def read(self, work: Work[T]) -> T:
        """The same for what only reads: one consistent view."""
        return await self._retried(lambda: self._attempt(work, readonly=True))

    async def alone(self, statement: str) -> None:
        """Run one statement that may be repeated outside of a transaction, as DDL wants it on CockroachDB."""

        async def attempt() -> None:
            async with self._pool.acquire(timeout=CONNECT_TIMEOUT) as conn:
                # It may build an index of what is there.
                await conn.execute(statement, timeout=DDL_TIMEOUT)

        await self._retried(attempt)

    async def ready(self) -> None:
        """Raises `ProblemError` unless the database answers."""
        await self.read(lambda conn: conn.fetchval(SQL["ping"]))

    async def close(self) -> None:
        """Close the pool; connections that are still busy after 5 s are cut."""
        try:
            async with asyncio.timeout(5):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def _retried(self, run: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(ATTEMPTS):
            if attempt:
                self._on_retry()
                longest = min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE)
                await asyncio.sleep(random.uniform(longest / 4, longest))  # noqa: S311
            try:
                return await run()
            except _CONFLICTS as error:
                conflict: Exception = error
            except ProblemError:
                raise
            except _LOST as error:
                # Nothing was committed. A new connection may do, as after a restart of the database.
                conflict = error
                if attempt >= 3:
                    break
        if isinstance(conflict, asyncpg.UniqueViolationError):
            raise conflict
        if isinstance(conflict, _LOST):
            log.warning("the metadata database can't be reached, or is slow: %s: %s", type(conflict).__name__, conflict)
            raise ProblemError(
                "database_unavailable",
                "the metadata database can't be reached, or doesn't answer in time; nothing was changed, try again",
            ) from conflict
        raise ProblemError(
            "database_busy", f"other writers were in the way {ATTEMPTS} times; nothing was changed, try again"
        ) from conflict

    async def _attempt(self, work: Work[T], *, readonly: bool) -> T:
        conn = await self._pool.acquire(timeout=CONNECT_TIMEOUT)
        try:
            return await self._work(conn, work, readonly=readonly)
        finally:
            await self._give_back(conn)

    async def _work(self, conn: Any, work: Work[T], *, readonly: bool) -> T:
        transaction = conn.transaction(isolation="serializable", readonly=readonly)
        try:
            await transaction.start()
            result = await work(conn)
        except BaseException as error:
            if isinstance(error, _BROKEN):
                _terminate(conn)
                raise ConnectionResetError(str(error)) from error
            if _is_gone(conn):
                # asyncpg says InterfaceError for this as for mistakes in our own calls.
                if isinstance(error, asyncpg.InterfaceError):
                    raise ConnectionResetError(str(error)) from error
                raise
            try:
                await transaction.rollback()
            except (*_LOST, _BROKEN, asyncpg.InterfaceError):
                _terminate(conn)
            raise
        try:
            await transaction.commit()
        except (*_LOST, _BROKEN, asyncpg.InterfaceError, asyncpg.StatementCompletionUnknownError) as error:
            _terminate(conn)
            if readonly:
                raise ConnectionResetError("lost at the end of a read") from error
            log.warning("the connection was lost at COMMIT: %s: %s", type(error).__name__, error)
            raise UnknownCommit from error
        except asyncio.CancelledError:
            _terminate(conn)
            raise
        return result

    async def _give_back(self, conn: Any) -> None:
        """A connection that is found to be lost now is ended by the pool.

        That says nothing of the work: what was committed must not be taken for lost, and done again.
        """
        try:
            await self._pool.release(conn)
        except (*_LOST, _BROKEN, asyncpg.InterfaceError) as error:
            log.info("a connection to the metadata database was lost after its use: %s", error)


async def connect(
    url: str, *, connections: int = 16, statement_timeout: float = 10.0, on_retry: Callable[[], None] = lambda: None
) -> Database:
    """Open a pool on `url`; raises `SettingsError` for an unencrypted way to another machine, else `ProblemError`."""
    check_metadata_url(url)
    try:
        pool = await asyncpg.create_pool(
            url,
            min_size=1,
            max_size=connections,
            timeout=CONNECT_TIMEOUT,
            command_timeout=statement_timeout,
            init=_prepare,
            # Nothing here changes a session (SET LOCAL alone), and resetting it would be another question to the
            # database after each transaction. A transaction that is left open is rolled back all the same.
            reset=_nothing,
            # Idle connections are given back; a proxy or a database restart may have cut them unseen.
            max_inactive_connection_lifetime=60.0,
            server_settings={"application_name": "skerry"},
        )
    except (*_LOST, asyncpg.PostgresError) as error:
        raise ProblemError("database_unavailable", f"the metadata database can't be reached: {error}") from error
    return Database(pool, on_retry)


def _is_gone(conn: Any) -> bool:
    try:
        return bool(conn.is_closed())
    except asyncpg.InterfaceError:
        # The pool has taken it back, because it was lost.
        return True


def _terminate(conn: Any) -> None:
    if not _is_gone(conn):
        conn.terminate()


async def _nothing(_conn: Any) -> None:
    pass


async def _prepare(conn: asyncpg.Connection) -> None:
    # A type of pg_catalog, so that asyncpg knows its OID without asking (slow on CockroachDB).
    await conn.set_type_codec("jsonb", schema="pg_catalog", encoder=_to_json, decoder=orjson.loads, format="text")


def _to_json(value: object) -> str:
    return orjson.dumps(value).decode()
