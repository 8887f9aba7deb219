"""`skerry-edge check-database`: checks the node's database while the node serves."""

import sys
from pathlib import Path
from typing import Final

import click

from control.protocol import faults
from edge_runtime import wal
from edge_runtime.cli.backup import release_of, release_text
from edge_runtime.cli.support import JSON, STATE, check_owner, fail, show
from edge_runtime.wal import DatabaseSizes

_LARGEST: Final = 10
"""Tables and indexes that are shown in text output."""


@click.command("check-database")
@STATE
@JSON
def check_database(state: Path, as_json: bool) -> None:
    """Look through the node's database, while the node serves or while it doesn't: its pages, its foreign keys, and
    whether its schema is what the last release left; and say what takes how much room.

    Every page is read. Meanwhile calls go on, and the write-ahead log can't begin anew.

    Exits 0 if the database is whole, 1 if not.
    """
    check_owner(state, as_json)
    from edge_runtime.oneshot.database_guard import GuardFailed, guarded
    from edge_runtime.oneshot.database_report import DatabaseReport, DatabaseUnread, report
    from edge_runtime.release.witness import Witness

    state = state.absolute()
    database = state / wal.FILE
    if not database.exists():
        raise fail("database_missing", f"{database} isn't there: the node has not run yet", as_json)
    witness = Witness(state)
    seen = [witness.kept()]

    def begun() -> None:
        seen.append(witness.kept())
        faults.reach("edge.check.begun")

    try:
        with guarded(database, reading=False):
            found: DatabaseReport = report(database, database, begun, sizes=True)
            sizes = wal.sizes(database)
    except GuardFailed as failed:
        code = failed.code if failed.code == "database_held" else "database_damaged"
        raise fail(code, f"the database can't be opened: {failed}", as_json) from None
    except DatabaseUnread as failed:
        raise fail(failed.code, failed.message, as_json) from None
    findings = found.findings()
    if not witness.confirms(found.stored, *seen):
        findings.append("Its record of the release isn't what the node has committed (database_unverified).")
    notes = [f"The {name} is no release's." for name in found.added]
    if not found.recorded:
        notes.append("What the schema should be isn't recorded yet: the next release does that.")
    if as_json:
        told = {
            "bytes": found.pages * found.page_bytes,
            "free_bytes": found.free_pages * found.page_bytes,
            "wal_file": sizes.log,
            "disk_free": sizes.disk_free,
            "tables": [{"name": name, "bytes": size} for name, size in found.tables],
            "schema_digest": found.schema_digest,
        }
        show({"ok": not findings, "findings": findings, "notes": notes, **release_of(found.stored), **told})
    else:
        click.echo(f"release    {release_text(found.stored)}")
        click.echo(_sizes(found.pages * found.page_bytes, found.free_pages * found.page_bytes, sizes))
        for name, size in found.tables[:_LARGEST]:
            click.echo(f"table      {name} {_mib(size)}")
        for note in notes:
            click.echo(f"note       {note}")
        for finding in findings:
            click.echo(f"finding    {finding}")
        click.echo(f"whole      {'no' if findings else 'yes'}")
    if findings:
        sys.exit(1)


def _sizes(size: int, free: int, sizes: DatabaseSizes) -> str:
    log = f"the log's file {_mib(sizes.log)}"
    return f"size       {_mib(size)}, {_mib(free)} of it free; {log}; its disk has {_mib(sizes.disk_free)} free"


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
