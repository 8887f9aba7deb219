"""What the front knows about the agent that keeps the node at its target."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from control.protocol import wire
from edge_runtime.telemetry.poll_report import PollReport
from edge_runtime.telemetry.ring import Ring
from edge_runtime.telemetry.search import FoundLines
from edge_runtime.telemetry.spans import TraceSpan

if TYPE_CHECKING:
    from edge_runtime.sync.control_client import ControlClient


class AgentFacts(NamedTuple):
    """What the agent knows about control and itself, as numbers."""

    at_target: bool = False
    """Whether control last said that the node is at its target."""
    heard: float | None = None
    """When control last answered (`clock.monotonic`); None if it hasn't since the start."""
    failed_syncs: int = 0
    """Syncs that failed since the start."""
    credential_ends: float | None = None
    """When the node's credential expires (Unix seconds); None if unknown."""
    trust: str = ""
    """The CAs by which the node trusts control; '' if there is no control."""
    trust_ends: float | None = None
    """When the last of them expires (Unix seconds); None if unknown."""
    refused: bool = False
    """Whether control refuses the node's credential."""


class RecordSender(Protocol):
    """Sends the node's records to control while somebody watches them."""

    ring: Ring | None
    """The folder of the records."""
    functions: Callable[[wire.Question], Awaitable[FoundLines]] | None
    """Makes records of functions' counts."""

    async def run(self) -> None: ...


class Backup(Protocol):
    """Backs the node's database up, as control says it: `backup.uploader.Uploader`."""

    @property
    def interval(self) -> float:
        """Return the seconds between two uploads; 0 if there is no backup."""

    def use(self, client: "ControlClient", node_id: str) -> None:
        """Use this session from now on, which is one of the node with this id."""

    async def take(self, interval: float) -> None:
        """Back up each `interval` seconds from now on, also after a restart; 0 to end the backup."""


class NodeAgent(Protocol):
    """Keeps the node at its target: the sync agent, or the driver of `skerry-edge dev`."""

    numbers: PollReport
    """What polls report about calls."""
    put_span: Callable[[TraceSpan], None] | None
    """Takes the spans of syncs, if the node sends traces."""
    renamed: Callable[[str], None]
    """Called with the node's name after it was renamed."""
    backup: Backup | None
    """Backs the node's database up; None where nothing does."""

    @property
    def watched(self) -> RecordSender | None:
        """Return what sends records; None if there is nobody to send them to."""

    async def run(self) -> None: ...

    def status(self) -> dict[str, Any]:
        """Return its part of /_skerry/status."""

    def facts(self) -> AgentFacts: ...
