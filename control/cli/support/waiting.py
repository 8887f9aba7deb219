"""``--wait``: follow a release until every node of its group runs it or has failed to."""

import asyncio
import time
from typing import Any

from control.cli.support import output
from control.cli.support.client import Client, Json, NotConverged, path

PAUSE = 0.25
"""Seconds between two requests for the nodes' state."""


def progress(node: Json, generation: int, since: str) -> str:
    """Return ``arrived``, ``failed`` or ``waiting``: what a node has done with the release of `generation`.

    A node at a newer target has arrived too. It has failed where its error is not older than `since`.
    """
    if node["at_target"] and node["generation"] >= generation:
        return "arrived"
    error = node.get("error")
    if error and error["at"] and output.when(error["at"]) >= output.when(since):
        return "failed"
    return "waiting"


async def follow(control: Client, release: Json, within: float, *, quiet: bool) -> list[Json]:
    """Wait until the release's nodes have arrived or failed, `within` seconds at most, and return the nodes.

    Raises: NotConverged, when a node failed or is late; the message names them.
    """
    began = time.monotonic()
    told: set[str] = set()
    while True:
        nodes = await control.items(path("nodes"), group=release["group"])
        stand = {node["id"]: progress(node, release["generation"], release["created_at"]) for node in nodes}
        for node in nodes:
            what = stand[node["id"]]
            if what != "waiting" and node["id"] not in told:
                told.add(node["id"])
                if not quiet:
                    _tell(node, what, release, time.monotonic() - began)
        waiting = [node for node in nodes if stand[node["id"]] == "waiting"]
        late = time.monotonic() - began > within
        if not waiting or late:
            failed = [node for node in nodes if stand[node["id"]] == "failed"]
            if failed or waiting:
                raise NotConverged(_why(release, failed, waiting, within, quiet), code="not_converged", cure=CURE)
            if not nodes and not quiet:
                output.say(f"group {release['group']} has no nodes yet: nothing to wait for")
            return nodes
        await asyncio.sleep(PAUSE)


CURE = "`skerry status` says what each node runs and why it is late"


def _tell(node: Json, what: str, release: Json, seconds: float) -> None:
    if what == "arrived":
        what = f"release {release['number']} of group {release['group']} (generation {release['generation']})"
        output.say(f"  {node['name']} runs {what} after {output.span(seconds)}", style="green")
    else:
        output.say(f"  {node['name']} failed: {_error(node)}", style="red")


def _error(node: Json) -> str:
    error: dict[str, Any] = node["error"]
    return f"{error['message']} [{error['code']}]"


def _why(release: Json, failed: list[Json], waiting: list[Json], within: float, quiet: bool) -> str:
    """Say which nodes failed or are late; with `quiet` also why they failed, which hasn't been printed."""
    told = [f"{node['name']} failed" + (f": {_error(node)}" if quiet else "") for node in failed]
    told += [f"{node['name']} ({node['state']}) didn't arrive in {output.span(within)}" for node in waiting]
    return f"release {release['number']} of group {release['group']} isn't everywhere: " + "; ".join(told)
