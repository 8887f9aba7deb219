"""A database with a writer and a shipper, each in a process of its own that a test can kill, and a store for the files.

The shipper's process does what a checkpointer's does, without its fence. `litestream restore` is the judge.
"""

import contextlib
import os
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from control.protocol import ltx
from edge_runtime import wal
from edge_runtime.backup.local_files import LocalFiles
from edge_runtime.backup.shipper import Shipper
from edge_runtime.children import checkpointer
from edge_runtime.ipc import frames
from edge_runtime.sandbox import fence
from edge_runtime.sql.current_sqlite import FileAndLog
from edge_runtime.sql.writer_lock import LOCK_NAME, WriterLock

LITESTREAM: Final = Path(sys.executable).with_name("litestream")
LIMIT: Final = 64 << 20
PATIENCE: Final = 5.0
_WRITER: Final = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=float(sys.argv[2]))
db.execute("PRAGMA wal_autocheckpoint = 0")
db.execute("PRAGMA synchronous = FULL")
for line in sys.stdin:
    try:
        db.execute(line).fetchall()
        print("done", flush=True)
    except sqlite3.Error as error:
        print(error, flush=True)
"""


class Killed(Exception):
    """The process was killed before it answered."""


class Program:
    """A process that answers each line by one."""

    def __init__(self, *arguments: str | Path, environment: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def tell(self, line: str) -> None:
        """Ask, and don't wait. Raises: Killed."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Killed from None

    def answer(self) -> str:
        """Raises: Killed."""
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()).endswith("\n"):
            raise Killed
        return line[:-1]

    def answered(self) -> bool:
        """Whether an answer waits."""
        return bool(select.select([self.process.stdout], [], [], 0)[0])

    def ask(self, line: str) -> str:
        """Raises: Killed."""
        self.tell(line)
        return self.answer()

    def close(self) -> None:
        """Let it end in order."""
        self.process.communicate()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


class Writer(Program):
    """Another process that has the file open, by another SQLite, and waits so many seconds for locks."""

    def __init__(self, database: Path, environment: Mapping[str, str] | None = None, *, patience: float = 10) -> None:
        super().__init__("-c", _WRITER, database, str(patience), environment=environment)

    def do(self, statement: str) -> None:
        assert self.ask(statement) == "done"

    def insert(self, number: int) -> None:
        self.do(insertion(number))


def insertion(number: int) -> str:
    """A statement of some pages; the note of some numbers takes the place of others' content, too."""
    return f"INSERT INTO notes VALUES ({number}, zeroblob({number * 977 % 20_000}))"


class OtherShipper(Program):
    """A shipper in a process of its own."""

    def __init__(
        self,
        state: Path,
        environment: Mapping[str, str] | None = None,
        *,
        limit: int = LIMIT,
        log_limit: int = LIMIT,
        work: str = "serve",
    ) -> None:
        arguments = (str(limit), str(log_limit), work)
        super().__init__("-m", "tests.support.shipping", state, *arguments, environment=environment)

    def ship(self, *, afresh: bool = False, boundary: bool = False) -> frames.Shipped:
        """Raises: Killed; OSError, when it failed."""
        line = "afresh" if afresh else "boundary" if boundary else "ship"
        return msgspec.json.decode(self._told(line), type=frames.Shipped)

    def checkpoint(self, mode: str, *, unshipped: bool = False) -> bool:
        """Whether the log was moved, and for all modes but passive may begin anew. Raises: Killed; OSError."""
        return self._told(f"{mode} unshipped" if unshipped else mode) == "false"

    def _told(self, line: str) -> str:
        if (said := self.ask(line)).startswith("error: "):
            raise OSError(said)
        return said


class World:
    """A state directory whose database is shipped."""

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        *,
        limit: int = LIMIT,
        log_limit: int = LIMIT,
        runs: bool = True,
    ) -> None:
        """If it doesn't `runs`, there is nothing but what is in the folder."""
        self.state = folder / "state"
        self.store = folder / "store"
        self.out = folder / "restored.db"
        self.database = self.state / wal.FILE
        self.environment = environment
        self.limit = limit
        self.log_limit = log_limit
        self.database.parent.mkdir(parents=True, exist_ok=True)
        (self.state / wal.BACKUP).mkdir(exist_ok=True)
        self.local = LocalFiles(self.state)
        if not runs:
            return
        self.start_writer()
        self.writer.do("PRAGMA journal_mode = WAL")
        self.writer.do("CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, data BLOB)")
        self.start()

    def start(self) -> None:
        self.shipper = OtherShipper(self.state, self.environment, limit=self.limit, log_limit=self.log_limit)

    def start_writer(self) -> None:
        self.writer = Writer(self.database, self.environment)

    def end(self) -> None:
        self.shipper.kill()
        self.writer.kill()

    def recover(self) -> None:
        """What a zygote does first where a log was left. Raises: Killed."""
        program = OtherShipper(self.state, self.environment, limit=self.limit, work="recover")
        try:
            program.answer()
        finally:
            program.kill()

    @property
    def lineage(self) -> str:
        history = self.local.lineage()
        assert history is not None
        return history.lineage

    def replica(self, lineage: str = "") -> Path:
        return self.store / (lineage or self.lineage)

    def upload(self) -> None:
        """Put all files that wait at the store, which takes no other content for a name that it has."""
        for one in self.local.waiting():
            with one.path.open("rb") as file:
                for _ in ltx.Reader(file).pages():
                    pass
            there = self.replica(one.lineage) / "ltx" / str(one.level) / one.path.name
            there.parent.mkdir(parents=True, exist_ok=True)
            if there.exists():
                assert there.read_bytes() == one.path.read_bytes(), f"{there} has another content"
            else:
                shutil.copyfile(one.path, there)
            self.local.uploaded(one)
            snapshots = {path.name[17:] for path in self.replica(one.lineage).glob("ltx/9/*")}
            twice = [path for path in self.replica(one.lineage).glob("ltx/0/*") if path.name[17:] in snapshots]
            assert not twice, f"a transaction is a shipment and a snapshot: {twice}"

    def restore(self, at: int | None = None, lineage: str = "") -> list[int]:
        """Return the numbers of the notes of what Litestream restores from the store."""
        restore(self.replica(lineage), self.out, at)
        return notes(self.out)

    def restored(self, at: int | None = None) -> list[int]:
        """The same, once everything is at the store."""
        self.upload()
        return self.restore(at)


def restore(replica: Path, out: Path, at: int | None = None) -> None:
    """Have Litestream restore the last, or another, transaction from a replica's folder."""
    out.unlink(missing_ok=True)
    which = [] if at is None else ["-txid", f"{at:016x}"]
    asked = [LITESTREAM, "restore", *which, "-o", out, f"file://{replica}"]
    done = subprocess.run(asked, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def notes(database: Path) -> list[int]:
    """The numbers of a sound database's notes."""
    with contextlib.closing(sqlite3.connect(database)) as opened:
        assert opened.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = opened.execute("SELECT id, length(data) FROM notes ORDER BY id").fetchall()
    for number, length in found:
        assert length == number * 977 % 20_000
    return [number for number, _ in found]


def _main(state: Path, limit: int, log_limit: int, work: str) -> None:
    settings = frames.ChildSettings(str(state), "FULL", wal_limit=log_limit, backup_limit=limit)
    path = state / wal.FILE
    if work == "recover":
        nothing: Any = lambda *_: None  # noqa: E731
        fence.seal = nothing
        if wal.has_log(path):
            checkpointer._recover_here(path, settings)
        print("done", flush=True)
        return
    lock = WriterLock.open(path.with_name(LOCK_NAME))
    opened = FileAndLog(path, PATIENCE)
    opened.look()
    shipper = Shipper(state, limit, log_limit, PATIENCE)
    for line in sys.stdin:
        mode, *more = line.split()
        try:
            if mode in ("ship", "afresh", "boundary"):
                order = frames.Ship(mode == "afresh", mode == "boundary")
                shipped = shipper.ship(order, partial(checkpointer.shorten_log, opened, lock, path, shipper))
                print(msgspec.json.encode(shipped).decode(), flush=True)
            else:
                asked = frames.Checkpoint(mode, 5, "unshipped" in more)  # type: ignore[arg-type]
                done = checkpointer.checkpoint(opened, lock, asked, shipper)
                print("true" if done.busy else "false", flush=True)
        except Exception as error:
            print(f"error: {error}".replace("\n", " "), flush=True)
    shipper.close()
    opened.close()


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
