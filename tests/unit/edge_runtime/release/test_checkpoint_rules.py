"""What the schedule may ask a checkpointer for, by what the write-ahead log's index says."""

from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_runtime import wal
from edge_runtime.ipc import frames
from edge_runtime.release import checkpoint_schedule
from edge_runtime.release.checkpoint_schedule import CheckpointSchedule, may_move
from edge_runtime.wal import Index, Pressure

FRAME_BYTES = 24 + 4096
FRAMES = checkpoint_schedule.START // FRAME_BYTES + 1
"""So many that the log is due."""
SIZES = [0, 1, 2, wal.FEW, FRAMES, 2 * FRAMES, 2**32 - 1]


@pytest.mark.parametrize(("size", "left"), list(product(SIZES, [0, 1, 2, FRAMES])))
def test_passive_is_asked_for_only_while_frames_are_left_to_be_moved(size: int, left: int) -> None:
    assert may_move(Index(size, max(0, size - left), FRAME_BYTES)) is (size > 0 and left > 0)


MIB = 1 << 20


@pytest.mark.parametrize(("limit", "backed_up"), [(16, 4), (32, 4), (64, 8), (128, 16), (256, 16), (4096, 16)])
def test_the_log_of_a_database_that_is_backed_up_is_moved_later_but_long_before_its_limit(
    limit: int, backed_up: int
) -> None:
    assert checkpoint_schedule.start(limit * MIB, ships=True) == backed_up * MIB
    assert checkpoint_schedule.start(limit * MIB, ships=False) == 4 * MIB


async def _asked(monkeypatch: pytest.MonkeyPatch, indices: list[Index], busy: list[bool]) -> list[str]:
    """The modes that a schedule asks for, as the log's index says `indices`, the last one for ever."""
    asked: list[str] = []
    answers = iter(busy)

    async def ask(_schedule: Any, _child: Any, order: frames.Checkpoint) -> frames.Checkpointed:
        asked.append(order.mode)
        if len(indices) > 1:
            indices.pop(0)
        return frames.Checkpointed(order.mode != "passive" and next(answers))

    pool: Any = SimpleNamespace(worker_deaths=SimpleNamespace(), pressure=Pressure.NONE, feed=lambda: None)
    monkeypatch.setattr(CheckpointSchedule, "_ask", ask)
    monkeypatch.setattr(CheckpointSchedule, "_read", lambda _schedule: indices[0])
    monkeypatch.setattr(checkpoint_schedule, "PERIOD", 0.001)
    schedule = CheckpointSchedule(SimpleNamespace(), pool, Path("skerry.db"), 1 << 40, 1 << 40)  # type: ignore[arg-type]
    schedule._child = SimpleNamespace()  # type: ignore[assignment]
    schedule.look()
    await schedule._begin_anew()
    return asked


async def test_after_a_busy_restart_nothing_but_a_restart_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers kept the log from beginning anew, all of whose frames are moved: SQLite's WAL-reset bug lies there."""
    left, moved = Index(FRAMES, FRAMES - 1, FRAME_BYTES), Index(FRAMES, FRAMES, FRAME_BYTES)
    asked = await _asked(monkeypatch, [left, moved], [True, True, False])
    assert asked == ["passive", "restart", "restart", "restart"]


async def test_a_log_that_another_process_moved_gets_no_passive(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await _asked(monkeypatch, [Index(FRAMES, FRAMES, FRAME_BYTES)], [False]) == ["restart"]
