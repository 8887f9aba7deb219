"""What the front hands to the program that rehearses a release, and what the processes of a rehearsal tell each other;
in JSON."""

from typing import Final

from msgspec import Struct

from control.protocol import wire
from edge_runtime.ipc.frames import LocalFunction

MESSAGE: Final = 2000
"""Characters of a result's message."""


class RehearsalTask(Struct, frozen=True):
    """A release to try on a copy of the node's data."""

    parent: int
    """Process id of the front."""
    state: str
    """Path of the state directory."""
    plan: wire.Plan
    functions: list[LocalFunction]
    """All functions of the release, with the code that probes run."""
    secrets: dict[str, dict[str, str]]
    """The secrets of `functions`, as in `frames.Load`."""
    generation: int
    """The serving release's generation; 0 if there is none."""
    serving: list[LocalFunction]
    """Its functions, whose probes must pass after steps before the flip."""
    serving_secrets: dict[str, dict[str, str]]
    steps: bool
    """Whether changes have steps, or steps after an earlier flip are left: they run outside the release's
    transaction."""
    wal_limit: int
    """As in `frames.ChildSettings`."""
    seconds: float
    """How long it may take."""

    def __repr__(self) -> str:
        return f"RehearsalTask({self.plan.sync_id}, release {self.plan.release_number})"


class Told(Struct, omit_defaults=True):
    """A line from a process of the rehearsal to the one that watches it."""

    doing: str = ""
    """What it is about to do, for people."""
    failing: str = ""
    """SQLite's error at a statement of the change: the row that caused it is being looked for. With `untried`, why."""
    untried: str = ""
    """A code: the release couldn't be tried."""
    result: wire.RehearsalResult | None = None
