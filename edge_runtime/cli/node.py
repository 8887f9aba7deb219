"""The commands of a node beside `run`: join, status, check."""

import asyncio
import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import orjson

from control.protocol.counts import counted
from edge_runtime.built import parts
from edge_runtime.cli import access_lines
from edge_runtime.cli.owner import told_owner
from edge_runtime.cli.run import local_token
from edge_runtime.settings import LISTEN, EdgeSettingsError
from edge_runtime.state import RESERVE_BYTES
from edge_runtime.sync import identity
from edge_runtime.sync.join import JoinFailed, join
from edge_runtime.web import node_socket
from edge_runtime.web.node_socket import NodeAbsent, NodeSilent

STATUS_TIMEOUT = 5.0
CHECK_TIMEOUT = 120.0
NOT_RUNNING = 3

STATE = click.option(
    "--state",
    envvar="SKERRY_EDGE_STATE",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The node's state directory.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, stable for scripts.")


@click.command("join")
@STATE
@click.option("--control", "control_url", required=True, help="https://HOST:PORT of control.")
@click.option(
    "--token",
    envvar="SKERRY_JOIN_TOKEN",
    show_envvar=True,
    required=True,
    help="The one-time token of `skerry node token`; better in SKERRY_JOIN_TOKEN, which other users can't see.",
)
@click.option(
    "--name", default=None, help="The node's name (default: with --again the name that it has, else the host's)."
)
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Told to control; may be repeated.")
@click.option(
    "--ca",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="PEM file of the authority of control's certificate, where neither the token nor the system knows it.",
)
@click.option("--again", is_flag=True, help="Exchange the identity that is there already for a new one.")
@JSON
def join_command(
    state: Path,
    control_url: str,
    token: str,
    name: str | None,
    labels: tuple[str, ...],
    ca: Path | None,
    again: bool,
    as_json: bool,
) -> None:
    """Become a node of a control plane, with a one-time token.

    An answer that got lost loses nothing: run the same command again.
    """
    pairs = {}
    for label in labels:
        key, equals, value = label.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{label!r} isn't KEY=VALUE", param_hint="--label")
        pairs[key] = value
    # Before the token is sent: it is good once. A folder that isn't there yet is made, for this user.
    if state.exists():
        check_owner(state, as_json)
    try:
        name = name or (_name_there(state) if again else None) or _host_name()
        made = asyncio.run(join(state, control_url, token, name, pairs, ca=ca, again=again))
    except JoinFailed as failed:
        raise fail(failed.code, failed.message, as_json) from None
    if as_json:
        show({"node_id": made.node_id, "name": made.name, "group": made.group, "control": made.control_url})
    else:
        click.echo(f"Joined {made.control_url} as node {made.name} ({made.node_id}) in the group {made.group}.")
        click.echo(f"Start it with: skerry-edge run --state {state}")


@click.command()
@click.option(
    "--listen",
    envvar="SKERRY_EDGE_LISTEN",
    default=LISTEN,
    show_default=True,
    help="HOST:PORT of the node, where its state directory isn't given.",
)
@click.option(
    "--state",
    envvar="SKERRY_EDGE_STATE",
    type=click.Path(file_okay=False, path_type=Path),
    help="The node's state directory: the node that runs there is asked, whatever its address and token.",
)
@click.option(
    "--tls-cert",
    envvar="SKERRY_EDGE_TLS_CERT",
    type=click.Path(path_type=Path),
    help="Its certificate, if it has one: the node is asked over TLS then.",
)
@JSON
def status(listen: str, state: Path | None, tls_cert: Path | None, as_json: bool) -> None:
    """What the running node serves, whether it is at its target, and if not why and until when.

    Without a state directory, whatever node is at --listen is asked. Where that has a token, SKERRY_EDGE_TOKEN or
    SKERRY_EDGE_TOKEN_FILE must say it here too. Where it has a file of callers and no token, they must say that of a
    caller with `pages = true`.

    Exits 0 if all is well, 1 if the node is not at its target, control can't be reached, its database takes no writes,
    its file of callers or its certificate can't be used or the certificate has ended or ends within 30 days, 3 if it
    doesn't run.
    """
    try:
        if state is not None:
            document = node_socket.ask(state, "status")
        else:
            document = read_status(listen, local_token(), tls=tls_cert is not None)
    except EdgeSettingsError as error:
        raise click.UsageError(str(error)) from None
    except NodeSilent as error:
        raise fail("status_unavailable", str(error), as_json) from None
    except (NodeAbsent, OSError) as error:
        who = _who(state)
        if as_json:
            show({"running": False, "error": {"code": "not_running", "message": str(error)}, **who})
        elif state is None:
            click.echo(f"No node answers on {listen} ({error}). Does it run, and is that where it listens (--listen)?")
        else:
            click.echo(f"No node runs on {state}: start it with `skerry-edge run --state {state}`.")
            for key, value in who.items():
                click.echo(f"{key}: {value}")
        sys.exit(NOT_RUNNING)
    except ValueError as error:
        raise fail("status_refused", str(error), as_json) from None
    if as_json:
        show({"running": True, **document})
    else:
        click.echo(render(document), nl=False)
    # A node without an agent (without control) is well as long as it answers.
    away = document.get("control") and document.get("at_target") is not True
    trust = (document.get("control") or {}).get("trust") or {}
    if trust.get("error") or trust.get("ends_soon"):
        sys.exit(1)
    if document.get("error") or away or _database_ails(document) or access_lines.callers_lines(document):
        sys.exit(1)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@JSON
def check(file: Path, as_json: bool) -> None:
    """Say whether a node could run this WASM module, and by which ABI; or why not.

    Exits 0 if it could, 1 if not. Control asks the same question at each upload.
    """
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-P", "-m", "edge_runtime.oneshot.check", "module", str(file)],
        capture_output=True,
        timeout=CHECK_TIMEOUT,
        check=False,
    )
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
        raise fail("check_crashed", f"the check of {file} ended with status {done.returncode}: {last[0]}", as_json)
    answer = json.loads(done.stdout)
    if not answer.pop("ok"):
        raise fail(answer["code"], answer["message"], as_json)
    if as_json:
        show({"ok": True, **answer})
    else:
        click.echo(f"{file}: a node can run it")
        for key, value in answer.items():
            told = {"None": "none", "True": "yes", "False": "no"}.get(str(value), value)
            click.echo(f"  {key.replace('_', ' ')}: {told}")


def read_status(listen: str, token: str, *, tls: bool = False) -> dict[str, Any]:
    """Return the document of a node's /_skerry/status, asked in plain HTTP or by `tls`.

    Raises: OSError, when no node answers; ValueError, when it refuses; EdgeSettingsError, when `listen` is no address.
    """
    host, _, port = listen.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 65_536):
        raise EdgeSettingsError(f"listen is {listen!r}; it must be HOST:PORT, as in {LISTEN}")
    host = host.removeprefix("[").removesuffix("]")
    # A node that listens on all addresses answers on loopback, too.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104
    if tls:
        # It is this machine's own node, perhaps with a certificate that has ended, as is to be told.
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, int(port), timeout=STATUS_TIMEOUT, context=context
        )
    else:
        connection = http.client.HTTPConnection(host, int(port), timeout=STATUS_TIMEOUT)
    try:
        connection.request("GET", "/_skerry/status", headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        body = answer.read()
    except http.client.HTTPException as error:
        raise ValueError(f"what listens on {listen} is no node: {error!r}") from None
    finally:
        connection.close()
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise ValueError(f"what listens on {listen} is no node: it answered {answer.status}") from None
    if answer.status != 200 or not isinstance(document, dict):
        why = str(document.get("detail", document) if isinstance(document, dict) else document)
        if answer.status in (401, 403):
            why += " Here, SKERRY_EDGE_TOKEN must have the node's token, or that of a caller with `pages = true`."
        raise ValueError(why)
    return document


def render(document: dict[str, Any]) -> str:
    """Return a node's status for a person, one fact per line."""
    lines, refused = [], False
    if node := document.get("node"):
        lines.append(f"node       {node['name']} ({node['id']}), group {node['group']}")
    if control := document.get("control"):
        heard = f", last heard at {control['heard_at']}" if control["heard_at"] else ""
        answers = "answers" if control["reachable"] else "does not answer"
        if refused := control.get("refused", False):
            answers = "refuses this node's credential"
        lines.append(f"control    {control['url']} {answers}{heard}")
        lines += access_lines.trust_lines(control.get("trust") or {})
    lines.append(f"release    {_release(document.get('release'), document.get('confirmed'))}")
    if "at_target" in document:
        unknown = "not known while control refuses the node" if refused else "not known yet"
        at = {True: "yes", False: "no", None: unknown}[document["at_target"]]
        lines.append(f"at target  {at}")
    lines.append(f"schema     {document.get('schema_version', 0)}")
    if sync := document.get("sync"):
        step = f", step {sync['step']}" if sync.get("step") else ""
        lines.append(f"sync       to release {sync['release']}{step}, since {sync['started_at']}")
    for error in {
        e["code"]: e for e in (document.get("error"), (document.get("control") or {}).get("error")) if e
    }.values():
        lines.append(f"error      {error['code']} at {error['at']}: {error['message']}")
    if document.get("next_attempt"):
        lines.append(f"next try   {document['next_attempt']}")
    if (document.get("secrets") or {}).get("error"):
        lines.append(f"secrets    {document['secrets']['error']}")
    lines += access_lines.end_lines(document.get("tls") or {}) + access_lines.callers_lines(document)
    if "bytes" in document.get("database", {}) or _database_ails(document):
        lines.append(_database(document["database"]))
    lines += [f"built      {parts.told(name, part)}" for name, part in document.get("built", {}).items()]
    if unfenced := (document.get("workers") or {}).get("unfenced"):
        lines.append(f"unfenced   workers lack of their fence: {', '.join(unfenced)}")
    lines += [_function(function) for function in document.get("functions", [])]
    return "\n".join(lines) + "\n"


def _release(applied: dict[str, Any] | None, confirmed: dict[str, Any] | None) -> str:
    """The release as control numbers it. A later one with the same functions and schema changes nothing here."""
    if confirmed is None:
        if applied is None:
            return "none yet"
        return f"{applied['number']} (generation {applied['generation']}), which control hasn't confirmed yet"
    told = f"{confirmed['number']} of group {confirmed['group']} (generation {confirmed['generation']})"
    if applied is None or applied["generation"] == confirmed["generation"]:
        return told
    return f"{told}, applied as release {applied['number']} (generation {applied['generation']})"


def _database_ails(document: dict[str, Any]) -> bool:
    database = document.get("database") or {"writes": "open", "checkpoint_error": None}
    held: bool = bool(database["checkpoint_error"] or database.get("held_by"))
    return held or database["writes"] == "refused" or _is_full(database)


def _is_full(database: dict[str, Any]) -> bool:
    return int(database.get("disk_free", RESERVE_BYTES)) < RESERVE_BYTES


def _database(database: dict[str, Any]) -> str:
    def mib(name: str) -> int:
        return int(database[name]) >> 20

    size = ""
    if "bytes" in database:
        size = f"{mib('bytes')} MiB, {mib('free_bytes')} of them free; its disk has {mib('disk_free')} MiB free; "
    refused = "; calls that may write are refused" if database["writes"] == "refused" else ""
    failed = f"; no checkpoint is made: {database['checkpoint_error']}" if database["checkpoint_error"] else ""
    held = f"; it is held by another program, {database['held_by']}" if database.get("held_by") else ""
    full = "; its disk is full (disk_full): calls that write fail, until rows are deleted" if _is_full(database) else ""
    log = f"its write-ahead log has {mib('wal_bytes')} MiB of {mib('wal_limit')}"
    return f"database   {size}{log}{full}{refused}{failed}{held}"


def _function(function: dict[str, Any]) -> str:
    notes = ""
    if not function.get("runs", True):
        notes = " (can't be called: its code isn't here)"
    elif not function.get("compiled", True):
        notes = " (interpreted, until it is compiled)"
    if function.get("error"):
        notes += f" (can't be called: {function['error']['message']})"
    calls = function.get("calls") or {}
    # A client that went away is no failure of the function.
    failed = {code: times for code, times in calls.items() if code not in ("ok", "client_gone")}
    if failed:
        notes += f" (of {counted(sum(calls.values()), 'call')}: {_counts(failed)})"
    if function.get("denied"):
        notes += f" (denied: {_counts(function['denied'])})"
    breaker = function.get("breaker") or {"state": "closed"}
    if breaker["state"] != "closed":
        left = breaker["seconds_left"]
        until = f"for {max(1.0, left):.0f} s" if left else "until its next call ends well"
        notes += f" (cut off {until}: its calls ended their processes)"
    told = [f"function   {function['name']} version {function['version']}{notes}"]
    told += [_release_calls(release) for release in function.get("releases", []) if release["calls"]]
    return "\n".join(told)


def _release_calls(release: dict[str, Any]) -> str:
    """How a function's calls went on one release."""
    went = f"{counted(release['calls'], 'call')}, {counted(release['errors'], 'error')}"
    return (
        f"             release {release['release']}: {went}, p50 {release['p50_ms']:g} ms, p99 {release['p99_ms']:g} ms"
    )


def _counts(times: dict[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in times.items())


def check_owner(state: Path, as_json: bool, *, or_root: bool = False) -> None:
    """Check that this process is the state directory's user: files that another one makes there would be closed to the
    node. `or_root`: nothing is made, so it may be root's as well. Raises: click's, when it isn't, or there is no such
    folder."""
    try:
        refusal = told_owner(state)
    except FileNotFoundError:
        told = f"there is no folder {state}: --state names the node's state directory, which `skerry-edge join` made"
        raise fail("state_unusable", told, as_json) from None
    except OSError as error:
        raise fail("state_unusable", f"the state directory {state} can't be used: {error}", as_json) from None
    if refusal and not (or_root and not os.geteuid()):
        raise fail("state_of_another_user", refusal, as_json)


def _who(state: Path | None) -> dict[str, Any]:
    if state is None:
        return {}
    try:
        who = identity.read(state)
    except identity.NotJoined as error:
        return {"identity": str(error)}
    return {"node": who.name, "node_id": who.node_id, "control": who.control_url}


def _name_there(state: Path) -> str | None:
    """The name of the node that the state directory belongs to, if that can be read."""
    try:
        return identity.read(state).name
    except identity.NotJoined:
        return None


def _host_name() -> str:
    name = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().split(".")[0].lower()).strip("-")[:63]
    if not name:
        raise click.UsageError("the host's name can't be a node's: give --name")
    return name


def fail(code: str, message: str, as_json: bool) -> click.exceptions.Exit:
    if as_json:
        show({"error": {"code": code, "message": message}})
    else:
        click.echo(f"Error: {message} [{code}]", err=True)
    return click.exceptions.Exit(1)


def show(value: dict[str, Any]) -> None:
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2))
