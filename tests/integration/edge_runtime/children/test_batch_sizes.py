"""How many rows a batch has: writers wait for one, whatever the size of the rows."""

import itertools
from pathlib import Path

import pytest

from control.protocol import faults
from edge_runtime.children import apply_changes, release_transaction
from edge_runtime.ipc import frames
from edge_runtime.sql import database, run_change
from tests.support.plans import changes, plan

PHOTOS = "CREATE TABLE photos (id INTEGER PRIMARY KEY, seen INTEGER NOT NULL DEFAULT 0, photo BLOB NOT NULL)"
ROWS = 40
FILL = f"INSERT INTO photos (photo) SELECT zeroblob(1000000) FROM generate_series(1, {ROWS})"
SEEN = """
-- skerry: batch photos by id
UPDATE photos SET seen = seen + 1 WHERE id > :after AND id <= :upto
"""


def test_the_first_batch_is_a_row_and_the_next_at_most_twice_as_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred rows of a megabyte would hold writers up for a second."""
    (tmp_path / "db").mkdir()
    done = [0]
    with database.connect(tmp_path / "db" / "skerry.db", "FULL", foreign_keys=False) as opened:
        release_transaction.prepare(opened, plan(1, changes([PHOTOS, FILL])), [])
        release_transaction.commit(opened)

        def reach(point: str) -> None:
            if point == "edge.batch.after":
                done.append(opened.rows("SELECT count(*) FROM photos WHERE seen = 1")[0][0])

        monkeypatch.setattr(faults, "reach", reach)
        # Nobody begins the log anew here, for which a batch waits.
        monkeypatch.setattr(run_change, "LOG_WAIT", 0.01)
        apply_changes.advance(opened, frames.Advance(plan(2, changes([SEEN], 3)), 1, []), lambda _: None)
    sizes = [after - before for before, after in itertools.pairwise(done)]
    assert sizes[0] == 1
    assert all(size <= 2 * before for before, size in itertools.pairwise(sizes)), sizes
    assert done[-1] == ROWS
