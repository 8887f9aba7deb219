"""`skerry status --watch`: the state of the fleet, redrawn in place until Ctrl-C."""

import asyncio
import signal
import sys

import click
from rich import box
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from control.cli.support import output
from control.cli.support.client import Client, Failure, Json, RequestRefused, path
from control.protocol.counts import counted
from control.sync.standing import STANDINGS

PERIOD = 2.0
"""Seconds from an answer to the next request."""
REDRAW = 1.0
"""Seconds after which ages are redrawn while control doesn't answer."""
PATIENCE = 10.0
"""Seconds to wait for an answer."""
STALE = 10.0
"""Age in seconds from which the age of the display is shown in red."""
MOST_CAUSES, MOST_RELEASES = 8, 12


def check_terminal() -> None:
    """Check that stdout is a terminal. Raises: UsageError, when it isn't."""
    if not sys.stdout.isatty():
        raise click.UsageError(
            "--watch redraws a terminal, and this is none: run `skerry status` now and then, or with --json in a script"
        )


async def watch(control: Client, group: str | None) -> None:
    """Redraw until SIGINT or SIGTERM, even while control can't be reached.

    Raises: RequestRefused, when control refuses: the token has expired, or there is no such group.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    stopping = asyncio.create_task(stop.wait())
    fleet: Json | None = None
    answered, trouble = 0.0, ""
    with Live(console=output.console(), auto_refresh=False, vertical_overflow="ellipsis") as live:
        while not stop.is_set():
            asking = asyncio.create_task(_ask(control, group))
            while not asking.done() and not stop.is_set():
                await asyncio.wait({asking, stopping}, timeout=REDRAW, return_when=asyncio.FIRST_COMPLETED)
                live.update(_drawn(fleet, loop.time() - answered, trouble), refresh=True)
            if not asking.done():
                asking.cancel()
                await asyncio.wait({asking})
                break
            try:
                fleet, answered, trouble = asking.result(), loop.time(), ""
            except RequestRefused:
                raise
            except (Failure, TimeoutError) as error:
                trouble = str(error) or f"control hasn't answered for {PATIENCE:.0f} s"
            live.update(_drawn(fleet, loop.time() - answered, trouble), refresh=True)
            await asyncio.wait({stopping}, timeout=PERIOD)


async def _ask(control: Client, group: str | None) -> Json:
    async with asyncio.timeout(PATIENCE):
        return await control.get(path("fleet"), group=group)


def _drawn(fleet: Json | None, age: float, trouble: str) -> RenderableType:
    """Draw the age of the answer, the groups, their releases, and why nodes fail."""
    lines: list[RenderableType] = []
    if trouble:
        lines.append(Text(output.clean(f"control doesn't answer, and is asked again: {trouble}"), style="red"))
    if fleet is None:
        return Group(*lines, Text("waiting for control …")) if not trouble else Group(*lines)
    style = "red" if age > STALE else "dim"
    lines.append(
        Text(f"as of {output.span(age)} ago; calls of the last {fleet['minutes']} min; Ctrl-C ends", style=style)
    )
    lines.append(_groups(fleet["groups"]))
    lines.append(Text())
    lines.append(_releases(fleet["groups"]))
    causes = [(group["name"], cause) for group in fleet["groups"] for cause in group["failing"]]
    causes.sort(key=lambda item: -item[1]["nodes"])
    lines += [Text(output.clean(f"  {cause_line(name, cause)}"), style="red") for name, cause in causes[:MOST_CAUSES]]
    if len(causes) > MOST_CAUSES:
        lines.append(Text(f"  and {counted(len(causes) - MOST_CAUSES, 'further cause')}: `skerry status`", style="red"))
    return Group(*lines)


def _table(*columns: str) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        shown.add_column(column, justify="left" if column in ("GROUP", "RELEASE") else "right", no_wrap=True)
    return shown


def _groups(groups: list[Json]) -> Table:
    shown = _table("GROUP", "RELEASE", "NODES", *(word.replace("_", " ").upper() for word in STANDINGS), "OVERDUE")
    for group in groups:
        standings = group["standings"]
        cells = [
            Text(
                f"{standings[word]:,}" if standings[word] else "-",
                style="red" if word == "failing" and standings[word] else "",
            )
            for word in STANDINGS
        ]
        release = "-" if group["release"] is None else str(group["release"])
        shown.add_row(output.clean(group["name"]), release, f"{group['nodes']:,}", *cells, f"{group['overdue'] or '-'}")
    return shown


def _releases(groups: list[Json]) -> Table:
    shown = _table("GROUP", "RELEASE", "NODES", "CALLS", "ERRORS", "P99")
    for group in groups:
        for release in group["releases"][:MOST_RELEASES]:
            name = output.clean(group["name"])
            errors = Text(error_share(release), style="red" if release["errors"] else "")
            calls = f"{release['calls']:,}"
            shown.add_row(
                name, str(release["release"]), f"{release['nodes']:,}", calls, errors, output.latency(release["p99"])
            )
    return shown


def cause_line(group: str, cause: Json) -> str:
    """Return a line about why nodes of a group fail."""
    names = ", ".join(cause["examples"])
    more = ", …" if cause["nodes"] > len(cause["examples"]) else ""
    nodes = counted(cause["nodes"], "node fails", "nodes fail")
    return f"{group}: {nodes}: {cause['text'] or 'no text'} [{cause['code']}] ({names}{more})"


def release_line(release: Json, minutes: int) -> str:
    """Return a line about the state of a release on the nodes of its group."""
    nodes = counted(release["nodes"], "node")
    if not release["calls"]:
        return f"release {release['release']}: {nodes}, no calls in {minutes} min"
    calls = counted(release["calls"], "call")
    return (
        f"release {release['release']}: {nodes}, {calls} in {minutes} min, "
        f"errors {error_share(release)}, p99 {output.latency(release['p99'])}"
    )


def error_share(release: Json) -> str:
    """Return how many calls ended in errors, with the percentage if it is 0.1 or more."""
    if not release["errors"]:
        return "0"
    share = 100 * release["errors"] / release["calls"]
    return f"{release['errors']:,} ({share:.1f} %)" if share >= 0.1 else f"{release['errors']:,}"
