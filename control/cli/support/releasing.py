"""Make a release and show what it changes, for `function push`, `schema add`, `schema amend`, `release create`."""

from control import manifests
from control.cli.support import output, waiting
from control.cli.support.client import Client, Json, path


async def create(control: Client, body: Json, *, wait: bool, within: float, as_json: bool) -> Json:
    """Make the release and show it. With `wait`, follow its nodes up to `within` seconds; the answer then has `nodes`.

    Raises: NotConverged, when a node failed or was late; else as `Client.call` does.
    """
    release = await control.post(path("releases"), body)
    if not as_json:
        show(release)
    if wait:
        release["nodes"] = await waiting.follow(control, release, within, quiet=as_json)
    return release


def allowing(body: Json, allow_unfit: bool) -> Json:
    """Return `body`, with `allow_unfit` only where it is wished: an older control refuses a field it doesn't know."""
    return {**body, "allow_unfit": True} if allow_unfit else body


def show(release: Json, *, planned: bool = False) -> None:
    """Print a release and what it changes; `planned`: it hasn't been made."""
    verb = "would be" if planned else "is"
    output.say(
        f"release {release['number']} of group {release['group']} {verb} made (generation {release['generation']}):"
        f" schema {release['schema_floor']}, functions {output.functions(release['functions']) or 'none'}"
    )
    lines = list(changes(release.get("changes") or {}))
    for line, style in lines:
        output.say(f"  {line}", style=style)
    if not lines:
        output.say("  nothing changes")
    for line in unfit(release.get("unfit") or {}):
        output.say(f"  {line}", style="red")


def changes(changed: Json) -> list[tuple[str, str]]:
    """Return a line and its colour for everything that a release adds, changes and removes."""
    lines = [(f"+ {_text(item)}", "green") for item in changed.get("add", [])]
    lines += [(f"~ {_text(item)}", "yellow") for item in changed.get("change", [])]
    lines += [(f"- {_text(item)} is removed", "red") for item in changed.get("remove", [])]
    lines += [(f"+ schema change {_text(item)}", "green") for item in changed.get("schema", [])]
    lines += [(f"! {_granted(item)}", "yellow") for item in changed.get("grants", [])]
    return lines


def unfit(found: Json) -> list[str]:
    """Return a line for each node that control names as unable to run the release, and one for the others."""
    nodes = found.get("nodes", [])
    lines = [f"! node {node['name']} can't run it, it lacks {' and '.join(node['lacks'])}" for node in nodes]
    others = found.get("count", 0) - len(nodes)
    if others > 0:
        lines.append(f"! {others} other {'nodes' if others > 1 else 'node'} can't run it")
    return lines


def _granted(item: Json) -> str:
    """Return the line of a grant that a new version has and the one before hadn't, or had otherwise."""
    grant, before, after = item["grant"], item["from"], item["to"]
    new = f"{item['name']} {grant}: {manifests.shown(grant, after)}"
    return new if before is None else f"{new} (was: {manifests.shown(grant, before)})"


def _text(item: object) -> str:
    if not isinstance(item, dict):
        return str(item)
    if "number" in item:
        return f"{item['number']} {item.get('name', '')}".strip()
    if "from" in item and "to" in item:
        return f"{item['name']} {item['from']} -> {item['to']}"
    return f"{item['name']}@{item['version']}" if "version" in item else str(item.get("name", item))
