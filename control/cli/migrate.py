"""`skerry migrate`: bring the metadata database to this version's schema, and make the first operator."""

import os

import click

from control import settings
from control.cli.support import options, output
from control.cli.support.client import Failure
from control.clock import SystemClock
from control.problems import ProblemError
from control.storage import database, migrations

DDL_TIMEOUT = 300.0
"""Seconds for one statement: a change of schema may take its time on a large table."""


@click.command()
@click.option(
    "--new-admin",
    type=options.NAME,
    metavar="NAME",
    help="Make an admin NAME, or give it a new token: for who lost the last one.",
)
@options.json_option
@options.asynchronous
async def command(new_admin: str | None, as_json: bool) -> None:
    """Bring the metadata database (SKERRY_METADATA_URL) to this version's schema.

    The first time, it makes the operator `admin` and prints the token, once. Safe to run again, also after a kill.
    """
    url = os.environ.get("SKERRY_METADATA_URL", "")
    if not url:
        raise click.UsageError("SKERRY_METADATA_URL isn't set: postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    applied, token = await run(url, new_admin)
    if as_json:
        output.document({"applied": applied, "admin": (new_admin or "admin") if token else None, "token": token})
        return
    output.note("\n".join(f"applied {name}" for name in applied) if applied else "the schema is this version's already")
    if token:
        output.note(f"the token of admin {new_admin or 'admin'}; control keeps only its hash, so store it now:")
        output.say(token)


async def run(url: str, new_admin: str | None) -> tuple[list[str], str | None]:
    """Migrate and make the admin; returns what was applied and the token, if one was made. Raises `Failure`."""
    clock = SystemClock()
    try:
        db = await database.connect(url, connections=2, statement_timeout=DDL_TIMEOUT)
        try:
            applied = await migrations.migrate(db, clock)
            again = new_admin is not None
            return applied, await migrations.make_admin(db, clock, name=new_admin or "admin", again=again)
        finally:
            await db.close()
    except settings.SettingsError as error:
        raise click.UsageError(str(error)) from error
    except migrations.SchemaError as error:
        raise Failure(str(error), code="schema") from error
    except ProblemError as error:
        raise Failure(
            error.detail, code=error.code, cure="is the metadata database running, and its URL right?"
        ) from error
