"""Making a release, showing what it changes, and following it until its nodes run it or have failed.

Used by `function push`, `schema add`, `schema amend`, `release create` and `rollback`.
"""

import asyncio
import itertools
import time
from typing import Any, NamedTuple

from control import manifest_rules
from control.cli.support import output, rollout_following, rollout_views, undoing
from control.cli.support.client import Client, Json, NotConverged, NotReached, path
from control.cli.support.options import ReleaseWait

SHOWN = 5
"""Maximum nodes that are named for a loss."""
PAUSE = 0.25
"""Seconds between two requests for the nodes' states."""
CURE = "`skerry status` says what each node runs and why it is late"
LATER = (
    "offline nodes get the release when they are back (--wait-for-offline waits for them); a revoked node gets none "
    "until it has joined again (`skerry node token --rejoin NAME`), or `skerry node delete NAME` removes it; a held "
    "one gets it after `skerry data resume NAME`"
)


async def floor_of(control: Client, group: str) -> int:
    """Return the schema floor of a group's newest release, 0 without one.

    Raises: RequestRefused, when there is no such group, or the operator may not see it.
    """
    found = await control.get(path("releases"), group=group, limit=1)
    return max((int(release["schema_floor"]) for release in found["items"]), default=0)


async def plan(
    control: Client, where: str, body: Json, group: str | None, rollout: Json, *, schema: int | None = None
) -> Json:
    """Have control plan a version or a schema change, and a release of the group with it; None: without a release.

    `rollout` says how that goes out, and `schema` is its floor, if they are given.
    """
    if group is None or not rollout:
        return await control.post(where, body, plan="true", group=group, schema=schema)
    following = {"group": group, **rollout} | ({} if schema is None else {"schema": schema})
    return await control.post(where, {**body, "release": following}, plan="true")


async def finish(
    control: Client,
    release: Json,
    wait: ReleaseWait | None,
    *,
    part_of: Json | None = None,
    shown: bool = False,
    as_json: bool,
) -> None:
    """Show a release that was made, unless its plan was `shown`, and follow its nodes as `wait` says; without it, name
    the command that shows its rollout, if it has one.

    With `as_json` print one document at the end: the release, or what it is a `part_of`. It then has the release's
    `nodes`, in `followed` the names of those that arrived, failed, were late, are offline and are revoked, and in
    `rollout_status` how its rollout stood, if it has one.

    Raises: NotConverged, NotReached, when not all nodes run the release; otherwise what `Client.call` raises.
    """
    if not as_json:
        output.say(_made(release, "is")) if shown else show(release)
        if wait is None and release.get("rollout") is not None:
            output.say(f"  `skerry rollout status {release['group']}` shows how it goes on")
    followed = None
    if wait is not None:
        followed = await follow(control, release, wait.within, offline_too=wait.offline_too, quiet=as_json)
        release["nodes"], release["followed"] = followed.nodes, followed.document()
        if followed.rollout is not None:
            release["rollout_status"] = followed.rollout
    if as_json:
        output.document(release if part_of is None else part_of)
    if followed is not None and wait is not None:
        followed.check(release, wait.within, quiet=as_json)


def show(release: Json, *, planned: bool = False) -> None:
    """Print a release and what it changes; `planned`: it hasn't been made."""
    made = _made(release, "would be" if planned else "is")
    functions = output.functions(release["functions"]) or "none"
    output.say(f"{made}: schema {release['schema_floor']}, functions {functions}")
    if release.get("held_below"):
        floor, newest = release["schema_floor"], release["held_below"]
        text = f"the schema floor stays at {floor}, to which it was lowered; --schema {newest} raises it"
        output.say(f"  = {text}", style="yellow")
    lines = [*changes(release.get("changes") or {}), *moved_floor(release)]
    for line, style in lines:
        output.say(f"  {line}", style=style)
    if not lines:
        output.say("  nothing changes")
    if "rollout" in release:  # which an older control doesn't return
        output.say(f"  it {rollout_views.going_out(release['rollout'])}")
    if release.get("undo") is not None:
        undoing.show(release["undo"])
    found = losses(release.get("losses") or []), stalls(release.get("stalls") or []), unfit(release.get("unfit") or {})
    for line in itertools.chain(*found):
        output.say(f"  {line}", style="red")


def named_change(change: Json) -> str:
    """Return a schema change's name for the beginning of a sentence, with its revision unless it is the first."""
    revision = f", revision {change['revision']}," if change["revision"] > 1 else ""
    return f"schema change {change['number']} ({change['name']}){revision}"


def show_findings(change: Json) -> None:
    """Print what the check of a schema change found."""
    for warning in change["warnings"]:
        text = f"{warning['message']}: {warning['statement']}".removesuffix(": ")
        output.say(f"  {text}", style="yellow")
    for loss in change.get("losses") or []:
        output.say(f"  it can lose rows of nodes: {loss['message']}: {loss['statement']}", style="red")
    for stall in change.get("stalls") or []:
        output.say(f"  it holds writers up where the table is large: {stall['message']}", style="yellow")


def _made(release: Json, verb: str) -> str:
    back = f", a rollback to release {release['rollback_to']}" if release.get("rollback_to") else ""
    generation = f"(generation {release['generation']})"
    return f"release {release['number']} of group {release['group']} {verb} made {generation}{back}"


def show_plan(found: Json, what: str, *, as_json: bool) -> None:
    """Print what would be made, and the releases that would be made with it: `release`, or the list `releases`."""
    if as_json:
        output.document(found)
        return
    output.say(what)
    for line in [*losses(found.get("losses") or []), *stalls(found.get("stalls") or [])]:
        output.say(f"  {line}", style="red")
    for release in found.get("releases") or [found.get("release")]:
        if release is not None:
            show(release, planned=True)


def show_move(found: Json) -> None:
    """Print what the move of a node would change for it."""
    output.say(f"{found['node']} would move to group {found['group']}")
    lines = list(changes(found["changes"]))
    for line, style in lines or [("nothing changes for it", "")]:
        output.say(f"  {line}", style=style or None)
    for line in [*losses(found["losses"]), *stalls(found.get("stalls") or []), *unfit(found["unfit"])]:
        output.say(f"  {line}", style="red")


def changes(changed: Json) -> list[tuple[str, str]]:
    """Return a line and its color for everything that a release removes, adds and changes, removals first."""
    lines = [(f"- {_text(item)} is removed", "red") for item in changed.get("remove", [])]
    lines += [(f"+ {_text(item)}", "green") for item in changed.get("add", [])]
    lines += [(f"~ {_text(item)}", "yellow") for item in changed.get("change", [])]
    lines += [(f"+ schema change {_text(item)}", "green") for item in changed.get("schema", [])]
    lines += [(f"! {_granted(item)}", "yellow") for item in changed.get("grants", [])]
    return lines


def moved_floor(release: Json) -> list[tuple[str, str]]:
    """Return a line and its color if a release moves the schema floor and no new schema change says so."""
    floor, before = release["schema_floor"], release.get("floor_before")  # which an older control doesn't return
    if before in (None, floor) or (before < floor and (release.get("changes") or {}).get("schema")):
        return []
    kept = " (nodes keep the schema that they have)" if floor < before else ""
    return [(f"~ schema floor {before} -> {floor}{kept}", "yellow")]


def unfit(found: Json) -> list[str]:
    """Return a line for each node that control names as unable to run the release, and one for the rest."""
    nodes = found.get("nodes", [])
    lines = [f"! node {node['name']} can't run it, it lacks {' and '.join(node['lacks'])}" for node in nodes]
    others = found.get("count", 0) - len(nodes)
    if others > 0:
        lines.append(f"! {others} other {'nodes' if others > 1 else 'node'} can't run it")
    return lines


def losses(found: list[Json]) -> list[str]:
    """Return a line for each loss of rows that the release can cause, with the row counts that nodes reported."""
    return [f"! schema change {loss['change']}: {loss['message']}: {_rows(loss)}" for loss in found]


def stalls(found: list[Json]) -> list[str]:
    """Return a line for each statement that blocks writers, with about how long on each node."""
    lines = []
    for stall in found:
        named = [f"{node['name']} about {node['seconds']:g} s" for node in stall["nodes"][:SHOWN]]
        others = len(stall["nodes"]) - len(named)
        more = f", {others} other{'s' if others > 1 else ''}" if others else ""
        lines.append(f"! schema change {stall['change']}: {stall['message']}, writers wait: {', '.join(named)}{more}")
    return lines


def _rows(loss: Json) -> str:
    """Return how many rows the nodes concerned have, naming those with the most."""
    named = [f"{node['name']} {_count(node['rows'])}" for node in loss["most"][:SHOWN]]
    others = loss["nodes"] - len(named)
    if others > 0:
        named.append(f"{others} other{'s' if others > 1 else ''}")
    return f"rows by node: {', '.join(named)}"


def _count(rows: int | None) -> str:
    return "unknown" if rows is None else "more than 10,000" if rows > 10_000 else str(rows)


def _granted(item: Json) -> str:
    """Return the line for a grant that is new or different in a new version."""
    grant, before, after = item["grant"], item["from"], item["to"]
    new = f"{item['name']} {grant}: {manifest_rules.shown(grant, after)}"
    return new if before is None else f"{new} (was: {manifest_rules.shown(grant, before)})"


def _text(item: object) -> str:
    if not isinstance(item, dict):
        return str(item)
    if "number" in item:
        return f"{item['number']} {item.get('name', '')}".strip()
    if "from" in item and "to" in item:
        return f"{item['name']} {item['from']} -> {item['to']}"
    return f"{item['name']}@{item['version']}" if "version" in item else str(item.get("name", item))


class FollowedRelease(NamedTuple):
    """The outcome of a release: the group's nodes, the names of those that run it, failed, were late, or weren't waited
    for because they are offline, revoked or held, and its rollout, as it was seen last."""

    nodes: list[Json]
    arrived: list[str]
    failed: list[str]
    late: list[str]
    offline: list[str]
    revoked: list[str]
    held: list[str]
    rollout: Json | None = None

    def document(self) -> Json:
        """Return the names as a document for a script."""
        return {name: names for name, names in self._asdict().items() if name not in ("nodes", "rollout")}

    def check(self, release: Json, within: float, *, quiet: bool) -> None:
        """Check that all nodes run the release.

        `within` is how many seconds late nodes were waited for; `quiet`: the reasons for failures weren't printed.

        Raises: NotConverged, when a node failed or was late, or the rollout isn't done; NotReached, when none did but
        some weren't waited for. The message names all of them.
        """
        if self.rollout is not None:
            rollout_following.check(self.rollout)
        by_name = {node["name"]: node for node in self.nodes}
        told = [f"{name} failed" + (f": {_error(by_name[name])}" if quiet else "") for name in self.failed]
        told += [f"{name} ({by_name[name]['state']}) didn't arrive in {output.span(within)}" for name in self.late]
        away = [f"{name} is offline" for name in self.offline] + [f"{name} is revoked" for name in self.revoked]
        away += [f"{name} is held at a restore" for name in self.held]
        what = f"release {release['number']} of group {release['group']} isn't everywhere: "
        if told:
            raise NotConverged(what + "; ".join(told + away), code="not_converged", cure=CURE)
        if away:
            raise NotReached(what + "; ".join(away), code="nodes_not_reached", cure=LATER)


def progress(node: Json, generation: int, since: str) -> str:
    """Return what a node has done with the release of `generation`.

    That is ``revoked``, ``held``, ``arrived``, ``failed``, ``offline`` or ``waiting``. A node at a newer target has
    arrived too.
    A node has failed if its error isn't older than `since`. Control refuses a revoked node, so what it ran before is no
    longer significant.
    """
    if node["state"] == "revoked":
        return "revoked"
    if node.get("held"):  # which an older control doesn't return
        return "held"
    if node["at_target"] and node["generation"] >= generation:
        return "arrived"
    error = node.get("error")
    if error and error["at"] and output.when(error["at"]) >= output.when(since):
        return "failed"
    return "offline" if node["state"] == "offline" else "waiting"


async def follow(control: Client, release: Json, within: float, *, offline_too: bool, quiet: bool) -> FollowedRelease:
    """Wait until the release's nodes have arrived or failed, for at most `within` seconds.

    If it goes out by a rollout, wait for that first; no longer, once it has ended otherwise than done, or goes on only
    when a person says so. `offline_too`: wait for offline nodes too; otherwise they are named, and not waited for while
    offline.
    """
    began = time.monotonic()
    rollout: Json | None = None
    told: set[tuple[str, str]] = set()
    back = {node["id"] for node in (release.get("undo") or {"nodes": ()})["nodes"]}
    if release.get("rollout") is not None:
        progress_of = rollout_following.RolloutProgress(control, quiet=quiet)
        where = release["group"], release["number"]
        rollout = await rollout_following.follow(
            control,
            *where,
            progress_of,
            until=lambda seen: rollout_following.held(seen) or (rollout_following.away(seen) and not offline_too),
            within=within,
        )
        if rollout["state"] != "done":
            return await _unfinished(control, rollout)
        told = progress_of.told
    while True:
        nodes = await control.items(path("nodes"), group=release["group"])
        stand = {node["id"]: progress(node, release["generation"], release["created_at"]) for node in nodes}
        for id in back & stand.keys():
            # It isn't held, but goes on to this release.
            stand[id] = "waiting" if stand[id] == "held" else stand[id]
        for node in nodes:
            what = stand[node["id"]]
            if what != "waiting" and (node["name"], what) not in told:
                told.add((node["name"], what))
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
                nodes,
                names("arrived"),
                names("failed"),
                names(*waited),
                names(*away),
                names("revoked"),
                names("held"),
                rollout,
            )
        await asyncio.sleep(PAUSE)


async def _unfinished(control: Client, rollout: Json) -> FollowedRelease:
    """Return what has become of a release so far whose rollout isn't done; nodes that weren't started aren't named."""
    group, number = rollout["group"], rollout["number"]
    nodes = await control.items(path("nodes"), group=group)
    found = await control.items(path("rollouts", group, number, "nodes"))

    def names(outcome: str) -> list[str]:
        return [node["name"] for node in found if node["outcome"] == outcome]

    return FollowedRelease(
        nodes, names("at_target"), names("failed"), names("syncing"), names("offline"), [], [], rollout
    )


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
        case "held":
            text = f"is held at a restore: it gets no release until `skerry data resume {name}`"
            output.say(f"  {name} {text}", style="yellow")


def _error(node: Json) -> str:
    error: dict[str, Any] = node["error"]
    return f"{error['message']} [{error['code']}]"
