"""Rounds of load that alternate between the compared servers, so that other load on the machine affects all of them."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from . import cpu


class Load(Protocol):
    """The result of a round of load."""

    @property
    def answers(self) -> int: ...
    @property
    def rate(self) -> float:
        """Answers a second."""

    @property
    def p50(self) -> float:
        """Seconds."""

    @property
    def p99(self) -> float: ...


@dataclass(frozen=True)
class Loaded:
    """One of the compared servers; `run` loads it, `pids` are its processes."""

    run: Callable[[], Awaitable[Load]]
    pids: Sequence[int]
    node: bool = False
    """Whether it has a front, the first of `pids`, and workers, the others."""


Rounds = dict[str, list[dict[str, float]]]
"""The figures of each round, by server."""


async def take(loaded: Mapping[str, Loaded], count: int) -> Rounds:
    """Run `count` rounds on each server, after a warm-up round.

    The load is this process or its children: `load_us` is its CPU time per request.
    """
    rounds: Rounds = {name: [] for name in loaded}
    for number in range(count + 1):
        for name, each in loaded.items():
            before = [cpu.seconds([pid]) for pid in each.pids]
            own = cpu.own()
            done = await each.run()
            own = cpu.own() - own
            used = [cpu.seconds([pid]) - was for pid, was in zip(each.pids, before, strict=True)]
            if number:
                rounds[name].append(_figures(done, used, own, each.node))
    return rounds


def _figures(done: Load, used: Sequence[float], own: float, node: bool) -> dict[str, float]:
    each = 1e6 / done.answers
    found = {"rate": done.rate, "cpu_us": sum(used) * each}
    if node:
        found |= {"front_us": used[0] * each, "workers_us": sum(used[1:]) * each}
    found["load_us"] = own * each
    return found | {"p50_ms": done.p50 * 1000, "p99_ms": done.p99 * 1000}


def ratios(rounds: Rounds, one: str, other: str, key: str = "rate") -> list[float]:
    """Return for each round the figure of one divided by that of the other."""
    return [a[key] / b[key] for a, b in zip(rounds[one], rounds[other], strict=True)]


def over(rounds: Rounds, one: str, other: str, key: str = "rate") -> float:
    """Return the median of `ratios`."""
    return median(ratios(rounds, one, other, key))


def medians(rounds: Rounds) -> dict[str, dict[str, float]]:
    return {
        name: {key: round(median(found[key] for found in several), 2) for key in several[0]}
        for name, several in rounds.items()
    }
