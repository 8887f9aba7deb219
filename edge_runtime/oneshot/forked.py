"""A piece of work in a forked child, for a process of one thread that keeps nothing of it but its answer."""

import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable

from edge_runtime.sandbox import fence


def run_forked(work: Callable[[], bytes], seconds: float) -> tuple[bytes, int]:
    """What `work` returned in the child, empty where it failed (then a traceback is on stderr), and how the child
    ended, as from waitpid. Error: TimeoutError, and the child has been ended."""
    me = os.getpid()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            fence.die_with_parent(me)
            with os.fdopen(writing, "wb") as out:
                out.write(work())
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.close(writing)
    deadline = time.monotonic() + seconds
    answer = b""
    try:
        while select.select([reading], [], [], max(0.0, deadline - time.monotonic()))[0]:
            piece = os.read(reading, 65536)
            if not piece:
                return answer, os.waitpid(child, 0)[1]
            answer += piece
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise TimeoutError(f"no answer after {seconds:g} s")
    finally:
        os.close(reading)
