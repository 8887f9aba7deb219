"""What a worker's frames mean for the call that they are about."""

import logging
import time
from typing import TYPE_CHECKING, Final

import msgspec

from edge_runtime.dispatch.call import QUICK, Answer, Call, Refusal, Target
from edge_runtime.ipc import frames

if TYPE_CHECKING:
    from edge_runtime.dispatch.pool import Pool
    from edge_runtime.dispatch.worker_link import Link

guest_log = logging.getLogger("skerry.guest")
log = logging.getLogger("skerry.calls")

STATUSES: Final = 600
"""There is none from here on."""
DENIED: Final = ("sql", "sql_statement", "sql_closed", "http_host")
"""What a worker says that a call was denied: a label of the metrics, of which there are so many."""
LOG_BURST: Final = 4 << 20
LOG_RATE: Final = 256 * 1024
"""Bytes that the calls of all functions together may log at once, and then a second."""
LOG_LINE: Final = 100
"""Bytes that a line counts for besides its text."""
LOG_TOLD: Final = 10.0
"""Seconds between two lines about the lines that were left out of a function's log."""
SILENT: Final = 1.0
"""Seconds in which a function's failures of one kind are logged once: the counts have them all."""

MEANWHILE: Final = frozenset((frames.LOG, frames.HTTP, frames.DENIED, frames.DAMAGED))
"""Kinds that the call's answer comes after."""

_decode_fault: Final = msgspec.json.Decoder(frames.Fault).decode
_decode_denied: Final = msgspec.json.Decoder(dict[str, int]).decode


def finish(pool: "Pool", call: Call, took: float, kind: int, head: bytes, body: bytes | memoryview) -> None:
    """The call's end, `took` seconds after its worker could begin it. Error: ValueError, of what no worker says."""
    if kind >= STATUSES:
        raise ValueError(f"an answer with the status {kind}")
    fault = None if kind >= frames.FIRST_STATUS else _decode_fault(body)
    if fault is not None and not 400 <= fault.status < STATUSES:
        raise ValueError(f"a fault with the status {fault.status}")
    target = call.target
    tally, breaker = target.tally, target.breaker
    tally.took(took)
    target.line.quick = tally.recent < QUICK
    breaker.calls += 1
    if not breaker.closed:
        breaker.ended(call, time.monotonic())
    if fault is None:
        tally.outcomes["ok"] = tally.outcomes.get("ok", 0) + 1
        call.end(Answer(kind, head, body, target.release))
    else:
        if fault.log:
            _log(pool, target, fault.log)
        if fault.status >= 500:
            _log_fault(target, fault)
        if fault.code == "function_unloadable":
            pool.damaged(target.function.sha256)
        pool.refuse(call, Refusal(fault.status, fault.code, fault.message, int(fault.status == 503)))


def meanwhile(pool: "Pool", link: "Link", call: Call, kind: int, body: bytes) -> None:
    """Something about a call that goes on. Error: ValueError."""
    if kind == frames.HTTP:
        # It may take long: those behind it needn't wait for the world.
        pool.take_back(link)
        pool.http(link, call, body)
    elif kind == frames.LOG:
        _log(pool, call.target, body.decode(errors="replace"))
    elif kind == frames.DAMAGED:
        pool.damaged(call.target.function.sha256)
    else:
        for kind_of_grant, times in _decode_denied(body).items():
            if kind_of_grant not in DENIED or times < 1:
                raise ValueError(f"it was denied {kind_of_grant[:80]!r} {times} times")
            call.target.tally.deny(kind_of_grant, times)


def _log(pool: "Pool", target: Target, text: str) -> None:
    """Log what a call logged, as far as its function and all of them together may."""
    tally, now = target.tally, time.monotonic()
    lines = text.splitlines()
    for at, line in enumerate(lines):
        size = len(line) + LOG_LINE
        if not (tally.log.take(size, now) and pool.log.take(size, now)):
            tally.log_dropped += len(lines) - at
            break
        guest_log.info("%s %d: %s", target.function.name, target.function.version, line)
    if tally.log_dropped and now - tally.log_told >= LOG_TOLD and tally.log_dropped != tally.log_said:
        tally.log_told, tally.log_said = now, tally.log_dropped
        text = "%s: %d lines of its log were left out since the start, because functions log too much"
        log.warning(text, target.function.name, tally.log_dropped)


def _log_fault(target: Target, fault: frames.Fault) -> None:
    now, logged = time.monotonic(), target.tally.logged
    if now - logged.get(fault.code, -SILENT) >= SILENT:
        logged[fault.code] = now
        log.warning("%s %d: %s [%s]", target.function.name, target.function.version, fault.message, fault.code)
