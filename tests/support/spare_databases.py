"""Databases of PostgreSQL that tests have had, for other tests: with their template's rows, and no others.

A copy of the template and its removal take 35 ms of a processor, this takes 5.
"""

import asyncio
import contextlib
import functools
from collections import deque
from dataclasses import dataclass
from typing import Any

import asyncpg

KEYS = {
    "pg_attrdef": "oid",
    "pg_attribute": "attrelid",
    "pg_class": "oid",
    "pg_constraint": "oid",
    "pg_namespace": "oid",
    "pg_proc": "oid",
    "pg_statistic": "starelid",
    "pg_trigger": "oid",
    "pg_type": "oid",
}
"""Catalogs that show that a table was changed or analysed, and the key that is above `BUILT_IN` where it is ours."""
BUILT_IN = 16383
LARGEST = 10 * 8192
"""Bytes of a table beyond which a database isn't given again: up to these ten pages PostgreSQL's plans are those for an
empty table, which it takes to have ten."""
_CATALOGS = " UNION ALL ".join(
    # How many rows there are, and which transaction wrote the newest: a copy of a database has them as they are.
    f"SELECT '{name}', count(*), min(age(xmin)) - age('3'::xid) FROM {name} WHERE {key} > {BUILT_IN}"
    for name, key in KEYS.items()
)
_LOOK = f"""
SELECT (SELECT string_agg(c::text, '') FROM ({_CATALOGS}) AS c)
    || ' counted ' || sum(reltuples)
    || ' small ' || (max(pg_relation_size(oid)) FILTER (WHERE relkind = 'r') <= {LARGEST})
    || ' sequences ' || count(*) FILTER (WHERE relkind = 'S')
    || ' settings ' || (SELECT count(*) FROM pg_db_role_setting AS s JOIN pg_database AS d ON d.oid = s.setdatabase
        WHERE d.datname = current_database())
    || ' others ' || (SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid())
FROM pg_class WHERE oid > {BUILT_IN}
"""
_TABLES = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1"
APPLICATION = "spare databases"
_SETTINGS = {
    "application_name": APPLICATION,
    # Without triggers, and no other transaction is there.
    "session_replication_role": "replica",
    "default_transaction_isolation": "read committed",
}
_connections: dict[str, Any] = {}
"""By a database's URL: one that stays, since a new one takes 20 ms for the same, with nothing in its caches."""
_spares: dict[str, deque[str]] = {}
"""By the server's URL: the databases that tests have had, the last at the end."""


@dataclass(frozen=True)
class Template:
    """What a database must look like to be given again, and the statements that put the template's rows into it."""

    look: str
    rows: str


async def template(connection: Any) -> Template:
    """Describe the template that `connection` is to; nothing but a migration has been done in it."""
    statements = []
    for (table,) in await connection.fetch(_TABLES):
        statements.append(f"DELETE FROM {table}")
        literals = await connection.fetch(f"SELECT quote_literal(t::text) FROM {table} AS t")
        statements += [f"INSERT INTO {table} SELECT ({literal}::{table}).*" for (literal,) in literals]
    look: str = await connection.fetchval(_LOOK)
    assert " sequences 0 " in look, "their values would have to be put back as well"
    return Template(look, "; ".join(statements))


async def take(server: str, like: Template) -> tuple[str, list[str]]:
    """A database that was given back to this server, put back; '' where there is none. And those that can't be."""
    unfit = []
    spares = _spares.get(server, deque())
    # The last one rests: what was connected to it may still be at its end.
    while len(spares) > 1:
        url = spares.popleft()
        if await asyncio.to_thread(_loop().run_until_complete, _put_back(url, like)):
            return url, unfit
        unfit.append(url)
    return "", unfit


def give_back(server: str, url: str) -> None:
    """Have a copy of the template on this server, which nothing uses any more, be given again."""
    _spares.setdefault(server, deque()).append(url)


def forget(server: str) -> None:
    """Have what is on this server not be given again, and end all connections of this module."""
    _spares.pop(server, None)
    for connection in _connections.values():
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            _loop().run_until_complete(connection.close(timeout=5))
    _connections.clear()


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """That of this module's connections: they outlive the loops of tests. It runs while they are used."""
    return asyncio.new_event_loop()


async def _put_back(url: str, like: Template) -> bool:
    """Put the template's rows into a database; False where somebody is connected to it, or more than rows differ."""
    with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection = _connections.get(url)
        if connection is None or connection.is_closed():
            connection = _connections[url] = await asyncpg.connect(url, server_settings=_SETTINGS)
        if await connection.fetchval(_LOOK) == like.look:
            await connection.execute(like.rows)
            return True
    if connection := _connections.pop(url, None):
        connection.terminate()
    return False
