"""`skerry status`: who runs what, who is late or failing, and why."""

import click

from control.cli import artifacts
from control.cli.support import options, output
from control.cli.support.client import Client, Json, NotConverged, RequestRefused, path


@click.command()
@click.option("--group", type=options.NAME, help="Only the nodes of this group.")
@click.option("--check", is_flag=True, help="Exit with 5 unless all nodes are online and at target, the store well.")
@options.json_option
@options.asynchronous
async def command(group: str | None, check: bool, as_json: bool) -> None:
    """Show who runs what, who is late or failing, and why."""
    async with options.client() as control:
        groups = [g for g in await control.items(path("groups")) if group in (None, g["name"])]
        nodes = await control.items(path("nodes"), group=group)
        store = await _store(control)
    if as_json:
        output.document({"groups": groups, "nodes": nodes, "artifact_store": store})
    else:
        _show(groups, nodes)
        if store is not None:
            for line in artifacts.trouble(store):
                output.say(f"artifacts: {line}", style="red" if store["problem"] else "yellow")
    bad = [node["name"] for node in nodes if not well(node)]
    if store is not None and store["problem"]:
        bad.append("the artifact store")
    if check and bad:
        raise NotConverged(f"not well: {', '.join(bad)}", code="not_converged")


async def _store(control: Client) -> Json | None:
    """Return what control says of its bucket of artifacts; None where control is too old to have that path."""
    try:
        return await control.get(path("artifact-store"))
    except RequestRefused as refused:
        if refused.code != "no_such_path":
            raise
        return None


def well(node: Json) -> bool:
    """Whether a node is online, at its target, and without an error or a warning."""
    return bool(node["at_target"]) and node["state"] == "online" and not node["error"] and not node["warnings"]


def standing(node: Json) -> str:
    """Say how a node stands: control's word, and of a sync the step."""
    word = str(node["standing"]).replace("_", " ")
    step = node["sync"]["step"] or "started" if node["sync"] and word == "syncing" else ""
    return f"{word} ({step})" if step else word


def trouble(node: Json) -> list[str]:
    """A line for each reason why a node isn't well."""
    lines = []
    if node["state"] == "offline":
        lines.append(f"offline since {output.ago(node['state_since'])}, last seen {output.ago(node['last_seen_at'])}")
    if node["error"] and not node["at_target"]:
        error = node["error"]
        lines.append(f"{error['message']} [{error['code']}], {output.ago(error['at'])}, {node['failures']} failures")
        if node["retry_at"]:
            lines.append(f"next attempt {output.ago(node['retry_at'])} (`skerry node retry {node['name']}` for now)")
    lines += [f"{w['kind']}: {w['message']} (since {output.ago(w['since'])})" for w in node["warnings"]]
    return lines


def _show(groups: list[Json], nodes: list[Json]) -> None:
    for group in groups:
        release = group["release"]
        told = (
            f"release {release['number']}, schema {release['schema_floor']}, "
            f"functions {output.functions(release['functions']) or 'none'}"
            if release
            else "no release yet"
        )
        output.say(f"group {group['name']}: {told}", style="bold")
        members = [node for node in nodes if node["group"] == group["name"]]
        output.table(
            ["NODE", "STANDING", "FUNCTIONS", "SCHEMA", "SEEN", "LAST SYNC"],
            [
                [
                    node["name"],
                    standing(node),
                    output.functions(node["functions"]),
                    node["schema_version"],
                    output.ago(node["last_seen_at"]),
                    output.ago(node["last_sync_at"]),
                ]
                for node in members
            ],
            "  no nodes",
        )
        for node in members:
            for line in trouble(node):
                output.say(f"  {node['name']}: {line}", style="red")
