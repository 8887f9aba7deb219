"""The fleet as a grid: a cell for each node, a block for each hundred, in an order that keeps each node in its place.

Nodes at their target are one shape, and each run of other cells is a line, so the markup stays small for any fleet.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from markupsafe import Markup

from control.console.formats import num
from control.sync.standing import LETTERS, STANDINGS, Standing
from control.telemetry.fleet_summary import FleetGrid, GroupGrid

BLOCK = 100
"""Nodes per block."""
MOST_BLOCKS = 300
"""Blocks drawn at most. In a larger fleet, blocks entirely at their target are left out first, then the last ones."""
KINDS: dict[Standing, str] = {
    "revoked": "rev",
    "failing": "fail",
    "offline": "off",
    "syncing": "sync",
    "held": "held",
    "behind": "wait",
    "at_target": "ok",
}
"""The name of each standing in the style sheet."""
WORDS: dict[Standing, str] = {standing: standing.replace("_", " ") for standing in STANDINGS}


@dataclass(frozen=True)
class Block:
    """A hundred nodes of a group, or fewer in the last block."""

    id: str
    number: int
    """Counted from 1."""
    name: str
    """The block's description in words."""
    fails: bool
    """Whether one of its nodes is failing."""
    drawing: Markup


@dataclass(frozen=True)
class GroupBlocks:
    """The blocks of a group that are drawn."""

    blocks: list[Block]
    left_out: int


def draw(grid: FleetGrid) -> dict[str, GroupBlocks]:
    """Return the blocks of each group."""
    total = sum(math.ceil(len(group.letters) / BLOCK) for group in grid.groups.values())
    found, room = {}, MOST_BLOCKS
    for name, group in grid.groups.items():
        blocks = _blocks(name, group, room, all_of_them=total <= MOST_BLOCKS)
        room -= len(blocks)
        found[name] = GroupBlocks(blocks, math.ceil(len(group.letters) / BLOCK) - len(blocks))
    return found


def said(standings: Mapping[Standing, int]) -> str:
    """Return the number of nodes of each standing, in words, the worst first."""
    counts = ((standings[standing], WORDS[standing]) for standing in STANDINGS)
    return ", ".join(f"{num(count)} {word}" for count, word in counts if count) or "no nodes"


def names_in(group: GroupGrid, number: int) -> list[str]:
    """Return the names of the nodes in a block; empty if there is no such block."""
    return group.names[(number - 1) * BLOCK : number * BLOCK] if number > 0 else []


def _blocks(name: str, group: GroupGrid, room: int, *, all_of_them: bool) -> list[Block]:
    found: list[Block] = []
    for at in range(0, len(group.letters), BLOCK):
        letters = group.letters[at : at + BLOCK]
        if len(found) >= room:
            break
        if all_of_them or letters.strip("t"):
            number = at // BLOCK + 1
            words = f"{name} {num(at + 1)} to {num(at + len(letters))}: {_words(letters)}"
            found.append(Block(f"b-{name}-{number}", number, words, "f" in letters, _drawing(letters)))
    return found


@lru_cache(8192)
def _words(letters: str) -> str:
    """Return the number of nodes of each standing, the worst first."""
    counts = ((letters.count(letter), WORDS[standing]) for letter, standing in LETTERS.items() if letter != "t")
    return ", ".join(f"{count} {word}" for count, word in counts if count) or "all at target"


@lru_cache(8192)
def _drawing(letters: str) -> Markup:
    """Draw a block: a background, and on it a line along each run of cells of one kind. The lines are as high as a cell
    and painted with the patterns of sprite.html, so a block takes some hundred bytes at worst."""
    count, rows = len(letters), math.ceil(len(letters) / 10)
    last = count % 10 * 6
    ground = f"M0,0h60v{rows * 6}h-60z"
    if last:
        ground = f"M0,0h60v{(rows - 1) * 6}h-{60 - last}v6h-{last}z" if rows > 1 else f"M0,0h{last}v6h-{last}z"
    cells = "".join(
        f'<path stroke="url(#k-{KINDS[standing]})" d="{_runs(letters, letter)}"/>'
        for letter, standing in LETTERS.items()
        if letter != "t" and letter in letters
    )
    head = f'<svg viewBox="0 0 60 {rows * 6}" aria-hidden="true"><path fill="url(#k-ok)" d="{ground}"/>'
    return Markup(f"{head}{cells}</svg>")


def _runs(letters: str, letter: str) -> str:
    """Return a path along the middle of each row, across the cells with this letter."""
    made, at = "", (0, 0)
    for row in range(0, len(letters), 10):
        y = row // 10 * 6 + 3
        for run in re.finditer(f"{letter}+", letters[row : row + 10]):
            x, length = run.start() * 6, (run.end() - run.start()) * 6
            made += f"m{x - at[0]},{y - at[1]}h{length}"
            at = x + length, y
    return made
