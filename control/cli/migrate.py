"""`skerry migrate`: migrate the metadata database to this version's schema, and make the first operator."""

import os

import click

from control.cli.support import options, output
from control.cli.support.startup_errors import startup_errors
from control.clock import SystemClock
from control.storage import database, migrations

DDL_TIMEOUT = 300.0
"""Seconds that one statement may take: a schema change may be slow on a large table."""


@click.command()
@click.option(
    "--new-admin",
    type=options.NAME,
    metavar="NAME",
    help="Make an admin NAME, or give an existing one a new token, when the last token is lost.",
)
@options.json_option
@options.asynchronous
async def command(new_admin: str | None, as_json: bool) -> None:
    """Bring the metadata database (SKERRY_METADATA_URL) to this version's schema.

    Replicas of the version before serve on meanwhile, and afterwards. The first time, it makes the operator `admin`
    and prints the token, once. Safe to run again, also after a kill.
    """
    url = os.environ.get("SKERRY_METADATA_URL", "")
    if not url:
        raise click.UsageError("SKERRY_METADATA_URL isn't set: postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    applied, token = await run(url, new_admin)
    if as_json:
        output.document({"applied": applied, "admin": (new_admin or "admin") if token else None, "token": token})
        return
    output.note("\n".join(f"applied {name}" for name in applied) if applied else "the schema has all of this version")
    if token:
        output.note(f"the token of admin {new_admin or 'admin'}; control keeps only its hash, so store it now:")
        output.say(token)


async def run(url: str, new_admin: str | None) -> tuple[list[str], str | None]:
    """Migrate the database and make the admin; return the names of the migrations applied, and a token if one was made.

    Raises: UsageError, when the URL isn't safe or isn't a URL; Failure, when the database can't be used.
    """
    clock = SystemClock()
    with startup_errors("is the metadata database running, and its URL right?"):
        db = await database.connect(url, connections=2, statement_timeout=DDL_TIMEOUT)
        try:
            applied = await migrations.migrate(db, clock)
            again = new_admin is not None
            return applied, await migrations.make_admin(db, clock, name=new_admin or "admin", again=again)
        finally:
            await db.close()
