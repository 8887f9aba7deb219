"""`skerry-edge backup`: a complete, checked copy of the node's database, while the node serves."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from control.protocol import faults
from edge_runtime import database_users, files, wal
from edge_runtime.cli.support import JSON, STATE, check_owner, fail, show
from edge_runtime.ipc.frames import Stored

_MAGIC: Final = b"SQLite format 3\0"


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@STATE
@click.option(
    "--compact", "compactly", is_flag=True, help="Leave free pages out (VACUUM); takes longer, and more room."
)
@JSON
def backup(file: Path, state: Path, compactly: bool, as_json: bool) -> None:
    """Copy the node's database, as of one moment, to FILE, while the node serves or while it doesn't.

    The copy is one file, looked through (pages, foreign keys, schema) before it takes FILE's place: an earlier backup
    there stays until then. It holds all rows, so it is for this user alone to read. `skerry-edge restore` puts it back.

    Exits 0 if the backup was made, with a warning where something in the database isn't as it should be; 1 if not.
    """
    check_owner(state, as_json)
    from edge_runtime.oneshot.database_copy import CopyFailed, compact, copy_served, sha256
    from edge_runtime.oneshot.database_report import DatabaseUnread, report
    from edge_runtime.release.witness import Witness

    state, file = state.absolute(), file.absolute()
    database = state / wal.FILE
    if not database.exists():
        raise fail("database_missing", f"{database} isn't there: the node has not run yet", as_json)
    _check_target(file, database, as_json)
    witness = Witness(state)
    seen = [witness.kept()]

    def begun() -> None:
        seen.append(witness.kept())
        faults.reach("edge.backup.begun")

    try:
        with _partial(file) as partial:
            copy = partial / file.name
            copy_served(database, copy, begun)
            if compactly:
                compact(copy)
            found = report(copy, database)
            if found.faults:
                text = f"the database is damaged, and no backup was made; {file} is as it was. {found.findings()[0]}"
                raise fail("database_damaged", text, as_json)
            digest, size = sha256(copy), copy.stat().st_size
            copy.replace(file)
            files.sync_folder(file.parent)
    except (CopyFailed, DatabaseUnread) as failed:
        raise fail(failed.code, failed.message, as_json) from None
    except BlockingIOError:
        raise fail("backup_target_unfit", f"another backup to {file} is being made", as_json) from None
    except OSError as error:
        raise fail("copy_failed", f"{file} can't be written: {error}", as_json) from None
    warnings = found.findings()
    if not witness.confirms(found.stored, *seen):
        warnings.append(
            "The node doesn't believe this database's record of its release (database_unverified): don't restore it "
            "unless you know why."
        )
    if as_json:
        told = {"file": str(file), "bytes": size, "sha256": digest, "schema_digest": found.schema_digest}
        show({**told, **release_of(found.stored), "warnings": warnings})
        return
    click.echo(f"{file}: {size} bytes, sha256 {digest}")
    click.echo(f"It is at {release_text(found.stored)}.")
    for warning in warnings:
        click.echo(f"Warning: {warning}", err=True)


def release_of(stored: Stored) -> dict[str, Any]:
    """Return a database's release, for JSON."""
    release = stored.release
    return {
        "release": release and {"id": release.release_id, "number": release.number, "generation": release.generation},
        "schema_version": stored.inventory.schema_version,
        "database_id": stored.inventory.database_id,
    }


def release_text(stored: Stored) -> str:
    """Return a database's release, in words."""
    release, schema = stored.release, f"schema version {stored.inventory.schema_version}"
    if release is None:
        return f"no release yet, {schema}"
    return f"release {release.number} (generation {release.generation}), {schema}"


def is_database(file: Path) -> bool:
    """Return whether a file begins like an SQLite file. Raises: OSError, when it can't be read."""
    with file.open("rb") as opened:
        return opened.read(len(_MAGIC)) == _MAGIC


def _check_target(file: Path, database: Path, as_json: bool) -> None:
    """Check FILE. Raises: click's, when it is something other than an earlier backup, or couldn't be a backup on its
    own."""
    if file.parent.resolve() == database.parent.resolve():
        raise fail("backup_target_unfit", f"{file} is in the node's own folder of its database", as_json)
    if file.exists():
        if not file.is_file():
            raise fail("backup_target_unfit", f"{file} is no file", as_json)
        try:
            replaceable = not file.stat().st_size or is_database(file)
        except OSError as error:
            raise fail("backup_target_unfit", f"{file} can't be read: {error}", as_json) from None
        if not replaceable:
            raise fail("backup_target_unfit", f"{file} is something else than a database; it stays", as_json)
        if used := database_users.users(file):
            raise fail("backup_target_unfit", f"{file} is in use by {database_users.told(used)}", as_json)
    for beside in (wal.log_of(file), wal.journal_of(file)):
        if beside.exists():
            text = f"{beside} is there, and would be taken for a part of the backup: move it away"
            raise fail("backup_target_unfit", text, as_json)


@contextlib.contextmanager
def _partial(file: Path) -> Iterator[Path]:
    """Make a folder beside FILE for the unfinished backup; one left by a killed backup is recreated.

    Raises: BlockingIOError, when another backup uses it; OSError, also when it belongs to another user or is a link.
    """
    folder = file.with_name(f".{file.name}.partial")
    folder.mkdir(mode=0o700, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        made = os.fstat(handle)
        if made.st_uid != os.geteuid() or made.st_mode & 0o077:
            # The user who made it could read the copy.
            raise OSError(f"{folder} is open to others: remove it")
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for left in folder.iterdir():
            left.unlink()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)
