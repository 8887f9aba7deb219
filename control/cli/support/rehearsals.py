"""What nodes found when they rehearsed a release, as tables by outcome, and whether that lets it go out."""

from collections import defaultdict
from collections.abc import Sequence

from control.cli.support import output, rollout_views
from control.cli.support.client import Json, NotConverged
from control.cli.support.rollout_following import rehearsal_error
from control.protocol.counts import counted

OUTCOMES = ("failed", "unknown", "passed")
"""In the order in which they are shown."""
SHOWN = 5
"""Maximum nodes that a line names."""


def show(nodes: Sequence[Json], limit: int) -> None:
    """Print nodes' rehearsals by outcome, at most `limit` of each, those with the longest stalls first; count the rest.

    Different schemas that result, which no release should have, are said below, in red.
    """
    for outcome in OUTCOMES:
        of = [node for node in nodes if node["outcome"] == outcome]
        if not of:
            continue
        output.say(f"{outcome} on {counted(len(of), 'node')}", style=rollout_views.STYLES[outcome])
        of.sort(key=lambda node: (-longest_stall(node), node["name"]))
        rows = [row for node in of[:limit] for row in _rows(node)]
        columns = COLUMNS if outcome == "passed" else (*COLUMNS, "WHY", "ROW")
        output.table(columns, [row[: len(columns)] for row in rows], "")
        if len(of) > limit:
            output.say(f"  {counted(len(of) - limit, 'more node')} (--limit shows more)")
    if not nodes:
        output.say("no node has told how its rehearsal went")
    for line, style in digests(nodes):
        output.say(line, style=style)


COLUMNS = ("NODE", "CHANGE", "ROWS", "TIME", "LONGEST STALL", "SCHEMA", "TOOK", "COPY")


def _rows(node: Json) -> list[list[object]]:
    """Return the rows of a node: one for each schema change; the first has what is about the whole rehearsal."""
    # Control leaves out what is zero or empty.
    changes = [
        [
            f"{change['number']} {change.get('name', '')}".strip(),
            f"{change.get('rows', 0):,}",
            output.span(change.get("seconds", 0.0)),
            output.span(change.get("stall", 0.0)),
        ]
        for change in node["changes"]
    ] or [["", "", "", ""]]
    tried = node["seconds"] or node["database"]
    whole = [node["schema_digest"][:12], output.span(node["seconds"]) if tried else ""]
    whole += [output.size(node["database"]) if tried else ""]
    why = "" if node["outcome"] == "passed" else rehearsal_error({**node, "row": ""})
    first = [node["name"], *changes[0], *whole, why, node["row"]]
    return [first, *([" ", *change, " ", " ", " ", " ", " "] for change in changes[1:])]


def longest_stall(node: Json) -> float:
    """Return the longest time in seconds for which a node's writers must expect to wait."""
    return max((change.get("stall", 0.0) for change in node["changes"]), default=0.0)


def digests(nodes: Sequence[Json]) -> list[tuple[str, str]]:
    """Return a line, and its style, about the schema that results, or one for each if there are several."""
    by_digest: dict[str, list[str]] = defaultdict(list)
    for node in nodes:
        if node["schema_digest"] and node["outcome"] == "passed":
            by_digest[node["schema_digest"]].append(node["name"])
    if len(by_digest) < 2:
        return [(f"schema {digest[:12]} on {counted(len(names), 'node')}", "") for digest, names in by_digest.items()]
    lines = [("! the schemas that result are NOT the same on all nodes:", "bold red")]
    for digest, names in sorted(by_digest.items(), key=lambda item: -len(item[1])):
        more = ", …" if len(names) > SHOWN else ""
        named = ", ".join(sorted(names)[:SHOWN])
        lines.append((f"!   schema {digest[:12]} on {counted(len(names), 'node')}: {named}{more}", "bold red"))
    return lines


def check(rollout: Json, nodes: Sequence[Json]) -> None:
    """Check that a rehearsal failed on no node, and that no more nodes are unknown than the policy allows.

    Raises: NotConverged, which names nodes on which it failed.
    """
    if rollout["state"] == "done" or (rollout["waits_for"] != "failed" and rollout["step"] > 0):
        return  # Somebody has sent it to nodes meanwhile: it passed.
    if rollout["state"] == "paused" and rollout["waits_for"] == "rehearsed":
        return
    failed = [f"{node['name']}: {rehearsal_error(node)}" for node in nodes if node["outcome"] == "failed"]
    named = "; ".join(failed[:SHOWN]) + (f"; and {counted(len(failed) - SHOWN, 'other')}" if failed[SHOWN:] else "")
    raise NotConverged(
        f"release {rollout['number']} of group {rollout['group']}: {rollout_views.standing(rollout)}"
        + (f": {named}" if named else ""),
        code="rehearsal_not_passed",
        cure=rollout_views.onward(rollout),
    )
