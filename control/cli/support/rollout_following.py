"""Following a rollout until it ends, or until it waits for a person: what is said meanwhile, and how it ends."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from control.cli.support import output, rollout_views
from control.cli.support.client import Client, Failure, Json, NotConverged, Unreachable, path

PAUSE = 0.5
"""Seconds between two requests for a rollout."""
PATIENCE = 300.0
"""Seconds for which a rollout is followed although control can't be reached: its replicas may be restarted."""
UNTOLD = {
    "offline": "it is offline",
    "held": "it is held at a restore",
    "too_old": "its version can't rehearse",
    "pending": "it hasn't told yet",
    "no_answer": "it didn't answer in time",
}
"""Why it isn't known how a rehearsal went on a node that hasn't told it."""
COUNTING = ("nodes", "rehearsal")
"""What a rollout waits for with a reason that only counts nodes down."""


async def newest(control: Client, group: str) -> int:
    """Return the number of a group's newest rollout.

    Raises: Failure, when the group has none; otherwise what `Client.get` raises.
    """
    found = await control.get(path("rollouts"), group=group, limit=1)
    for rollout in found["items"]:
        return int(rollout["number"])
    raise Failure(
        f"group {group} has no rollout",
        code="unknown_rollout",
        cure="releases without a policy go out at once; `skerry release list` has them",
    )


async def follow(
    control: Client,
    group: str,
    number: int,
    seen: Callable[[Json], Awaitable[None]],
    *,
    until: Callable[[Json], bool],
    within: float | None = None,
) -> Json:
    """Ask for a rollout again and again, and return the first answer of which `until` is true.

    `seen` gets each answer. After `within` seconds the last answer is returned.

    Raises: Unreachable, when control can't be reached for `PATIENCE`, or at the end of `within`; otherwise what
    `Client.get` raises.
    """
    began = answered = time.monotonic()
    found: Json | None = None
    while True:
        try:
            found = await control.get(path("rollouts", group, number))
        except Unreachable as error:
            now = time.monotonic()
            if now - answered > PATIENCE or (within is not None and now - began > within):
                raise
            output.note(f"control doesn't answer, and is asked again: {error}", style="yellow")
        else:
            answered = time.monotonic()
            await seen(found)
            if until(found) or (within is not None and answered - began > within):
                return found
        await asyncio.sleep(PAUSE)


def ended(rollout: Json) -> bool:
    """Return whether a rollout has ended."""
    return str(rollout["state"]) in rollout_views.ENDED


def held(rollout: Json) -> bool:
    """Return whether a rollout has ended, or goes on only when a person says so."""
    return str(rollout["state"]) != "running" or str(rollout["waits_for"]) == "approval"


def rehearsed(rollout: Json) -> bool:
    """Return whether a rollout's rehearsal has come to its end, or can't begin."""
    return str(rollout["state"]) != "running" or int(rollout["step"]) > 0 or away(rollout)


def away(rollout: Json) -> bool:
    """Return whether a rollout waits, and all nodes of its group are offline."""
    return str(rollout["waits_for"]) == "unknown" and int(rollout["offline"]) == int(rollout["nodes"])


class RolloutProgress:
    """Prints what changes in a rollout: its steps, why it waits, and nodes that arrive or fail, once each."""

    def __init__(self, control: Client, *, quiet: bool = False) -> None:
        """`quiet`: print nothing."""
        self._control = control
        self._quiet = quiet
        self._began = time.monotonic()
        self._at: tuple[object, ...] = ()
        self._counts: Json = {}
        self.told = set[tuple[str, str]]()
        """Names of nodes with what was said of them: `arrived`, `failed`, or `rehearsal`, which failed there."""

    async def __call__(self, rollout: Json) -> None:
        """Print what is different from the answer before."""
        if self._quiet:
            return
        waits, reason = rollout["waits_for"], rollout["reason"]
        at = (rollout["attempt"], rollout["state"], rollout["step"], waits, "" if waits in COUNTING else reason)
        # A step that has just begun has no reason to wait for anything yet.
        if at != self._at and (reason or rollout["state"] != "running"):
            self._at = at
            output.say(f"  {rollout_views.standing(rollout)}")
        counts = {**rollout["counts"], "rehearsal": (rollout["rehearsal"] or {}).get("failed", 0)}
        before, self._counts = self._counts, counts
        for what in ("rehearsal", "at_target", "failed"):
            if counts[what] and counts[what] != before.get(what, 0):
                await self._nodes(rollout, what)

    async def _nodes(self, rollout: Json, what: str) -> None:
        group, number = rollout["group"], rollout["number"]
        if what == "rehearsal":
            for node in await self._control.items(path("rollouts", group, number, "rehearsal"), outcome="failed"):
                self._say(node["name"], what, f"failed the rehearsal: {rehearsal_error(node)}", "red")
            return
        for node in await self._control.items(path("rollouts", group, number, "nodes"), outcome=what):
            if what == "failed":
                told = f"failed: {node['error_message']} [{node['error_code']}]"
                self._say(node["name"], "failed", told, "red")
            else:
                took = output.span(time.monotonic() - self._began)
                self._say(node["name"], "arrived", f"runs release {number} of group {group} after {took}", "green")

    def _say(self, name: str, what: str, text: str, style: str) -> None:
        if (name, what) not in self.told:
            self.told.add((name, what))
            output.say(f"  {name} {text}", style=style)


def rehearsal_error(node: Json) -> str:
    """Return why a node's rehearsal didn't pass, with the row that made it fail, if that is known."""
    row = f" (row {node['row']})" if node["row"] else ""
    return f"{node['message'] or UNTOLD.get(node['code'], 'no text')}{row} [{node['code']}]"


def check(rollout: Json) -> None:
    """Check that a rollout is done.

    Raises: NotConverged, when it isn't; the message says where it stands.
    """
    if rollout["state"] == "done":
        return
    raise NotConverged(
        f"release {rollout['number']} of group {rollout['group']} isn't everywhere: {rollout_views.standing(rollout)}",
        code="rollout_not_done",
        cure=rollout_views.onward(rollout) or "`skerry rollout status` shows its steps, gates and nodes",
    )
