"""Looks at all states that processes can come to which share memory: step by step, in every order of their steps."""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

World = dict[str, Any]
"""What the processes share and have of their own, by names; `at PROCESS` is the step that a process takes next."""
Step = Callable[[World], str | None]
"""Changes a world, which is the step's own; returns the process's next step, or None where it can't be taken yet."""
Program = Mapping[str, Step]


class Found(NamedTuple):
    states: int
    wrong: str
    """What is wrong in the nearest state in which something is; empty where nothing is."""
    steps: list[str]
    """The steps that lead there."""


def search(first: World, programs: Mapping[str, Program], most: int) -> Found:
    """Look at all states that can be come to from `first`, the nearest ones first, until one says what is `wrong`."""
    names = tuple(first)
    before: dict[tuple[Any, ...], tuple[tuple[Any, ...], str] | None] = {tuple(first.values()): None}
    todo = deque(before)
    while todo:
        state = todo.popleft()
        world = dict(zip(names, state, strict=True))
        if world["wrong"]:
            return Found(len(before), world["wrong"], _way(before, state))
        for process, program in programs.items():
            after = world.copy()
            step = world[f"at {process}"]
            following = program[step](after)
            if following is None:
                continue
            after[f"at {process}"] = following
            reached = tuple(after.values())
            if reached not in before:
                before[reached] = state, f"{process}: {step}"
                todo.append(reached)
        assert len(before) <= most, f"more than {most} states"
    return Found(len(before), "", [])


def _way(before: dict[tuple[Any, ...], tuple[tuple[Any, ...], str] | None], state: tuple[Any, ...]) -> list[str]:
    steps = []
    while (come := before[state]) is not None:
        state, step = come
        steps.append(step)
    return steps[::-1]
