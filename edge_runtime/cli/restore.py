"""`skerry-edge restore`: replaces a stopped node's database with a backup."""

import shutil
from pathlib import Path
from typing import Final

import click

from control.protocol import faults
from edge_runtime import database_exchange, database_users, files, wal
from edge_runtime.cli.backup import is_database, release_of, release_text
from edge_runtime.cli.support import JSON, STATE, check_owner, fail, show
from edge_runtime.state import DATA_AWAITED, State, StateUnfit

STOP_WAIT: Final = 5.0
"""Seconds to wait for the processes of a node that is stopping."""
_PREPARED: Final = "db.new"
"""Folder in the state directory in which the backup is prepared."""


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@STATE
@click.option("--force", is_flag=True, help="Restore it though foreign keys or the schema aren't as they should be.")
@JSON
def restore(file: Path, state: Path, force: bool, as_json: bool) -> None:
    """Put FILE, which `skerry-edge backup` made, in the place of the database of a node that doesn't run.

    The database that was there is kept, with its log, in a folder whose name is told. FILE is copied and looked
    through first; where anything is wrong, nothing changes. Killed at any moment, the node has the one database or the
    other, whole. FILE may also be a database that `restore` has kept.

    Exits 0 if it was restored, 1 if not.
    """
    check_owner(state, as_json)
    # For a link, the file that it points to: its log is beside that file.
    state, file = state.absolute(), file.resolve()
    try:
        opened = State(state, STOP_WAIT)
    except StateUnfit as error:
        raise fail("node_running", str(error), as_json) from None
    with opened:
        _restore(file, opened, force, as_json)


def _restore(file: Path, state: State, force: bool, as_json: bool) -> None:
    """Restore. Raises: click's, when it can't be done; then nothing was changed, unless the text says otherwise."""
    from edge_runtime.oneshot.database_copy import CopyFailed, copy_unused
    from edge_runtime.oneshot.database_report import DatabaseUnread, report
    from edge_runtime.release.witness import Witness

    for path in (state.path / wal.FILE, file):
        if used := database_users.users(path):
            raise fail("database_in_use", f"{path} is in use by {database_users.told(used)}: end it first", as_json)
    try:
        known = is_database(file)
    except OSError as error:
        raise fail("restore_failed", f"{file} can't be read: {error}", as_json) from None
    if not known:
        raise fail("database_unknown", f"{file} is no database, and nothing was changed", as_json)
    prepared = state.path / _PREPARED
    # Left by a restore that was killed before it changed anything.
    shutil.rmtree(prepared, ignore_errors=True)
    try:
        files.make_folder(prepared)
        copy = prepared / wal.FILE.name
        copy_unused(file, copy)
        found = report(copy, file)
        findings = found.findings()
        if found.faults or (findings and not force):
            text = f"{file} isn't whole, and nothing was changed. {' '.join(findings)}"
            if not found.faults:
                text += " --force restores it as it is."
            raise fail("database_damaged", text, as_json)
        faults.reach("edge.restore.prepared")
        witness = Witness(state.path)
        witness.announce_restore(found.stored)
        faults.reach("edge.restore.announced")
        kept = database_exchange.new_place(state.path)
        database_exchange.exchange(state.path, prepared, kept)
    except (CopyFailed, DatabaseUnread) as failed:
        raise fail(failed.code, f"{failed.message} Nothing was changed.", as_json) from None
    except OSError as error:
        text = f"the backup can't be put in the database's place, and nothing was changed: {error}"
        raise fail("restore_failed", text, as_json) from None
    finally:
        shutil.rmtree(prepared, ignore_errors=True)
    faults.reach("edge.restore.exchanged")
    try:
        # The node has data, so it needn't wait any longer for those of its backup.
        files.remove(state.path / DATA_AWAITED)
    except OSError as error:
        # The witness has both digests, so the node trusts either.
        text = (
            f"the backup is in the database's place, but a loss of power may undo that: {error}. What was there is kept"
        )
        raise fail("restore_failed", f"{text} in {kept}", as_json) from None
    witness.settle(found.stored)
    old = kept / wal.FILE.name
    if not old.exists():
        shutil.rmtree(kept, ignore_errors=True)
    if as_json:
        told = {"kept": str(old) if old.exists() else None, "schema_digest": found.schema_digest}
        show({**release_of(found.stored), **told, "warnings": findings})
        return
    click.echo(f"Restored: the node has {release_text(found.stored)}.")
    if old.exists():
        click.echo(f"The database that was there is kept as {old}; remove its folder when you need it no more.")
    for finding in findings:
        click.echo(f"Warning: {finding}", err=True)
