"""The shipper beside writers of other processes, with `litestream restore` as the judge of what it writes."""

import errno
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from control.protocol import ltx
from edge_runtime import wal
from edge_runtime.backup.local_files import SHIPMENTS, SNAPSHOTS, identity
from edge_runtime.backup.shipper import Shipper
from edge_runtime.ipc import frames
from tests.support.failing_calls import ALWAYS, FailingCalls
from tests.support.shipping import LIMIT, PATIENCE, Killed, Program, World, Writer, insertion

pytestmark = pytest.mark.never_retry

WRITES = """
import select, sqlite3, sys, time
from pathlib import Path
from edge_runtime.sql.writer_lock import LOCK_NAME, WriterLock
lock = WriterLock.open(Path(sys.argv[1]).with_name(LOCK_NAME)) if len(sys.argv) > 2 else None
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
db.execute("PRAGMA wal_autocheckpoint = 0")
if lock:
    db.execute("PRAGMA synchronous = OFF")
number = 0
while True:
    number += 1
    if lock:
        lock.acquire()
    db.execute("INSERT INTO notes VALUES (?, zeroblob(? * 977 % 20000))", (number, number))
    if lock:
        lock.release()
        time.sleep(0.001)
    if select.select([sys.stdin], [], [], 0)[0]:
        if not (line := sys.stdin.readline()):
            break
        print(number, flush=True)
        if line == "stop\\n":
            break
"""
MOVES = """
import select, sys
from pathlib import Path
from edge_runtime.sql.current_sqlite import FileAndLog
opened, number = FileAndLog(Path(sys.argv[1]), 0.001), 0
opened.look()
while True:
    for mode in sys.argv[2:]:
        number += opened.checkpoint(mode) is not None
    # Others need the lock too.
    if select.select([sys.stdin], [], [], 0.005)[0]:
        if not sys.stdin.readline():
            break
        print(number, flush=True)
"""
"""By a current SQLite, as older ones may lose what a log has that begins anew."""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.end()


def files(world: World, level: int) -> list[str]:
    return sorted(path.name for path in (world.replica() / "ltx" / str(level)).glob("*"))


def test_what_is_committed_is_shipped_across_checkpoints(world: World) -> None:
    first = world.shipper.ship()
    assert (first.last, first.whole, first.error) == (1, True, "")
    at = {}
    for number in range(1, 25):
        world.writer.insert(number)
        if number % 3 == 0:
            assert world.shipper.checkpoint("passive")
        if number % 4 == 0:
            assert world.shipper.checkpoint(("restart", "truncate")[number % 8 // 4])
        if number % 5 < 2:
            found = world.shipper.ship()
            assert found.whole
            at[found.last] = number
    before = world.shipper.ship()
    again = world.shipper.ship()
    assert again.last == before.last, "nobody has written since"
    assert again.at_ms >= before.at_ms
    assert again.pending == sum(one.size for one in world.local.waiting())
    world.upload()
    assert len(files(world, SNAPSHOTS)) == 1
    assert world.restore() == list(range(1, 25))
    for last, number in at.items():
        assert world.restore(last) == list(range(1, number + 1))
    assert world.shipper.ship().pending == 0


def test_what_checkpoints_ship_between_two_orders_becomes_one_file_up_to_a_boundary(world: World) -> None:
    def spans() -> list[tuple[int, int]]:
        return [(one.first, one.last) for one in world.local.waiting() if one.level == SHIPMENTS]

    def write(*numbers: int) -> None:
        for number in numbers:
            world.writer.insert(number)
            assert world.shipper.checkpoint("restart")

    write(1)
    first = world.shipper.ship()
    world.upload()
    write(2, 3, 4)
    assert len(spans()) == 3
    world.writer.insert(5)
    second = world.shipper.ship()
    assert spans() == [(first.last + 1, second.last)]
    write(6)
    boundary = world.shipper.ship(boundary=True)
    write(7, 8)
    third = world.shipper.ship()
    assert third.last == boundary.last + 2
    assert spans() == [
        (first.last + 1, second.last),
        (second.last + 1, boundary.last),
        (boundary.last + 1, third.last),
    ]
    assert world.restored() == list(range(1, 9))
    assert world.restore(second.last) == [1, 2, 3, 4, 5]
    assert world.restore(boundary.last) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("afresh", [False, True], ids=["shipment", "snapshot"])
def test_a_file_has_all_that_was_acknowledged_by_its_time(
    world: World, monkeypatch: pytest.MonkeyPatch, afresh: bool
) -> None:
    world.shipper.ship()
    world.shipper.close()
    world.writer.insert(1)
    shipper = Shipper(world.state, LIMIT, LIMIT, PATIENCE)
    acknowledged: list[int] = []
    state = wal.state

    def late(database: Path) -> wal.LogState:
        found = state(database)
        world.writer.insert(len(acknowledged) + 2)
        acknowledged.append(time.time_ns() // 1_000_000)
        time.sleep(0.01)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(wal, "state", late)
        shipped = shipper.ship(frames.Ship(afresh), lambda: None)
    shipper.close()
    assert acknowledged
    newest = world.local.waiting()[-1]
    assert newest.last == shipped.last
    with newest.path.open("rb") as opened:
        at = ltx.read_header(opened).at_ms
    world.upload()
    rows = set(world.restore())
    assert not [number for number, ms in enumerate(acknowledged, 2) if ms < at and number not in rows]


def test_pages_that_a_database_loses_are_gone(world: World) -> None:
    world.shipper.ship()
    for number in range(1, 40):
        world.writer.insert(number)
    large = world.shipper.ship()
    world.writer.do("DELETE FROM notes WHERE id > 3")
    world.writer.do("VACUUM")
    world.shipper.ship()
    assert world.restored() == [1, 2, 3]
    small = world.out.stat().st_size
    assert world.restore(large.last) == list(range(1, 40))
    assert small < world.out.stat().st_size


def test_nothing_is_moved_that_is_not_shipped(world: World) -> None:
    world.shipper.ship()
    stranger = Writer(world.database, patience=0.02)
    try:
        for number in range(1, 5):
            stranger.insert(number)
            stranger.do("PRAGMA wal_checkpoint(PASSIVE)")
        log = wal.state(world.database)
        assert log.moved < log.frames
        # The rest is moved, and the log begins anew, once that is shipped.
        assert world.shipper.ship().whole
        stranger.do("PRAGMA wal_checkpoint(RESTART)")
        stranger.insert(5)
        stranger.do("PRAGMA wal_checkpoint(RESTART)")
        stranger.insert(6)
    finally:
        stranger.kill()
    found = world.shipper.ship()
    assert found.whole
    assert world.restored() == [1, 2, 3, 4, 5, 6]
    assert files(world, SNAPSHOTS) == [ltx.name(1, 1)]


@pytest.mark.parametrize("writes", ["once", "often"])
@pytest.mark.parametrize("mode", ["RESTART", "TRUNCATE"])
def test_a_stranger_that_checkpoints_all_the_time_makes_no_gap(world: World, mode: str, writes: str) -> None:
    world.shipper.ship()
    stranger, number, snapshots = Writer(world.database, patience=0.02), 0, 0
    try:
        for turn in range(12):
            for _ in range(1 if writes == "once" else 4):
                number += 1
                stranger.insert(number)
                stranger.do(f"PRAGMA wal_checkpoint({mode})")
            if turn % 2:
                world.shipper.checkpoint("restart" if turn % 4 == 1 else "truncate")
                stranger.do(f"PRAGMA wal_checkpoint({mode})")
            found = world.shipper.ship()
            while not found.whole:
                # An emptied log gets any salts: that may need a snapshot.
                assert found.error
                world.upload()
                found, snapshots = world.shipper.ship(), snapshots + 1
            assert world.restored(found.last) == list(range(1, number + 1))
    finally:
        stranger.kill()
    assert snapshots == 0 or mode == "TRUNCATE"


@pytest.mark.parametrize("mode", ["restart", "truncate"])
def test_strangers_at_full_speed_make_no_gap(world: World, mode: str) -> None:
    """One writes and one checkpoints all the time, neither under the writer lock; no snapshot is needed."""
    world.shipper.ship()
    # A writer that never restarted the log itself gives random salts to one that was emptied.
    theirs = ("passive", "restart") if mode == "restart" else ("passive",)
    writing, moving = Program("-c", WRITES, world.database), Program("-c", MOVES, world.database, *theirs)
    at, modes = {}, ("passive", mode, mode)
    try:
        began = time.monotonic()
        turn = 0
        while time.monotonic() - began < 2.0 or turn < 30:
            turn += 1
            if turn % 4:
                world.shipper.checkpoint(modes[turn % 3])
            else:
                # Between two answers nobody knows what is committed: at least what was told before.
                before = int(writing.ask("how many?"))
                found = world.shipper.ship()
                assert (found.whole, found.error) == (True, "")
                at[found.last] = before, int(writing.ask("how many?"))
        moves = int(moving.ask("how many?"))
        written = int(writing.ask("stop"))
    finally:
        moving.kill()
        writing.kill()
    world.shipper.ship()
    assert world.restored() == list(range(1, written + 1))
    assert moves > 10
    assert len(files(world, SNAPSHOTS)) == 1
    for last, (least, most) in list(at.items())[:: max(1, len(at) // 4)]:
        found_then = world.restore(last)
        assert found_then == list(range(1, len(found_then) + 1))
        assert least <= len(found_then) <= most


@pytest.mark.parametrize("way", ["whole", "killed", "read"])
def test_a_large_database_under_steady_load_gets_its_snapshot(tmp_path: Path, way: str) -> None:
    """The log grows by many times of what it may while the snapshot is made, and begins anew meanwhile."""
    folder = tmp_path / "faults"
    folder.mkdir()
    world = World(tmp_path, {"SKERRY_FAULTS": str(folder)}, limit=1 << 30, log_limit=1 << 20)
    others: list[Program] = []
    try:
        world.writer.do("CREATE TABLE large (data BLOB)")
        for _ in range(4):
            world.writer.do("INSERT INTO large VALUES (randomblob(10000000))")
            assert world.shipper.checkpoint("truncate")
        others.append(writing := Program("-c", WRITES, world.database, "as workers do"))
        before = int(writing.ask("how many?"))
        if way == "killed":
            (folder / "edge.backup.step.locked").write_text("kill")
            with pytest.raises(Killed):
                world.shipper.ship()
            assert list(world.local.folder.glob("*/9/*.since"))
            world.shipper.kill()
            world.start()
        if way == "read":
            others.append(reading := Writer(world.database))
            reading.do("BEGIN")
            reading.do("SELECT count(*) FROM notes")
            found = world.shipper.ship()
            assert (found.whole, found.last) == (False, 0)
            assert "calls read all the time" in found.error
            reading.kill()
            # It is tried again after a pause.
            world.shipper.kill()
            world.start()
        salt = wal.state(world.database).salt
        found = world.shipper.ship()
        after = int(writing.ask("how many?"))
        assert found.whole
        assert len(list(world.local.folder.glob("*/9/*"))) == 1
        if way == "whole":
            assert found.last > 3
            times = struct.unpack_from(">I", wal.state(world.database).salt)[0] - struct.unpack_from(">I", salt)[0]
            assert times >= 2, "the log began anew"
        world.upload()
        last = world.shipper.ship()
        written = int(writing.ask("stop"))
        assert not last.error
        world.shipper.ship()
        assert world.restored() == list(range(1, written + 1))
        for at, most in ((found.last, after), (last.last, written)):
            there = world.restore(at)
            assert there == list(range(1, len(there) + 1))
            assert before <= len(there) <= most
    finally:
        for other in others:
            other.kill()
        world.end()
    assert len(files(world, SNAPSHOTS)) == 1


@pytest.mark.parametrize("mode", ["restart", "truncate"])
def test_a_stranger_between_the_steps_of_a_checkpoint_makes_no_gap(tmp_path: Path, mode: str) -> None:
    """It writes and checkpoints after what was written before is shipped, once that is moved, and once the log may
    begin anew."""
    folder = tmp_path / "faults"
    folder.mkdir()
    world = World(tmp_path, {"SKERRY_FAULTS": str(folder)})
    stranger, number = Writer(world.database, patience=0.02), 0
    try:
        world.shipper.ship()
        for _ in range(2):
            number += 1
            stranger.insert(number)
            points = [f"edge.backup.step.{step}" for step in ("locked", "moved", "anew")]
            for point in points:
                (folder / point).write_text("hold")
            world.shipper.tell(mode)
            for point in points:
                held = folder / f"{point}.held"
                # After the step "moved" it may be busy.
                while not held.exists() and not world.shipper.answered():
                    time.sleep(0.005)
                number += 1
                stranger.insert(number)
                stranger.do("PRAGMA wal_checkpoint(RESTART)")
                held.unlink(missing_ok=True)
            assert world.shipper.answer() in ("true", "false")
            for point in points:
                (folder / point).unlink(missing_ok=True)
            found = world.shipper.ship()
            assert (found.whole, found.error) == (True, "")
            assert world.restored() == list(range(1, number + 1))
    finally:
        stranger.kill()
        world.end()
    assert len(files(world, SNAPSHOTS)) == 1


@pytest.mark.parametrize("mode", ["restart", "truncate"])
def test_a_writer_that_comes_once_the_log_may_begin_anew_is_followed(tmp_path: Path, mode: str) -> None:
    """A log that was emptied gets random salts by one that never had it begin anew."""
    folder = tmp_path / "faults"
    folder.mkdir()
    world = World(tmp_path, {"SKERRY_FAULTS": str(folder)})
    try:
        world.shipper.ship()
        world.writer.insert(1)
        (folder / "edge.backup.step.unlocked").write_text("hold")
        world.shipper.tell(mode)
        held = folder / "edge.backup.step.unlocked.held"
        while not held.exists():
            time.sleep(0.005)
        world.writer.insert(2)
        held.unlink()
        assert world.shipper.answer() == "false"
        found = world.shipper.ship()
        assert (found.whole, found.error) == (True, "")
        assert world.restored() == [1, 2]
    finally:
        world.end()
    assert len(files(world, SNAPSHOTS)) == 1


@pytest.mark.parametrize("between", ["nothing", "writes", "moved", "anew", "twice", "emptied", "closed"])
def test_one_that_was_killed_goes_on_or_a_snapshot_follows(world: World, between: str) -> None:
    world.shipper.ship()
    world.writer.insert(1)
    first = world.shipper.ship()
    if between in ("anew", "twice"):
        assert world.shipper.checkpoint("restart")
    world.shipper.kill()
    number = 1
    if between != "nothing":
        number += 1
        world.writer.insert(number)
    lost = between in ("twice", "emptied", "closed")
    match between:
        case "moved":
            world.writer.do("PRAGMA wal_checkpoint(PASSIVE)")
        case "twice":
            world.writer.do("PRAGMA wal_checkpoint(RESTART)")
            number += 1
            world.writer.insert(number)
        case "emptied":
            world.writer.do("PRAGMA wal_checkpoint(TRUNCATE)")
        case "closed":
            world.writer.kill()
            other = Writer(world.database)
            other.do("PRAGMA wal_checkpoint(TRUNCATE)")
            other.close()
            assert not wal.has_log(world.database)
            world.start_writer()
    world.start()
    world.upload()
    found = world.shipper.ship()
    assert found.whole
    assert found.last == first.last + (between != "nothing")
    assert bool(found.error) == lost
    assert world.restored() == list(range(1, number + 1))
    assert len(files(world, SNAPSHOTS)) == (2 if lost else 1)
    assert world.restore(first.last) == [1]
    if lost:
        assert not world.shipper.ship().error, "the snapshot is at the store"


@pytest.mark.parametrize("anew", [False, True])
def test_a_loss_of_power_that_takes_a_strangers_time_from_the_file_makes_no_gap(world: World, anew: bool) -> None:
    """The node was stopped, and pages that were moved are on the disk, but not yet the file's time."""
    world.shipper.ship()
    world.writer.insert(1)
    world.shipper.ship()
    assert world.shipper.checkpoint("truncate")
    world.shipper.close()
    world.writer.close()
    assert not wal.has_log(world.database)
    before = world.local.lineage()
    assert before is not None
    assert before.moved
    world.start_writer()
    for number in (2, 3):
        world.writer.insert(number)
        if anew and number == 2:
            world.writer.do("PRAGMA wal_checkpoint(RESTART)")
    world.writer.kill()
    wal.index_of(world.database).unlink()
    world.local.write(msgspec.structs.replace(before, moved=identity(world.database)))
    world.upload()
    world.start_writer()
    world.start()
    found = world.shipper.ship()
    assert found.whole
    assert bool(found.error) is anew
    assert world.restored() == [1, 2, 3]


def test_after_a_gap_a_snapshot_waits_for_what_waits(world: World) -> None:
    """While the store is away, one snapshot once it is back is enough."""
    world.shipper.ship()
    world.writer.insert(1)
    world.shipper.ship()
    world.shipper.kill()
    world.writer.insert(2)
    world.writer.do("PRAGMA wal_checkpoint(TRUNCATE)")
    world.start()
    for _ in range(2):
        found = world.shipper.ship()
        assert (found.whole, found.last) == (False, 2)
        assert "after transaction 2" in found.error
        # Nothing is held back meanwhile.
        assert world.shipper.checkpoint("truncate")
    world.upload()
    assert world.restore() == [1]
    found = world.shipper.ship()
    assert (found.whole, found.last) == (True, 3)
    assert found.error
    assert world.restored() == [1, 2]
    assert not world.shipper.ship().error


def test_frames_that_were_written_anew_are_no_continuation(world: World) -> None:
    """As after a loss of power with SQLite's `synchronous` NORMAL: the log has its salts, and other frames."""
    world.shipper.ship()
    world.writer.insert(1)
    first = world.shipper.ship()
    world.shipper.kill()
    log = wal.log_of(world.database)
    data, file = log.read_bytes(), world.database.read_bytes()
    size = wal.FRAME_HEADER_BYTES + wal.state(world.database).page_bytes
    world.writer.kill()
    starts = range(wal.HEADER_BYTES, len(data) - size + 1, size)
    ends = [start + size for start in starts if struct.unpack_from(">I", data, start + 4)[0]]
    wal.index_of(world.database).unlink()
    log.write_bytes(data[: ends[-2]])
    assert world.database.read_bytes() == file
    world.start_writer()
    world.writer.insert(2)
    world.start()
    world.upload()
    found = world.shipper.ship()
    assert (found.whole, found.last) == (True, first.last + 1)
    assert found.error
    assert world.restored() == [2]
    assert world.restore(first.last) == [1]


def test_what_was_never_committed_is_not_shipped(world: World) -> None:
    """Frames with a commit mark behind the log's end, as a COMMIT whose sync failed leaves them."""
    world.shipper.ship()
    world.writer.insert(1)
    log = wal.state(world.database)
    with wal.log_of(world.database).open("r+b") as file:
        file.seek(wal.HEADER_BYTES + log.frames * (wal.FRAME_HEADER_BYTES + log.page_bytes))
        file.write(struct.pack(">II8sQ", 1, log.pages, log.salt, 7) + bytes(log.page_bytes))
    world.shipper.ship()
    assert world.restored() == [1]


@pytest.mark.parametrize("way", ["shipped", "unshipped", "empty"])
def test_a_recovery_ships_before_it_moves_the_log(world: World, way: str) -> None:
    world.shipper.ship()
    world.writer.insert(1)
    world.shipper.ship()
    if way == "empty":
        assert world.shipper.checkpoint("truncate")
    world.writer.insert(2)
    if way == "shipped":
        world.shipper.ship()
    world.end()
    world.recover()
    assert not wal.has_log(world.database)
    world.start_writer()
    world.writer.insert(3)
    world.start()
    found = world.shipper.ship()
    assert (found.whole, found.error) == (True, "")
    assert world.restored() == [1, 2, 3]
    assert len(files(world, SNAPSHOTS)) == 1


def test_another_database_begins_another_history(world: World) -> None:
    """An exchanged file, and a copy of the whole state directory, begin their own; what is at the store stays."""
    world.writer.insert(1)
    world.shipper.ship()
    world.upload()
    before = world.lineage
    copy = world.database.with_name("copy")
    world.end()
    copy.write_bytes(world.database.read_bytes())
    copy.replace(world.database)
    wal.log_of(world.database).unlink(missing_ok=True)
    world.start_writer()
    world.writer.do("CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, data BLOB)")
    world.writer.insert(7)
    world.start()
    found = world.shipper.ship()
    assert (found.last, found.whole, found.error) == (1, True, "")
    assert found.lineage > before
    world.upload()
    assert world.restore() == [7]
    assert world.restore(lineage=before) == [1]


def test_a_file_that_is_exchanged_under_it_ends_the_shipper(world: World) -> None:
    world.shipper.ship()
    copy = world.database.with_name("copy")
    shutil.copyfile(world.database, copy)
    copy.replace(world.database)
    with pytest.raises(OSError, match="taken the place"):
        world.shipper.ship()
    with pytest.raises(OSError, match="taken the place"):
        world.shipper.checkpoint("truncate", unshipped=True)


def test_a_twin_that_was_found_out_begins_afresh(world: World) -> None:
    world.writer.insert(1)
    first = world.shipper.ship()
    second = world.shipper.ship(afresh=True)
    assert second.lineage != first.lineage
    assert (second.last, second.whole) == (1, True)
    assert {one.lineage for one in world.local.waiting()} == {second.lineage}
    world.writer.insert(2)
    assert world.shipper.ship().last == 2
    assert world.restored() == [1, 2]


def test_there_is_one_shipper_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_runtime.backup.shipper import Shipper

    world.shipper.ship()
    with pytest.raises(OSError, match="another process ships"):
        Shipper(world.state, 1 << 20, 1 << 20, 0.1)


def test_files_that_wait_are_merged_and_then_the_backup_pauses(tmp_path: Path) -> None:
    world = World(tmp_path, limit=2 << 20)
    try:
        world.writer.do("CREATE TABLE large (id INTEGER PRIMARY KEY, data BLOB)")
        assert world.shipper.ship().last == 1
        at, merged = {1: 0}, False
        # The same rows again and again: of merged files little is left.
        for number in range(1, 25):
            world.writer.do("REPLACE INTO large VALUES (1, randomblob(100000))")
            world.writer.insert(number)
            found = world.shipper.ship(boundary=number == 9)
            assert found.whole
            assert found.pending <= 2 << 20
            at[found.last] = number
            merged = merged or any(one.first != one.last for one in world.local.waiting() if one.level == SHIPMENTS)
        assert merged
        # A release begins after the ninth: its boundary stays.
        (boundary,) = [last for last, number in at.items() if number == 9]
        assert boundary in {one.last for one in world.local.waiting()}
        assert boundary < max(at) - 9
        for number in range(25, 60):
            world.writer.do(f"REPLACE INTO large VALUES ({number}, randomblob(100000))")
            world.writer.insert(number)
            found = world.shipper.ship()
            assert found.pending <= 2 << 20
            if not found.whole:
                break
            at[found.last] = number
        assert not found.whole
        assert "SKERRY_EDGE_BACKUP_LIMIT" in found.error
        assert f"after transaction {max(at)}" in found.error
        # Nothing is held back: the log begins anew, and calls go on.
        assert world.shipper.checkpoint("truncate")
        world.upload()
        assert world.restore() == list(range(1, at[max(at)] + 1))
        assert world.restore(boundary) == list(range(1, 10))
        after = world.shipper.ship()
        assert (after.whole, after.last) == (True, max(at) + 1)
        assert world.restored() == list(range(1, number + 1))
    finally:
        world.end()


def test_a_snapshot_that_does_not_fit_is_said_and_holds_nothing_back(tmp_path: Path) -> None:
    world = World(tmp_path, limit=64 << 10)
    try:
        world.writer.do("CREATE TABLE large (data BLOB)")
        world.writer.do("INSERT INTO large VALUES (randomblob(200000))")
        found = world.shipper.ship()
        assert (found.whole, found.last) == (False, 0)
        assert "SKERRY_EDGE_BACKUP_LIMIT" in found.error
        assert world.shipper.checkpoint("truncate")
        assert world.local.waiting() == []
        assert not list(world.local.folder.glob("*/*/*"))
    finally:
        world.end()


FAILURES = [
    *(("fsync", "/backup/", errno.EIO), ("write", "/backup/", errno.ENOSPC), ("read", "/db/skerry.db-wal", errno.EIO)),
    ("fsync", "/backup/lineage.json.new", errno.EIO),
]


@pytest.mark.parametrize(("call", "path", "error"), FAILURES, ids=["sync", "full", "read", "count"])
def test_a_shipment_that_fails_is_not_counted_and_nothing_is_moved_without_it(
    tmp_path: Path, call: str, path: str, error: int
) -> None:
    failing = FailingCalls(tmp_path / "failing")
    world = World(tmp_path, failing.environment)
    stranger = Writer(world.database, patience=0.02)
    try:
        world.shipper.ship()
        world.writer.insert(1)
        before = world.shipper.ship()
        world.writer.insert(2)
        rule = failing.fail(call, path, error, times=ALWAYS)
        for _ in range(2):
            with pytest.raises(OSError, match=r"error|space|I/O"):
                world.shipper.ship()
            for mode in ("passive", "restart", "truncate"):
                with pytest.raises(OSError, match=r"error|space|I/O"):
                    world.shipper.checkpoint(mode)
        assert rule.concerned
        stranger.do("PRAGMA wal_checkpoint(TRUNCATE)")
        log = wal.state(world.database)
        assert log.moved < log.frames
        assert world.restored() == [1]
        rule.end()
        found = world.shipper.ship()
        assert (found.last, found.whole, found.error) == (before.last + 1, True, "")
        assert world.restored() == [1, 2]
        assert world.shipper.checkpoint("truncate")
    finally:
        stranger.kill()
        world.end()


def test_a_history_is_given_up_where_the_log_would_get_too_long(tmp_path: Path) -> None:
    failing = FailingCalls(tmp_path / "failing")
    world = World(tmp_path, failing.environment)
    try:
        world.shipper.ship()
        world.writer.insert(1)
        before = world.shipper.ship()
        world.upload()
        world.writer.insert(2)
        rule = failing.fail("fsync", "/backup/", errno.EIO, times=ALWAYS)
        assert world.shipper.checkpoint("truncate", unshipped=True)
        world.writer.insert(3)
        rule.end()
        found = world.shipper.ship()
        assert (found.last, found.whole) == (before.last + 1, True)
        assert f"after transaction {before.last}" in found.error
        assert world.restored() == [1, 2, 3]
        assert world.restore(before.last) == [1]
        assert not world.shipper.ship().error
    finally:
        world.end()


def test_a_commit_whose_sync_failed_is_in_no_file(tmp_path: Path) -> None:
    failing = FailingCalls(tmp_path / "failing")
    world = World(tmp_path, failing.environment)
    try:
        world.shipper.ship()
        world.writer.insert(1)
        failing.fail("fsync", "/db/skerry.db-wal", errno.EIO)
        failing.fail("fdatasync", "/db/skerry.db-wal", errno.EIO)
        assert world.writer.ask(insertion(2)) == "disk I/O error"
        one = world.shipper.ship()
        assert world.restored() == [1]
        failing.clear()
        world.writer.insert(3)
        world.shipper.ship()
        assert world.restored() == [1, 3]
        assert world.restore(one.last) == [1]
    finally:
        world.end()
