"""Rollbacks with nodes' data: what is gone, node by node, and how far they have come."""

from collections.abc import Iterator

import click

from control.cli.support import output
from control.cli.support.client import Json
from control.protocol.counts import counted

SHOWN = 20
"""Maximum nodes that are shown one by one; --json has a thousand."""

data_option = click.option(
    "--data", is_flag=True, help="Also take nodes' data and schema back to before they got the release."
)


def plan(undo: Json) -> Iterator[tuple[str, str | None]]:
    """Return the lines of what a rollback does to nodes' data, each with its style."""
    back, left = undo["back"], undo["left"]
    if not back and not left:
        yield "no node has got a release that is undone: all data stay", None
        return
    if back:
        yield f"data go back on {counted(back, 'node')}:", None
    for node in undo["nodes"][:SHOWN]:
        at, newer = output.when(node["at"]), output.span(node["newer"])
        yield f"- {node['node']}: to before release {node['release']}, {at:%Y-%m-%d %H:%M:%S} UTC", "red"
        yield f"    what was written since is gone: {newer} that the backup has, and what is newer", "red"
        if node["tables"] is None:
            yield f"    rows by table aren't known: {node['tables_unknown']}", "yellow"
        for table in node["tables"] or []:
            then, now = (0 if table[when] is None else table[when] for when in ("then", "now"))
            yield f"    table {table['table']}: {counted(then, 'row')}, now {now:,}", "red"
    yield from _more(back)
    if left:
        yield f"{counted(left, 'node')} can't go back: only the functions do, data and schema stay", "yellow"
    for node in undo["left_nodes"][:SHOWN]:
        yield f"= {node['node']}: {node['why']} [{node['code']}]", "yellow"
    yield from _more(left)


def _more(nodes: int) -> Iterator[tuple[str, str | None]]:
    if nodes > SHOWN:
        yield f"… and {counted(nodes - SHOWN, 'more node')} (--json has them)", None


def show(undo: Json) -> None:
    """Print what a rollback does to nodes' data."""
    for line, style in plan(undo):
        output.say(f"  {line}", style=style)


def counts(undo: Json) -> str:
    """Return how far nodes' data have gone back: `12 done, 3 on the way, 1 failed, 2 can't`."""
    words = ("done", "done"), ("ordered", "on the way"), ("failed", "failed"), ("cancelled", "cancelled")
    told = [f"{undo[name]:,} {word}" for name, word in (*words, ("left", "can't")) if undo[name]]
    return ", ".join(told)
