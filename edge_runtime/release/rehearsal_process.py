"""The front's side of a rehearsal: starts the program that tries a release on a copy of the node's data, and makes sure
that the copy is gone afterwards."""

import asyncio
import contextlib
import shutil
from pathlib import Path
from typing import Final

import msgspec

from control.protocol import wire
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc.oneshot_program import OneshotProgram
from edge_runtime.ipc.rehearsal_messages import RehearsalTask
from edge_runtime.state import REHEARSAL

PROGRAM: Final = "edge_runtime.oneshot.rehearse"

_decode_result: Final = msgspec.json.Decoder(wire.RehearsalResult).decode


async def rehearse(task: RehearsalTask, lock: int) -> wire.RehearsalResult:
    """Rehearse the release, and return what came of it. If this is cancelled, the program is killed; its folder is
    removed in any case. `lock` is as in `OneshotProgram`.

    Raises: SyncFailed, when the program can't be started, or ends without a result.
    """
    program = OneshotProgram(PROGRAM, lock, given=msgspec.json.encode(task))
    try:
        answer = await program.run()
    except OSError as error:
        raise SyncFailed("rehearsal_impossible", f"The rehearsal can't be started: {error}.") from None
    finally:
        removing = asyncio.to_thread(shutil.rmtree, Path(task.state) / REHEARSAL, ignore_errors=True)
        await asyncio.shield(asyncio.ensure_future(removing))
    *_, last = [b"", *answer.splitlines()]
    with contextlib.suppress(msgspec.MsgspecError):
        return _decode_result(last)
    text = f"The program that rehearsed release {task.plan.release_number} ended with status {program.status}."
    raise SyncFailed("rehearsal_died", text)
