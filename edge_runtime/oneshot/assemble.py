"""`python -m edge_runtime.oneshot.assemble FOLDER [--bytes MOST] [--parent PID]`: makes a database of a backup's files,
and checks it; or, with `--merge NAME…`, fewer files of them.

FOLDER is a private folder with nothing but LTX files, named as at the store, of which the first is a snapshot and each
other one follows the one before it. The database is `FOLDER/skerry.db` afterwards, on disk, without a log. The files
may be hostile: what reads them, and the database that comes out, are children behind the fence, one after the other.
With `--merge` the first needn't be a snapshot. Each NAME is the name of a file with the transactions that it shall
have, of which there is then one in `FOLDER/merged`; files that no NAME needs aren't read.

It prints one JSON object, `Assembled` or `{"ok": true}`, or `{"ok": false, "code": …, "message": …}`, and exits with
status 0 for both. Status 2 is a wrong command line; any other status means that it couldn't do its work at all.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar, cast

import msgspec
from msgspec import Struct

from control.protocol import ltx
from edge_runtime import wal
from edge_runtime.errors import CodedError
from edge_runtime.ipc.restore_messages import Assembled
from edge_runtime.oneshot.database_report import LIMIT, DatabaseUnread, report
from edge_runtime.oneshot.forked import run_forked
from edge_runtime.sandbox import fence
from edge_runtime.sandbox.allowlists import RANDOM, WRITE

R = TypeVar("R")

DATABASE: Final = "skerry.db"
MERGED: Final = "merged"
TOGETHER: Final = 100
"""Files that are merged at once: each is open and has a page in memory."""


class Made(Struct, frozen=True):
    """What files came to."""

    transaction: int
    at_ms: int
    """Unix milliseconds of when the last file was made."""
    bytes: int
    """Of the database."""


class NotAssembled(CodedError):
    """The files make no database."""


def assemble(folder: Path, most: int) -> Assembled:
    """Make a database of the files in a folder, and check it. The caller must have only one thread.

    Raises: NotAssembled; DatabaseUnread, when what comes out is no node's database.
    """
    path = folder / DATABASE
    made = _forked(lambda: _apply(folder, path, most))
    try:
        found = report(path, Path("the database"), rows=True)
    finally:
        for beside in (wal.log_of(path), wal.index_of(path)):
            beside.unlink(missing_ok=True)
    return Assembled(
        ok=True,
        transaction=made.transaction,
        at_ms=made.at_ms,
        bytes=made.bytes,
        findings=found.findings(),
        schema_digest=found.schema_digest,
        rows=found.rows,
        stored=found.stored,
    )


def merge(folder: Path, most: int, wanted: Sequence[str]) -> None:
    """Make files with these names of the files in a folder. The caller must have only one thread.

    Raises: NotAssembled.
    """

    _forked(lambda: _merge(folder, most, wanted))


def _forked(make: Callable[[], R]) -> R:
    """Have a child make something. Raises: NotAssembled."""

    def work() -> bytes:
        try:
            return msgspec.json.encode(make())
        except NotAssembled as failed:
            return msgspec.json.encode([failed.code, failed.message])

    try:
        answer, status = run_forked(work, LIMIT)
    except TimeoutError:
        raise NotAssembled("backup_damaged", f"The files weren't applied after {LIMIT:g} s.") from None
    if not answer:
        text = f"The process that applied the files ended before it was done (status {status})."
        raise NotAssembled("backup_damaged", text)
    made = msgspec.json.decode(answer, type=Made | list[str] | None)
    if isinstance(made, list):
        raise NotAssembled(*made)
    return cast(R, made)


def _enclose(folder: Path, most: int) -> list[str]:
    """Enter the fence; return the names of the folder's files, in the order of their transactions."""
    names = sorted(name for name in os.listdir(folder) if ltx.transactions(name) is not None)
    fence.enclose([(folder, WRITE), RANDOM])
    fence.limit_files(most)
    fence.seal("worker")
    return names


def _apply(folder: Path, path: Path, most: int) -> Made:
    """Apply the files in this process, behind the fence. Raises: NotAssembled."""
    names = _enclose(folder, most)
    before: ltx.Header | None = None
    name = ""
    try:
        with path.open("xb") as target:
            for name in names:
                with (folder / name).open("rb") as file:
                    reader = ltx.Reader(file)
                    _check(name, before, reader.header, most)
                    ltx.apply(reader, target)
                    before = reader.header
            target.flush()
            os.fsync(target.fileno())
    except ltx.LtxError as error:
        raise NotAssembled("backup_damaged", f"The file {name} can't be applied: {error}.") from None
    except OSError as error:
        raise NotAssembled("disk_failed", f"The database can't be written: {error}.") from None
    if before is None:
        raise NotAssembled("backup_damaged", f"The folder {folder} has no file of a backup.")
    return Made(before.last, before.at_ms, before.pages * before.page_bytes)


def _merge(folder: Path, most: int, wanted: Sequence[str]) -> None:
    """Merge the files in this process, behind the fence. Raises: NotAssembled."""
    made = folder / MERGED
    made.mkdir()
    spans = [(span, folder / name) for name in _enclose(folder, most) if (span := ltx.transactions(name))]
    for name in wanted:
        whole = ltx.transactions(name)
        if whole is None:
            raise NotAssembled("backup_damaged", f"{name} is no name of a file.")
        paths = [path for span, path in spans if whole[0] <= span[0] and span[1] <= whole[1]]
        try:
            header = _merge_one(paths, made / name)
            if ltx.name(header.first, header.last) != name:
                raise ltx.LtxError(f"what there is has the transactions {header.first} to {header.last}")
        except ltx.LtxError as error:
            raise NotAssembled("backup_damaged", f"The file {name} can't be merged: {error}.") from None
        except OSError as error:
            raise NotAssembled("disk_failed", f"The file {name} can't be written: {error}.") from None


def _merge_one(paths: list[Path], target: Path) -> ltx.Header:
    """Merge files that follow each other; return the header of what comes of them. Raises: LtxError; OSError."""
    if not paths:
        raise ltx.LtxError("there is no file for it")
    part = target.with_suffix(".part")
    header = None
    while paths:
        with contextlib.ExitStack() as stack:
            readers = [ltx.Reader(stack.enter_context(path.open("rb"))) for path in paths[:TOGETHER]]
            ltx.merge(readers, stack.enter_context(part.open("wb")))
            ends = readers[0].header, readers[-1].header
        part.replace(target)
        header = ends[1]._replace(first=ends[0].first)
        # A long list is merged in rounds: what came out is the first file of the next one.
        paths = [target, *paths[TOGETHER:]] if paths[TOGETHER:] else []
    assert header is not None  # noqa: S101
    return header


def _check(name: str, before: ltx.Header | None, header: ltx.Header, most: int) -> None:
    """Check that a file is the one that its name says, and can be applied next. Raises: LtxError; NotAssembled."""
    if ltx.name(header.first, header.last) != name:
        raise ltx.LtxError(f"it has the transactions {header.first} to {header.last}")
    if before is None and header.first != 1:
        raise ltx.LtxError("it is no snapshot, and no file comes before it")
    if before is not None:
        ltx.check_order([before, header])
    if header.pages * header.page_bytes > most:
        text = f"The database has {header.pages * header.page_bytes} bytes, and may have {most}."
        raise NotAssembled("disk_full", text)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m edge_runtime.oneshot.assemble")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bytes", type=int, default=fence.FILE_BYTES, help="that the database may have (%(default)s)")
    parser.add_argument("--merge", nargs="+", metavar="NAME", help="make files of these names, and no database")
    parser.add_argument("--parent", type=int, help="id of the process with which this one ends")
    options = parser.parse_args(argv)
    if options.parent is not None:
        fence.die_with_parent(options.parent)
    fence.lower_priority()
    try:
        if options.merge:
            merge(options.folder.absolute(), options.bytes, options.merge)
            answer = b'{"ok":true}'
        else:
            answer = msgspec.json.encode(assemble(options.folder.absolute(), options.bytes))
    except (NotAssembled, DatabaseUnread) as failed:
        answer = msgspec.json.encode({"ok": False, "code": failed.code, "message": failed.message})
    sys.stdout.buffer.write(answer + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
