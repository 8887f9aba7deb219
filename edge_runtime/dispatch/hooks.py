"""The parts of the node that see to what a running call asks for, or runs into."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from edge_runtime.dispatch.call import Body, Call
from edge_runtime.dispatch.guest_log import GuestLog, fields_of, shown_with
from edge_runtime.dispatch.outcomes import Outcome, Refusal
from edge_runtime.ipc import frames
from edge_runtime.redaction import redact


class HttpAsker(Protocol):
    """A worker that asks for an HTTP request, as far as its answer needs to know it."""

    ended: asyncio.Future[None]

    def send(self, request: int, kind: int, head: bytes, body: Body) -> None:
        """Send the worker a frame."""


def _nothing(*_: object) -> None:
    """No part of the node listens."""


def _unnamed(_: str, message: str) -> str:
    """Nobody knows who holds the database."""
    return message


@dataclass
class Hooks:
    """None of them may raise."""

    log: GuestLog
    http: Callable[[HttpAsker, Call, bytes], None] = _nothing
    """Called when the call asks for an HTTP request, with its parcel."""
    damaged: Callable[[str], None] = _nothing
    """Called with the sha256 of an artifact, when a worker couldn't load its compiled code any more."""
    loaded: Callable[[], None] = _nothing
    """Called when a worker has loaded a function because it was called."""
    trapped: Callable[[Call, str, dict[str, Any]], None] = _nothing
    """Called with each call that trapped; with how the log names it, and its fields."""
    named: Callable[[str, str], str] = _unnamed
    """Returns an error's message, by its code and its message, as in `Pool.named`."""

    def fault(self, call: Call, outcome: Outcome, fault: frames.Fault) -> Outcome:
        """Log a call's fault, and have done what it asks for; return the call's outcome."""
        message = redact(self.named(fault.code, fault.message))
        if message != fault.message and isinstance(outcome, Refusal):
            fault = msgspec.structs.replace(fault, message=message)
            outcome = outcome._replace(message=message)
        self.log.fault(call, fault)
        if fault.code == "guest_trap":
            self.trapped(call, shown_with(f"{call.name} {call.served.function.version}", call), fields_of(call))
        if fault.code == "function_unloadable":
            self.damaged(call.served.function.sha256)
        return outcome
