"""What a step's gate says of the calls that were counted: passed, failed or unknown. Pure."""

from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from control.protocol.counts import counted
from control.rollouts.policy import Gate, GateLimit
from control.rollouts.rules import Outcome


class CountedCalls(Protocol):
    """Calls that were counted, such as `control.telemetry.call_history.CallTally`."""

    @property
    def calls(self) -> int:
        """Return the number of calls."""
        ...

    @property
    def errors(self) -> int:
        """Return the number of calls that ended in an error of the function or the node."""
        ...

    def quantile(self, q: float) -> float | None:
        """Return the time in seconds that the share `q` of the calls didn't exceed; None without calls."""
        ...


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """What a gate says, with the values that it saw."""

    outcome: Outcome
    measured: float | None
    """A share of calls for `error_ratio`, seconds for `p99`; None for a webhook, or without calls."""
    allowed: float | None
    """The most that `measured` may be; None if that isn't known."""
    before: float | None
    """What the same nodes had in the hour before; None if nothing is known of it."""
    calls: int
    why: str
    """The outcome's reason, in a sentence with the values."""


def judge(gate: Gate, limit: GateLimit, now: CountedCalls, before: CountedCalls) -> GateVerdict:
    """Judge a gate with a metric by the calls of this step (`now`) and of the nodes' hour before.

    With fewer than `at_least_calls` calls it can't say, nor can one with `than_before` if the hour before had no calls.
    If both limits are given, the stricter one holds.

    For `error_ratio`, no single error fails a step by `than_before`, and an hour without errors doesn't make 0 the
    limit: it counts as one error in its calls, or in `at_least_calls` where it had fewer. `at_most` is taken literally.
    """
    measured, was = _measured(gate, now), _measured(gate, before)
    allowed = _allowed(gate, limit, now, before)

    def say(outcome: Outcome, why: str) -> GateVerdict:
        return GateVerdict(outcome, measured, allowed, was, now.calls, why)

    if measured is None or now.calls < gate.at_least_calls:
        known = "" if measured is None else f", with {_text(gate, measured)} so far"
        least = f"it takes {gate.at_least_calls:,} to say"
        return say("unknown", f"{counted(now.calls, 'call')} in this step{known}; {least}")
    seen = _seen(gate, measured, now)
    # A share that is as large as its limit isn't to fail by how numbers are rounded.
    if allowed is not None and measured > allowed * (1 + 1e-9):
        return say("failed", f"{seen}; {_limit(gate, allowed, was)}")
    if was is None and limit.factor is not None:
        return say("unknown", f"{seen}, and nothing is known of the hour before")
    return say("passed", f"{seen}; {_limit(gate, allowed, was)}")


def in_words(gate: Gate) -> str:
    """Return a gate as people read it, such as `error_ratio of orders at most 1.2x of before`."""
    if gate.webhook is not None:
        # The rest of a URL may be a secret.
        return f"webhook at {urlsplit(gate.webhook).hostname}"
    function = f" of {gate.function}" if gate.function else ""
    limits = [f"{gate.than_before} of before"] if gate.than_before else []
    limits += [gate.at_most] if gate.at_most else []
    return f"{gate.metric}{function} at most {' and '.join(limits)}"


def _measured(gate: Gate, calls: CountedCalls) -> float | None:
    if gate.metric == "p99":
        return calls.quantile(0.99)
    return calls.errors / calls.calls if calls.calls else None


def _allowed(gate: Gate, limit: GateLimit, now: CountedCalls, before: CountedCalls) -> float | None:
    """Return the stricter of the limits that are known."""
    limits = [] if limit.most is None else [limit.most]
    was = _measured(gate, before)
    if limit.factor is not None and was is not None:
        if gate.metric == "error_ratio":
            was = was if before.errors else 1 / max(before.calls, gate.at_least_calls)
            limits.append(max(limit.factor * was, 1 / max(now.calls, 1)))
        else:
            limits.append(limit.factor * was)
    return min(limits, default=None)


def _seen(gate: Gate, measured: float, now: CountedCalls) -> str:
    whose = f" of {gate.function}" if gate.function else ""
    many = counted(now.calls, "call")
    if gate.metric == "p99":
        return f"the p99 of {many}{whose} is {_text(gate, measured)}"
    return f"{_text(gate, measured)} of {many}{whose} failed"


def _limit(gate: Gate, allowed: float | None, was: float | None) -> str:
    before = "" if was is None else f", and in the hour before it was {_text(gate, was)}"
    return f"at most {_text(gate, allowed or 0.0)} is allowed{before}"


def _text(gate: Gate, value: float) -> str:
    if gate.metric == "error_ratio":
        return f"{_short(value * 100)}%"
    return f"{_short(value * 1000)} ms" if value < 1 else f"{_short(value)} s"


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"
