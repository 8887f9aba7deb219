"""`skerry status`: who runs what, who is late or failing, and why."""

from collections import Counter
from collections.abc import Iterator

import click

from control.cli import artifacts, status_watch
from control.cli.support import options, output, rollout_views
from control.cli.support.client import Client, Json, NotConverged, RequestRefused, path
from control.cli.support.lists import ago
from control.protocol.counts import counted
from control.sync.standing import STANDINGS

MOST_NAMED = 20
"""Maximum nodes that an error names."""
MOST_LINES = 10
"""Maximum lines of schedules that are shown of a group."""
LATE = 60
"""Seconds from which on a tick is shown as late."""
REVOKED = (
    "a revoked node: `skerry node delete NAME` takes it out for good; "
    "`skerry node token --rejoin NAME` lets it join again"
)


@click.command()
@click.option("--group", type=options.NAME, help="Only the nodes of this group.")
@click.option("--watch", is_flag=True, help="Show the groups, their releases and failures, redrawn until Ctrl-C.")
@click.option("--check", is_flag=True, help="Exit with 5 unless all nodes are online and at target, the store well.")
@click.option(
    "--limit",
    type=click.IntRange(0, 100_000),
    default=100,
    show_default=True,
    help="So many nodes, those that aren't well first; the others are counted. --json has all.",
)
@options.json_option
@options.asynchronous
async def command(group: str | None, watch: bool, check: bool, limit: int, as_json: bool) -> None:
    """Show who runs what, who is late or failing, and why."""
    if watch:
        if check or as_json:
            raise click.UsageError("--watch shows and goes on: it goes with --group alone")
        status_watch.check_terminal()
        async with options.client() as control:
            await status_watch.watch(control, group)
        return
    async with options.client() as control:
        groups = [g for g in await control.items(path("groups")) if group in (None, g["name"])]
        nodes = await control.items(path("nodes"), group=group)
        store, fleet = await _if_there(control, "artifact-store"), await _if_there(control, "fleet", group=group)
        schedules = await _if_there(control, "fleet", "schedules", group=group)
        held = await _if_there(control, "certificates")
        # As many as groups, and few of those have one.
        found = await _if_there(control, "rollouts", group=group, open="true", limit="1000")
        rollouts = [] if found is None else found["items"]
    if as_json:
        output.document(
            {
                "groups": groups,
                "nodes": nodes,
                "artifact_store": store,
                "fleet": fleet,
                "schedules": [] if schedules is None else schedules["schedules"],
                "certificates": held,
                "rollouts": rollouts,
            }
        )
    else:
        _show(groups, nodes, fleet, schedules, rollouts, limit)
        if store is not None:
            for line in artifacts.trouble(store):
                output.say(f"artifacts: {line}", style="red" if store["problem"] else "yellow")
        for line, style in [] if held is None else certificate_lines(held):
            output.say(line, style=style)
    bad = [_named(node) for node in nodes if not well(node)]
    if store is not None and store["problem"]:
        bad.append("the artifact store")
    if held is not None and held["notes"]:
        bad.append("control's certificates")
    if check and bad:
        revoked = any(node["state"] == "revoked" for node in nodes)
        named = ", ".join(bad[:MOST_NAMED])
        more = f" and {len(bad) - MOST_NAMED:,} more" if len(bad) > MOST_NAMED else ""
        raise NotConverged(f"not well: {named}{more}", code="not_converged", cure=REVOKED if revoked else "")


async def _if_there(control: Client, *what: str, **query: str | None) -> Json | None:
    """Return control's answer at a path; None if control is too old to have it."""
    try:
        return await control.get(path(*what), **query)
    except RequestRefused as refused:
        if refused.code != "no_such_path":
            raise
        return None


def well(node: Json) -> bool:
    """Return whether a node is online, at its target, and without an error or a warning."""
    return bool(node["at_target"]) and node["state"] == "online" and not node["error"] and not node["warnings"]


def _named(node: Json) -> str:
    return f"{node['name']} (revoked)" if node["state"] == "revoked" else str(node["name"])


def standing(node: Json) -> str:
    """Return the standing of a node as text: control's word, and the step of a sync."""
    word = str(node["standing"]).replace("_", " ")
    step = node["sync"]["step"] or "started" if node["sync"] and word == "syncing" else ""
    return f"{word} ({step})" if step else word


def release_of(node: Json) -> str:
    """Return which release of its group a node runs and, if different, which one it should run: 25 → 26."""
    runs, wanted = node.get("release"), node.get("target_release")  # which an older control doesn't return
    if wanted is None:
        return ""
    return str(wanted) if node["at_target"] else f"{'none' if runs is None else runs} → {wanted}"


def trouble(node: Json) -> list[str]:
    """Return a line for each reason why a node isn't well."""
    lines = []
    if node["state"] == "revoked":
        name, since = node["name"], output.ago(node["state_since"])
        return [
            f"revoked {since}: control refuses it, and it may well serve its last release on; "
            f"`skerry node delete {name}` takes it out for good, `skerry node token --rejoin {name}` lets it join again"
        ]
    if node["state"] == "offline":
        lines.append(f"offline since {output.ago(node['state_since'])}, last seen {output.ago(node['last_seen_at'])}")
    if node["error"] and not node["at_target"]:
        error = node["error"]
        failures = counted(node["failures"], "failure")
        lines.append(f"{error['message']} [{error['code']}], {output.ago(error['at'])}, {failures}")
        if node["retry_at"]:
            lines.append(f"next attempt {output.ago(node['retry_at'])} (`skerry node retry {node['name']}` for now)")
    lines += [f"{w['kind']}: {w['message']} (since {output.ago(w['since'])})" for w in node["warnings"]]
    return lines


def certificate_lines(held: Json) -> list[tuple[str, str | None]]:
    """Return a line and its style for each certificate's expiry, and for each problem with the certificates."""
    lines: list[tuple[str, str | None]] = [
        (
            f"certificates: {'control' if one['what'] == 'control' else 'CA ' + one['name']} until "
            f"{one['ends_at'][:10]} UTC ({output.ago(one['ends_at'])})",
            None,
        )
        for one in held["certificates"]
    ]
    return [*lines, *((f"certificates: {note.removeprefix('certificates: ')}", "red") for note in held["notes"])]


def _show(
    groups: list[Json],
    nodes: list[Json],
    fleet: Json | None,
    schedules: Json | None,
    rollouts: list[Json],
    limit: int,
) -> None:
    """Print groups with their open rollouts and schedules, and at most `limit` nodes, the worst ones; count the rest by
    standing."""
    shown = nodes
    if len(nodes) > limit:
        shown = sorted(nodes, key=lambda node: (well(node), STANDINGS.index(node["standing"]), node["name"]))[:limit]
    by_group: dict[str, tuple[list[Json], list[Json]]] = {}
    chosen = {node["id"] for node in shown}
    for node in nodes:
        by_group.setdefault(node["group"], ([], []))[node["id"] not in chosen].append(node)
    for group in groups:
        release = group["release"]
        told = (
            f"release {release['number']}, schema {release['schema_floor']}, "
            f"functions {output.functions(release['functions']) or 'none'}"
            if release
            else "no release yet"
        )
        output.say(f"group {group['name']}: {told}", style="bold")
        for rollout in rollouts:
            if rollout["group"] == group["name"]:
                style = "yellow" if rollout["state"] == "paused" else None
                output.say(f"  rollout of release {rollout['number']}: {rollout_views.standing(rollout)}", style=style)
        members, others = by_group.get(group["name"], ([], []))
        if members or not others:
            output.listed(members, NODES, "  no nodes", as_json=False)
        if others:
            output.say(f"  {_counted(others, bool(members))} (--limit shows more nodes)")
        for line in _releases(group["name"], fleet):
            output.say(f"  {line}")
        for line, style in _schedules(group["name"], schedules):
            output.say(f"  {line}", style=style)
        for node in members:
            for line in trouble(node):
                output.say(f"  {node['name']}: {line}", style="red")


def schedule_text(line: Json, last: str) -> str:
    """Return a line about a line of a function's schedule; `last`: what is said of its last run, if there was one."""
    facts = [last or "no run yet"]
    if line["next_run_at"]:
        facts.append(f"due {output.ago(line['next_run_at'])}")
    if line["late_seconds"] >= LATE:
        facts.append(f"late by {output.span(line['late_seconds'])}")
    if line["failures"]:
        facts.append(counted(line["failures"], "failure"))
    return f"{line['function']} {line['cron'] or 'after releases'}: {', '.join(facts)}"


def _schedules(group: str, found: Json | None) -> Iterator[tuple[str, str | None]]:
    """Yield a line and its style for each line of a schedule on the group's nodes, those that failed first."""
    lines = [] if found is None else [line for line in found["schedules"] if line["group"] == group]
    lines.sort(key=lambda line: (not line["failing"], -line["late_seconds"]))
    for line in lines[:MOST_LINES]:
        last = f"last run {output.ago(line['last_run_at'])}" if line["last_run_at"] else ""
        if line["failing"]:
            last += f", which failed on {line['failing']:,} of {counted(line['nodes'], 'node')} (as {line['example']})"
        yield f"schedule of {schedule_text(line, last)}", "red" if line["failing"] else None
    if len(lines) > MOST_LINES:
        yield f"and {counted(len(lines) - MOST_LINES, 'more line')} of schedules (--json has all)", None


def _counted(nodes: list[Json], is_rest: bool) -> str:
    """Return how many nodes aren't shown, by standing, the worst first."""
    counts = Counter(standing(node).partition(" (")[0] for node in nodes)
    words = [word for each in STANDINGS if (word := each.replace("_", " ")) in counts]
    told = ", ".join(f"{counts[word]:,} {word}" for word in words)
    return f"{counted(len(nodes), 'more node' if is_rest else 'node')}: {told}"


NODES: output.Columns = {
    "NODE": "name",
    "STANDING": standing,
    "RELEASE": release_of,
    "FUNCTIONS": lambda node: output.functions(node["functions"]),
    "SCHEMA": "schema_version",
    "SEEN": ago("last_seen_at"),
    "LAST SYNC": ago("last_sync_at"),
}
"""The columns shown for each node."""


def _releases(group: str, fleet: Json | None) -> list[str]:
    """Return a line for each release that the group's nodes run or whose functions were called recently."""
    if fleet is None:
        return []
    found = [release for seen in fleet["groups"] if seen["name"] == group for release in seen["releases"]]
    return [status_watch.release_line(release, fleet["minutes"]) for release in found]
