"""Which modules one request passes: how often its way changes from one module to another.

How it counts. `sys.monitoring` tells of each start of a Python function while a block runs; a coroutine that waits and
goes on has started once. Only functions of the named packages are looked at. A function that calls no other one of
these packages is a leaf: it returns at once to where it was called, the reader needn't follow it, and it isn't counted.
The modules of the functions that are left, in the order of their starts, are the way; a run of the same module is one
stay. `returns` are the stays in a module that was passed before. Generator expressions belong to their function, and
methods that `dataclass` writes are no functions of ours.

    with recording("control", begins=("ControlApp.__call__",)) as way:
        await one_request()
    assert len(way.stays) <= 7, way
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType, FrameType

import pytest

_CLOCK = "control.clock"
"""Whoever asks it for the time, as others ask the standard library, calls nothing that a reader follows."""
_TOOL = 4
"""An id of `sys.monitoring` that no debugger, profiler or coverage tool has."""


@dataclass
class Start:
    """A function that was called."""

    module: str
    name: str
    caller: int | None
    """Its caller's place in `Way.starts`; None where that isn't recorded."""
    calls_onward: bool = False


@dataclass
class Way:
    """What was recorded; complete at the end of the block."""

    packages: tuple[str, ...]
    begins: tuple[str, ...]
    starts: list[Start] = field(default_factory=list)
    _places: dict[int, int] = field(default_factory=dict)
    _frames: list[FrameType] = field(default_factory=list)
    """Kept, so that no two frames have the same id."""

    @property
    def stays(self) -> list[str]:
        """The modules in the order in which they are passed."""
        passed: list[str] = []
        for start in self.starts:
            if start.calls_onward and passed[-1:] != [start.module]:
                passed.append(start.module)
        return passed

    @property
    def modules(self) -> set[str]:
        """The modules that are passed."""
        return set(self.stays)

    @property
    def returns(self) -> int:
        """How many stays are in a module that was passed before."""
        return len(self.stays) - len(self.modules)

    def __str__(self) -> str:
        functions = "\n".join(f"  {s.module}: {s.name}" for s in self.starts if s.calls_onward)
        return f"{len(self.stays)} stays, {self.returns} of them returns: {' -> '.join(self.stays)}\n{functions}"

    def started(self, code: CodeType, _offset: int) -> None:
        """Record the start of a function."""
        frame = sys._getframe(1)
        if frame.f_code is not code or not self._is_ours(frame):
            return
        caller, names = None, {code.co_qualname}
        above = frame.f_back
        while above is not None:
            if self._is_ours(above):
                caller = caller or above
                names.add(above.f_code.co_qualname)
            above = above.f_back
        if self.begins and names.isdisjoint(self.begins):
            return
        place = None if caller is None else self._places.get(id(caller))
        if place is not None:
            self.starts[place].calls_onward = True
        self._places[id(frame)] = len(self.starts)
        self._frames.append(frame)
        self.starts.append(Start(frame.f_globals["__name__"], code.co_qualname, place))

    def _is_ours(self, frame: FrameType) -> bool:
        name = str(frame.f_globals.get("__name__", ""))
        if frame.f_code.co_filename.startswith("<") or frame.f_code.co_name == "<genexpr>":
            return False
        within = any(name == package or name.startswith(f"{package}.") for package in self.packages)
        return within and name != _CLOCK


@contextmanager
def recording(*packages: str, begins: tuple[str, ...] = ()) -> Iterator[Way]:
    """Record the functions of `packages` that start in the block.

    With `begins`, only the functions of these qualified names and what they call, directly or not: what runs in the
    background meanwhile is left out. A background task that has a part in the request, and waits when the block begins,
    may be named too. Works for all threads. Skips the test before Python 3.12, which has no `sys.monitoring`.
    """
    if sys.version_info < (3, 12):
        pytest.skip("Python has sys.monitoring since 3.12")
    way = Way(packages, begins)
    events = sys.monitoring.events
    sys.monitoring.use_tool_id(_TOOL, "call_path")
    try:
        sys.monitoring.register_callback(_TOOL, events.PY_START, way.started)
        sys.monitoring.set_events(_TOOL, events.PY_START)
        yield way
    finally:
        sys.monitoring.set_events(_TOOL, events.NO_EVENTS)
        sys.monitoring.register_callback(_TOOL, events.PY_START, None)
        sys.monitoring.free_tool_id(_TOOL)
        way._places.clear()
        way._frames.clear()
