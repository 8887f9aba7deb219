"""The same calls by a worker whose plain calls run in the C library, and by one in Python."""

import contextlib
import functools
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_runtime.native import library
from edge_runtime.wasmedge.c_api import address, ffi
from edge_runtime.wasmedge.c_api import library as wasmedge
from edge_runtime.wasmedge.outer import OuterModule
from tests.support.deadlines import scaled
from tests.support.worker_thread import Said, WorkerThread, worker


class BothWays:
    """The two workers; see `both_ways`."""

    def __init__(self, in_c: WorkerThread, in_python: WorkerThread) -> None:
        self.in_c = in_c
        self.in_python = in_python
        self.by_python: dict[str, int] = {}
        """How many calls of a function the first worker has run in Python."""

    def said(self, name: str, body: bytes = b"", **head: Any) -> tuple[Said, Said]:
        """What either says of a call."""
        before = len(self.in_c.ran)
        ours = self.in_c.call(name, body, **head)
        self.by_python[name] = self.by_python.get(name, 0) + len(self.in_c.ran) - before
        return ours, self.in_python.call(name, body, **head)


@contextmanager
def both_ways(
    folder: Path,
    functions: Mapping[str, tuple[bytes, Mapping[str, Any]]],
    *,
    eager: bool = False,
    schema: Sequence[str] = (),
) -> Iterator[BothWays]:
    """Run both workers, with these modules and manifests, until the block ends; for the rest see `worker`."""
    (folder / "aot").mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as own, contextlib.ExitStack() as running:
        running.enter_context(handlers_kept())
        workers = []
        for in_c in (True, False):
            # A database each, and the same compiled modules.
            place = Path(own, "c" if in_c else "python")
            place.mkdir()
            (place / "aot").symlink_to(folder / "aot")
            workers.append(running.enter_context(worker(place, functions, in_c=in_c, eager=eager, schema=schema)))
        yield BothWays(*workers)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Have a thread be in compiled code until the block ends.

    WasmEdge sets the process's signal handlers when a first thread enters compiled code, and takes them away when the
    last one leaves it; a thread that enters in that moment has none, and its guest's next trap ends the process.
    """
    entered, over = threading.Event(), threading.Event()

    @ffi.callback("HostFunction")  # type: ignore[untyped-decorator]
    def wait(*_: object) -> int:
        entered.set()
        over.wait()
        return 0

    outer = OuterModule(library.BUILT / library.OUTER, address(wait))
    executor = ffi.cast("WasmEdge_ExecutorContext *", outer.executor)
    function = ffi.cast("WasmEdge_FunctionInstanceContext *", outer.function)
    run = functools.partial(wasmedge.WasmEdge_ExecutorInvoke, executor, function, ffi.NULL, 0, ffi.NULL, 0)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert entered.wait(scaled(60))
        yield
    finally:
        over.set()
        thread.join()
