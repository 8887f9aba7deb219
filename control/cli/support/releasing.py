"""Make a release and show what it changes, for `function push`, `schema add`, `schema amend`, `release create` and
`rollback`."""

import itertools

from control import manifest_rules
from control.cli.support import output, waiting
from control.cli.support.client import Client, Json, path
from control.cli.support.options import ReleaseWait

SHOWN = 5
"""Nodes of a loss that are named."""


async def floor_of(control: Client, group: str) -> int:
    """Return the schema floor of a group's newest release, 0 without one.

    Raises: RequestRefused, when there is no such group, or the operator may not see it.
    """
    found = await control.get(path("releases"), group=group, limit=1)
    return max((int(release["schema_floor"]) for release in found["items"]), default=0)


async def finish(
    control: Client,
    release: Json,
    wait: ReleaseWait | None,
    *,
    part_of: Json | None = None,
    shown: bool = False,
    as_json: bool,
) -> None:
    """Show a release that was made, unless its plan was `shown`, and follow its nodes as `wait` says.

    With `as_json` print one document at the end: the release, or what it is a `part_of`. It then has the release's
    `nodes`, and in `followed` the names of those that arrived, failed, were late, are offline and are revoked.

    Raises: NotConverged, NotReached, when not all nodes run the release; else as `Client.call` does.
    """
    if not as_json:
        output.say(_made(release, "is")) if shown else show(release)
    followed = None
    if wait is not None:
        followed = await waiting.follow(control, release, wait.within, offline_too=wait.offline_too, quiet=as_json)
        release["nodes"], release["followed"] = followed.nodes, followed.document()
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
    found = losses(release.get("losses") or []), stalls(release.get("stalls") or []), unfit(release.get("unfit") or {})
    for line in itertools.chain(*found):
        output.say(f"  {line}", style="red")


def named_change(change: Json) -> str:
    """Return a schema change as the beginning of a sentence names it; its first text is no revision of another."""
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
    """Return a line and its colour for everything that a release removes, adds and changes, removals on top."""
    lines = [(f"- {_text(item)} is removed", "red") for item in changed.get("remove", [])]
    lines += [(f"+ {_text(item)}", "green") for item in changed.get("add", [])]
    lines += [(f"~ {_text(item)}", "yellow") for item in changed.get("change", [])]
    lines += [(f"+ schema change {_text(item)}", "green") for item in changed.get("schema", [])]
    lines += [(f"! {_granted(item)}", "yellow") for item in changed.get("grants", [])]
    return lines


def moved_floor(release: Json) -> list[tuple[str, str]]:
    """Return a line and its colour where a release has another floor than the one before, and no new schema change says
    so."""
    floor, before = release["schema_floor"], release.get("floor_before")  # which an older control doesn't answer
    if before in (None, floor) or (before < floor and (release.get("changes") or {}).get("schema")):
        return []
    kept = " (nodes keep the schema that they have)" if floor < before else ""
    return [(f"~ schema floor {before} -> {floor}{kept}", "yellow")]


def unfit(found: Json) -> list[str]:
    """Return a line for each node that control names as unable to run the release, and one for the others."""
    nodes = found.get("nodes", [])
    lines = [f"! node {node['name']} can't run it, it lacks {' and '.join(node['lacks'])}" for node in nodes]
    others = found.get("count", 0) - len(nodes)
    if others > 0:
        lines.append(f"! {others} other {'nodes' if others > 1 else 'node'} can't run it")
    return lines


def losses(found: list[Json]) -> list[str]:
    """Return a line for each loss of rows that the release can bring, with the numbers of rows that nodes told."""
    return [f"! schema change {loss['change']}: {loss['message']}: {_rows(loss)}" for loss in found]


def stalls(found: list[Json]) -> list[str]:
    """Return a line for each statement that holds writers of nodes up, with about how long by node."""
    lines = []
    for stall in found:
        named = [f"{node['name']} about {node['seconds']:g} s" for node in stall["nodes"][:SHOWN]]
        others = len(stall["nodes"]) - len(named)
        more = f", {others} other{'s' if others > 1 else ''}" if others else ""
        lines.append(f"! schema change {stall['change']}: {stall['message']}, writers wait: {', '.join(named)}{more}")
    return lines


def _rows(loss: Json) -> str:
    """Say how many rows the nodes of a loss have, the ones with the most by name."""
    named = [f"{node['name']} {_count(node['rows'])}" for node in loss["most"][:SHOWN]]
    others = loss["nodes"] - len(named)
    if others > 0:
        named.append(f"{others} other{'s' if others > 1 else ''}")
    return f"rows by node: {', '.join(named)}"


def _count(rows: int | None) -> str:
    return "unknown" if rows is None else "more than 10,000" if rows > 10_000 else str(rows)


def _granted(item: Json) -> str:
    """Return the line of a grant that a new version has and the one before hadn't, or had otherwise."""
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
