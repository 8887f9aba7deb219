"""``--wait``: follow a release until every node of its group that can be reached runs it or has failed to."""

import asyncio
import time
from typing import Any, NamedTuple

from control.cli.support import output
from control.cli.support.client import Client, Json, NotConverged, NotReached, path

PAUSE = 0.25
"""Seconds between two requests for the nodes' state."""
CURE = "`skerry status` says what each node runs and why it is late"
LATER = (
    "offline nodes get the release when they are back (--wait-for-offline waits for them); a revoked node gets none "
    "until it has joined again (`skerry node token --rejoin NAME`), or `skerry node delete NAME` removes it"
)


class FollowedRelease(NamedTuple):
    """What became of a release: the group's nodes, and the names of those that run it, that failed, that were late, and
    that weren't waited for, because they are offline or revoked."""

    nodes: list[Json]
    arrived: list[str]
    failed: list[str]
    late: list[str]
    offline: list[str]
    revoked: list[str]

    def document(self) -> Json:
        """The names, as a script gets them."""
        return {name: names for name, names in self._asdict().items() if name != "nodes"}

    def check(self, release: Json, within: float, *, quiet: bool) -> None:
        """Check that all nodes run the release. `within`: the seconds for which late ones were waited for; `quiet`: it
        hasn't been printed why nodes failed.

        Raises: NotConverged, when a node failed or was late; NotReached, when none did and some weren't waited for. The
        message names them all.
        """
        by_name = {node["name"]: node for node in self.nodes}
        told = [f"{name} failed" + (f": {_error(by_name[name])}" if quiet else "") for name in self.failed]
        told += [f"{name} ({by_name[name]['state']}) didn't arrive in {output.span(within)}" for name in self.late]
        away = [f"{name} is offline" for name in self.offline] + [f"{name} is revoked" for name in self.revoked]
        what = f"release {release['number']} of group {release['group']} isn't everywhere: "
        if told:
            raise NotConverged(what + "; ".join(told + away), code="not_converged", cure=CURE)
        if away:
            raise NotReached(what + "; ".join(away), code="nodes_not_reached", cure=LATER)


def progress(node: Json, generation: int, since: str) -> str:
    """Return ``revoked``, ``arrived``, ``failed``, ``offline`` or ``waiting``: what a node has done with the release of
    `generation`.

    A node at a newer target has arrived too. It has failed where its error is not older than `since`. Control refuses a
    revoked node, so what it ran before says nothing any more.
    """
    if node["state"] == "revoked":
        return "revoked"
    if node["at_target"] and node["generation"] >= generation:
        return "arrived"
    error = node.get("error")
    if error and error["at"] and output.when(error["at"]) >= output.when(since):
        return "failed"
    return "offline" if node["state"] == "offline" else "waiting"


async def follow(control: Client, release: Json, within: float, *, offline_too: bool, quiet: bool) -> FollowedRelease:
    """Wait until the release's nodes have arrived or failed, `within` seconds at most.

    `offline_too`: wait for nodes that are offline, too; else they are named, and not waited for while they are so.
    """
    began = time.monotonic()
    told: set[tuple[str, str]] = set()
    while True:
        nodes = await control.items(path("nodes"), group=release["group"])
        stand = {node["id"]: progress(node, release["generation"], release["created_at"]) for node in nodes}
        for node in nodes:
            what = stand[node["id"]]
            if what != "waiting" and (node["id"], what) not in told:
                told.add((node["id"], what))
                if not quiet:
                    _tell(node, what, release, time.monotonic() - began, offline_too)
        waited = ("waiting", "offline") if offline_too else ("waiting",)
        if time.monotonic() - began > within or not any(what in waited for what in stand.values()):
            if not nodes and not quiet:
                output.say(f"group {release['group']} has no nodes yet: nothing to wait for")

            def names(*whats: str, nodes: list[Json] = nodes, stand: dict[str, str] = stand) -> list[str]:
                return [node["name"] for node in nodes if stand[node["id"]] in whats]

            away = () if offline_too else ("offline",)
            return FollowedRelease(
                nodes, names("arrived"), names("failed"), names(*waited), names(*away), names("revoked")
            )
        await asyncio.sleep(PAUSE)


def _tell(node: Json, what: str, release: Json, seconds: float, offline_too: bool) -> None:
    name, arrived = node["name"], f"release {release['number']} of group {release['group']}"
    match what:
        case "arrived":
            text = f"runs {arrived} (generation {release['generation']}) after {output.span(seconds)}"
            output.say(f"  {name} {text}", style="green")
        case "failed":
            output.say(f"  {name} failed: {_error(node)}", style="red")
        case "offline":
            since = f"{name} is offline since {output.ago(node['state_since'])}"
            output.say(f"  {since}" + ("" if offline_too else ": it isn't waited for"), style="yellow")
        case "revoked":
            output.say(f"  {name} is revoked: it gets no release", style="yellow")


def _error(node: Json) -> str:
    error: dict[str, Any] = node["error"]
    return f"{error['message']} [{error['code']}]"
