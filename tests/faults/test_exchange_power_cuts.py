"""The power fails while another database takes the place of a node's, by `skerry-edge restore` or while it serves: of
all that was written, a state of the disk is built for many moments and choices of what wasn't synced yet.

From each the node has the one database or the other, whole, and the witness believes it; once the exchange is told, it
has the new one, and the one of before is kept. SKERRY_TEST_CUTS says how many states, SKERRY_TEST_SEED repeats them.
"""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from edge_runtime import wal
from tests.integration.edge_runtime.release.test_replaced_database import (
    FUNCTIONS,
    NOTES,
    PROGRAM,
    prepared,
    rows,
    write,
)
from tests.support import power
from tests.support.edge import node

CUTS = int(os.environ.get("SKERRY_TEST_CUTS", "15"))
SEED = int(os.environ.get("SKERRY_TEST_SEED") or random.SystemRandom().randrange(1_000_000))
_COPY = """
import sys
from pathlib import Path
from edge_runtime import files
source, target = Path(sys.argv[1]), Path(sys.argv[2])
for path in sorted(source.rglob("*")):
    there = target / path.relative_to(source)
    if path.is_dir():
        files.make_folder(there)
    else:
        files.write(there, path.read_bytes())
"""
_CHECK = """
import sys
from pathlib import Path
import msgspec
from edge_runtime.release.witness import Witness
from edge_runtime.sql import database
from edge_runtime.state import State
for line in sys.stdin:
    folder = Path(line.strip())
    with State(folder, 1.0) as state, database.connect(state.database / database.FILE.name) as opened:
        stored = database.stored(opened)
        texts = [text for (text,) in opened.rows("SELECT text FROM notes")]
        whole = opened.rows("PRAGMA integrity_check") == [("ok",)]
        found = [Witness(folder).confirms(stored), whole, stored.release.number, texts]
    print(msgspec.json.encode(found).decode(), flush=True)
"""
EARLY, LATE = [1, ["early"]], [2, ["late"]]
"""Number of the release, and what the notes are."""


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state directory of a node at release 2, with a database of release 1 in `db.new`."""
    state = tmp_path_factory.mktemp("made") / "state"
    async with node(state) as edge:
        await edge.release(FUNCTIONS, [NOTES])
        await write(edge, "early")
        copy = await prepared(edge)
        (state / "stored.json").write_bytes(msgspec.json.encode(copy.stored))
        await edge.release({"sql": FUNCTIONS["sql"]}, ["UPDATE notes SET text = 'late'"])
    return state


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("way", ["restore", "replace"])
async def test_a_node_has_the_one_database_or_the_other_after_a_loss_of_power(
    made: Path, tmp_path: Path, way: str
) -> None:
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    root = tmp_path / "root"
    root.mkdir()
    recorder = power.Recorder(root, tmp_path / "log", power.shared_library())
    environment = {**os.environ, **recorder.environment()}
    state = root / "state"
    # As if it had always been there.
    subprocess.run([sys.executable, "-c", _COPY, made.parent, root], check=True, env=environment)
    recorder.answered("begun")
    if way == "restore":
        backup = shutil.move(root / "state" / "db.new" / wal.FILE.name, tmp_path / "backup.db")
        asked = [sys.executable, "-m", "edge_runtime.cli.main", "restore", backup, "--state", state]
        subprocess.run(asked, check=True, env=environment)
    else:
        faults = tmp_path / "faults"
        faults.mkdir()
        (faults / "edge.replace.exchanged").write_text("kill")
        asked = [sys.executable, "-c", PROGRAM, state]
        done = subprocess.run(asked, check=False, env={**environment, "SKERRY_FAULTS": str(faults)})
        assert done.returncode == -9
    recorder.answered("done")
    records = recorder.read()
    marks = [at for at, record in enumerate(records) if record.kind == "A"]
    moments = [at + 1 for at in range(marks[0], len(records)) if records[at].kind in "SRXCUA"]
    exchanged = next(at for at, record in enumerate(records) if record.kind == "X")
    near = [at for at in moments if exchanged - 4 <= at <= exchanged + 6]
    cuts = sorted([*(chance.choice(moments) for _ in range(CUTS)), *near * max(1, CUTS // len(near)), len(records)])
    disk, played, seen = power.Disk(root), 0, set[int]()
    with subprocess.Popen(
        [sys.executable, "-c", _CHECK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as checker:
        assert checker.stdin is not None
        assert checker.stdout is not None
        for number, cut in enumerate(cuts):
            for record in records[played:cut]:
                if record.kind != "A":
                    disk.play(record)
            played = max(played, cut)
            left = tmp_path / f"cut{number}"
            left.mkdir()
            disk.write(left, chance, without=("aot",))
            for index in left.rglob("*-shm"):
                index.unlink()
            where = f"cut {cut} of {len(records)}, the exchange is {exchanged}"
            checker.stdin.write(f"{left / 'state'}\n")
            checker.stdin.flush()
            line = checker.stdout.readline()
            assert line, where
            believed, whole, *found = msgspec.json.decode(line)
            assert (believed, whole) == (True, True), where
            assert found in (EARLY, LATE), where
            if cut <= exchanged:
                assert found == LATE, where
            if cut == len(records):
                assert found == EARLY
            if found == EARLY:
                (kept,) = (left / "state").glob(f"db.before-*/{wal.FILE.name}")
                assert rows(kept) == ["late"], where
            seen.add(found[0])
            shutil.rmtree(left)
        checker.stdin.close()
    assert seen == {1, 2}
