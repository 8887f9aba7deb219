"""`skerry node`: the edge locations."""

from typing import Any, get_args

import click

from control import tokens
from control.backups.backup_faults import Fault
from control.cli import status
from control.cli.support import options, output, record_stream, releasing
from control.cli.support.client import Json, connection_settings, path
from control.cli.support.lists import ago, list_command
from control.protocol.command_line import CommandGroup, DurationType
from control.protocol.manifest import MANIFEST_FIELDS
from control.sync.standing import STANDINGS

SHOWN = 100
"""Maximum nodes in a list for people."""
UNSEEN = DurationType(1, whole=True, plain=True)
NODES: output.Columns = {
    "NODE": "name",
    "GROUP": "group",
    "STANDING": status.standing,
    "SEEN": ago("last_seen_at"),
    "RELEASE": status.release_of,
    "SCHEMA": "schema_version",
    "FUNCTIONS": lambda node: output.functions(node["functions"]),
}
"""The columns of the list of nodes."""
STATES = ("online", "offline", "syncing", "revoked")
CODES_SHOWN = 4
"""Maximum error codes of a function's calls that `--calls` shows: the most frequent ones."""


@click.group(cls=CommandGroup, renamed={"remove": "delete"})
def command() -> None:
    """Nodes: the edge locations."""


@command.command("list")
@click.option("--group", type=options.NAME, help="Only the nodes of this group.")
@click.option("--state", type=click.Choice(STATES), help="Only the nodes in this state.")
@click.option("--standing", type=click.Choice(STANDINGS), help="Only the nodes that stand so.")
@click.option("--error", metavar="CODE", help="Only the nodes that are failing with this code.")
@click.option("--label", metavar="KEY=VALUE", help="Only the nodes with this label; KEY alone: of any value.")
@click.option("--find", metavar="TEXT", help="Only the nodes with this in their names.")
@click.option("--release", type=click.IntRange(1), metavar="N", help="Only the nodes that run their group's release N.")
@click.option("--overdue", is_flag=True, help="Only the nodes that are overdue.")
@click.option("--backup", type=click.Choice(get_args(Fault)), help="Only the nodes whose backup has this fault.")
@click.option("--unseen", type=UNSEEN, help="Only the nodes unseen for so long: 5m.")
@click.option(
    "--sort",
    type=click.Choice(["name", "standing", "seen"]),
    help="By name (as usual), the worst standing first, or the longest unseen first.",
)
@click.option(
    "--limit", type=click.IntRange(1, 100_000), help=f"The first so many; without it {SHOWN}, or with --json all."
)
@options.json_option
@options.asynchronous
async def list_nodes(overdue: bool, limit: int | None, as_json: bool, **filters: Any) -> None:
    """List the nodes."""
    most = limit if limit is not None or as_json else SHOWN
    async with options.client() as control:
        query: dict[str, Any] = {**filters, "overdue": "true" if overdue else None}
        # One more shows whether there are more.
        nodes = await control.items(path("nodes"), most=None if most is None else most + 1, **query)
    if most is not None and len(nodes) > most:
        nodes = nodes[:most]
        output.note(f"there are more: these are the first {most:,} (--limit; `skerry status` counts them)")
    empty = "no nodes: `skerry node token` makes a token for one to join with"
    output.listed(nodes, NODES, empty, as_json=as_json)


@command.command()
@click.argument("node")
@click.option("--calls", is_flag=True, help="Also ask the node for the calls, errors and times of its functions.")
@options.json_option
@options.asynchronous
async def show(node: str, calls: bool, as_json: bool) -> None:
    """Show one node (a name or an id): what it runs, what it should run, and what is wrong."""
    async with options.client() as control:
        found = await control.get(path("nodes", node))
    if calls:
        found["calls"] = await _counted_calls(found)
    output.shown(found, _details, as_json=as_json)
    if calls and not as_json:
        _show_calls(found["calls"])


def _details(node: Json) -> list[tuple[str, object]]:
    error, sync = node["error"], node["sync"]
    target = "at target" if node["at_target"] else f"target {node['target_generation']}"
    rows: list[tuple[str, object]] = [
        ("node", f"{node['name']} ({node['id']})"),
        ("group", node["group"]),
        ("labels", " ".join(f"{key}={value}" for key, value in node["labels"].items())),
        ("version", node.get("version") or _told_edge(node) or "not told"),
        ("standing", status.standing(node)),
        ("state", f"{node['state']} since {output.ago(node['state_since'])}"),
        ("seen", output.ago(node["last_seen_at"])),
        ("last sync", output.ago(node["last_sync_at"])),
        ("credential", _credential(node["credential"])),
        ("release", status.release_of(node)),
        ("generation", f"{node['generation']}, {target}"),
        ("schema", f"{node['schema_version']} (target {node['target_schema']})"),
        *[
            ("", f"change {c['number']} in revision {c['revision']}; the newest is {c['newest']}")
            for c in node.get("older_revisions", [])
        ],
        ("functions", output.functions(node["functions"])),
        ("failures", node["failures"]),
        ("folded syncs", f"{node['syncs_folded']} (attempts without a line of their own in `skerry syncs list`)"),
        *_numbers(node.get("numbers")),
        *_capabilities(node.get("capabilities") or {}, node.get("protocol")),
    ]
    if node.get("held"):  # which an older control doesn't return
        text = f"it gets no release until `skerry data resume {node['name']}`; `skerry data list` shows its restore"
        rows.append(("held", text))
    if sync:
        rows.append(("sync", f"{sync['status']}, step {sync['step'] or '-'}, started {output.ago(sync['started_at'])}"))
    if error:
        rows.append(("error", f"{error['message']} [{error['code']}], {output.ago(error['at'])}"))
    if node["retry_at"]:
        rows.append(("next attempt", output.ago(node["retry_at"])))
    rows += [("warning", f"{w['kind']}: {w['message']} (since {output.ago(w['since'])})") for w in node["warnings"]]
    return rows


def _credential(credential: Json | None) -> str:
    if credential is None:
        return "none is valid: `skerry node token --rejoin` lets the node join again"
    ends, limit = credential["ends_at"], credential["return_until"]
    if output.passed(limit):
        return f"ended {output.ago(ends)}; too old to return with: `skerry node token --rejoin` lets it join again"
    if output.passed(ends):
        return f"ended {output.ago(ends)}; the node may return with it until {limit}"
    return f"ends {output.ago(ends)} ({ends}); the node renews it by itself, until {limit}"


def _numbers(told: Json | None) -> list[tuple[str, object]]:
    """Return lines with the numbers that the node last reported about itself, and with its functions' schedules."""
    if told is None:
        return []
    sizes = ", ".join(
        f"{name} {told[key] / 1e6:,.0f} MB"
        for name, key in (
            ("database", "database_bytes"),
            ("its log", "wal_bytes"),
            ("free disk", "disk_free_bytes"),
            ("memory", "memory_bytes"),
        )
    )
    rows: list[tuple[str, object]] = [("numbers", f"{sizes} (told {output.ago(told['told_at'])})")]
    for line in told.get("schedules", []):  # which an older control doesn't return
        last = f"last run {output.ago(line['last_run_at'])} ({line['last_status']})" if line["last_run_at"] else ""
        rows.append(("schedule", status.schedule_text(line, last)))
    return rows


def _told_edge(node: Json) -> str:
    """Return the version that a node reported with its numbers, the only place where earlier versions report it."""
    told = node.get("numbers")
    return "" if told is None else str(told["edge"])


def _capabilities(told: Json, protocol: object) -> list[tuple[str, object]]:
    """Return lines about what the node says it can run. Only `manifest` is interpreted; the rest is shown as is."""
    if not told:
        return [("capabilities", "not told yet")]
    values = {**told, "protocol": protocol}
    rows: list[tuple[str, object]] = []
    if isinstance(told.get("manifest"), list):
        known = values.pop("manifest")
        unknown = [field for field in MANIFEST_FIELDS if field not in known]
        rows.append(("manifest", f"all fields but {', '.join(unknown)}" if unknown else "all fields"))
    texts = [f"{name} {' '.join(map(str, v)) if isinstance(v, list) else v}" for name, v in values.items()]
    return [("capabilities", ", ".join(texts)), *rows]


@command.group(cls=CommandGroup, invoke_without_command=True)
@options.group_option
@click.option(
    "--expires-in",
    type=DurationType(60, 30 * 86400, whole=True, plain=True),
    default="1h",
    show_default=True,
    help="How long it is good for.",
)
@click.option(
    "--rejoin", type=options.NAME, metavar="NODE", help="Let this node join again, after its disk was lost or replaced."
)
@options.json_option
@click.pass_context
def token(context: click.Context, group: str, expires_in: int, rejoin: str | None, as_json: bool) -> None:
    """Make a one-time token with which one node joins; it is shown only once.

    With a subcommand: list the tokens, or revoke one.
    """
    if context.invoked_subcommand is None:
        _make_token(group, expires_in, rejoin, as_json)


token.add_command(
    list_command(
        "join-tokens",
        "List the join tokens, newest first. Their secrets aren't shown: control doesn't have them.",
        {
            "TOKEN": "id",
            "GROUP": "group",
            "REJOINS": "rejoin",
            "BY": "created_by",
            "MADE": ago("created_at"),
            "ENDS": ago("expires_at"),
            "STATE": "state",
            "NODE": "node",
        },
        "no join tokens",
        click.option(
            "--state", type=click.Choice(["open", "used", "expired", "revoked"]), help="Only the tokens in this state."
        ),
    )
)


@token.command("revoke")
@click.argument("token")
@options.json_option
@options.asynchronous
async def revoke_token(token: str, as_json: bool) -> None:
    """Revoke a join token, by its id in the list, or by itself: no node can join with it any more."""
    # The secret in it is in no URL, and so in no log.
    id = (tokens.parse("join", token) or (token,))[0]
    if not tokens.ID.fullmatch(id):
        raise click.BadParameter("it is no join token, and no id of one: `skerry node token list` has the ids")
    async with options.client() as control:
        await control.delete(path("join-tokens", id))
    output.answered({"id": id, "revoked": True}, f"{id}: the token is refused from now on", as_json=as_json)


@options.asynchronous
async def _make_token(group: str, expires_in: int, rejoin: str | None, as_json: bool) -> None:
    body: Json = {"group": group, "expires_in": expires_in}
    if rejoin is not None:
        body["rejoin"] = rejoin
    async with options.client() as control:
        made = await control.post(path("join-tokens"), body)
    if as_json:
        output.document({**made, "url": control.url})
        return
    name, again = (rejoin, " --again") if rejoin else ("NAME", "")
    output.say(made["token"])
    output.note(f"Good once, until {made['expires_at']}, for group {made['group']}. On the node:")
    output.note(f"  SKERRY_JOIN_TOKEN={made['token']} \\")
    output.note(f"    skerry-edge join --control {control.url} --name {name} --state DIR{again}")
    output.note("  skerry-edge run --state DIR")


@command.command()
@click.argument("node")
@click.argument("group", type=options.NAME)
@options.change_options
@options.json_option
@options.asynchronous
async def move(node: str, group: str, plan: bool, allowed: Json, as_json: bool) -> None:
    """Move a node to another group, whose release is its target then."""
    async with options.client() as control:
        where = path("nodes", node, "move")
        moved = await (control.get(where, group=group) if plan else control.post(where, {"group": group, **allowed}))
    if plan:
        output.document(moved) if as_json else releasing.show_move(moved)
        return
    line = f"{moved['name']} is in group {moved['group']} now (target generation {moved['target_generation']})"
    output.answered(moved, line, as_json=as_json)


@command.command()
@click.argument("node")
@click.argument("name", type=options.NAME)
@options.json_option
@options.asynchronous
async def rename(node: str, name: str, as_json: bool) -> None:
    """Give a node another name; its id, its records and its target stay. It learns the name by its next poll."""
    async with options.client() as control:
        renamed = await control.post(path("nodes", node, "rename"), {"name": name})
    output.answered(renamed, f"{node}: is called {renamed['name']} now", as_json=as_json)


@command.command()
@click.argument("node")
@click.argument("labels", nargs=-1, required=True, metavar="KEY=VALUE|KEY-...")
@options.json_option
@options.asynchronous
async def label(node: str, labels: tuple[str, ...], as_json: bool) -> None:
    """Set labels of a node (KEY=VALUE), and take others away (KEY-); what isn't named stays."""
    given, gone = dict[str, str](), list[str]()
    for text in labels:
        key, equals, value = text.partition("=")
        if equals and key:
            given[key] = value
        elif text.endswith("-") and len(text) > 1:
            gone.append(text[:-1])
        else:
            raise click.BadParameter(f"{text!r} is neither KEY=VALUE nor KEY-", param_hint="LABELS")
    async with options.client() as control:
        labelled = await control.post(path("nodes", node, "labels"), {"set": given, "remove": gone})
    told = " ".join(f"{key}={value}" for key, value in sorted(labelled["labels"].items()))
    output.answered(labelled, f"{labelled['name']}: {told or 'no labels'}", as_json=as_json)


@command.command()
@click.argument("node")
@options.json_option
@options.asynchronous
async def revoke(node: str, as_json: bool) -> None:
    """Revoke a node's credentials: control refuses it from now on; it goes on serving its last release.

    It stays in the lists, as `revoked`, until it joins again (`skerry node token --rejoin`) or is deleted
    (`skerry node delete`).
    """
    async with options.client() as control:
        await control.post(path("nodes", node, "revoke"))
    line = f"{node}: its credentials are refused from now on"
    output.answered({"node": node, "revoked": True}, line, as_json=as_json)


@command.command()
@click.argument("node")
@options.json_option
@options.asynchronous
async def retry(node: str, as_json: bool) -> None:
    """Let a node that failed try again now, without waiting for its next attempt."""
    async with options.client() as control:
        await control.post(path("nodes", node, "retry"))
    output.answered({"node": node, "retry": True}, f"{node}: tries again with its next poll", as_json=as_json)


@command.command()
@click.argument("node")
@options.yes_option
@options.json_option
@options.asynchronous
async def delete(node: str, yes: bool, as_json: bool) -> None:
    """Delete a node: its credentials are revoked and it leaves the lists; its records in the logs stay."""
    options.confirm(f"Delete node {output.clean(node)} and revoke its credentials?", yes)
    async with options.client() as control:
        await control.delete(path("nodes", node))
    # Under both names, since scripts may read the old one.
    output.answered({"node": node, "deleted": True, "removed": True}, f"{node}: is deleted", as_json=as_json)


async def _counted_calls(node: Json) -> list[Json] | None:
    """Ask the node for its counts of each function and release; without an answer, say so on stderr and return None.

    Raises: what `record_stream.parts` raises.
    """
    if "functions" not in (node.get("capabilities") or {}).get("questions", ()):
        output.note("its version of skerry-edge doesn't tell what it has counted of calls", style="yellow")
        return None
    found: list[Json] = []
    answered = False
    async with record_stream.RecordClient(connection_settings()) as control:
        async for part in record_stream.parts(control, {"kind": "functions", "node": node["id"]}):
            if part.record is not None:
                found.append(part.record)
            elif part.notice is not None and part.notice["notice"] == "history":
                answered = bool(part.notice.get("count"))
    if not answered:
        why = f"it is {node['state']}" if node["state"] in ("offline", "revoked") else "it didn't answer within 10 s"
        output.note(f"{why}, so it isn't known what it has counted of calls", style="yellow")
        return None
    return sorted(found, key=lambda one: (one.get("function", ""), -one.get("release", 0)))


def _show_calls(calls: list[Json] | None) -> None:
    """Print a table of a node's call counts."""
    if calls is None:
        return
    columns: output.Columns = {
        "FUNCTION": lambda one: one.get("function", ""),
        "VERSION": lambda one: one.get("version") or "-",
        "RELEASE": lambda one: one.get("release") or "earlier",
        "CALLS": lambda one: one.get("calls", 0),
        "FAILED": lambda one: one.get("failed", 0),
        "P50": lambda one: _milliseconds(one, "p50"),
        "P99": lambda one: _milliseconds(one, "p99"),
        "CODES": lambda one: _outcomes(one.get("outcomes", {})),
    }
    output.listed(calls, columns, "it has served no function since it started", as_json=False)
    if calls:
        output.note(f"counted since the node started, {calls[0]['since']}")


def _milliseconds(counted: Json, name: str) -> str:
    return f"{counted.get(name, 0.0) * 1000:.1f} ms" if counted.get("calls") else "-"


def _outcomes(outcomes: dict[str, int]) -> str:
    often = sorted(outcomes.items(), key=lambda pair: (-pair[1], pair[0]))[:CODES_SHOWN]
    return ", ".join(f"{code} {count}" for code, count in often)
