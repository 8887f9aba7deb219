"""`skerry-edge status`: what the running node serves, and whether it is at its target."""

import http.client
import ssl
import sys
from pathlib import Path
from typing import Any

import click
import orjson

from control.protocol.counts import counted
from edge_runtime.built import parts
from edge_runtime.cli.run import local_token
from edge_runtime.cli.support import JSON, fail, show
from edge_runtime.settings import LISTEN, EdgeSettingsError
from edge_runtime.state import RESERVE_BYTES
from edge_runtime.sync import identity
from edge_runtime.web import node_socket
from edge_runtime.web.node_socket import NodeAbsent, NodeSilent

STATUS_TIMEOUT = 5.0
NOT_RUNNING = 3
"""Exit status if the node isn't running."""
LATE = 60.0
"""Seconds from which on a tick is shown as late."""
HELD = "no: the node is held at what it brought back, until `skerry data resume`"


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
    its backup fails, its file of callers or its certificate can't be used or the certificate has ended or ends within
    30 days, 3 if it doesn't run.
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
    # A node without an agent (without control) is fine as long as it answers.
    away = document.get("control") and document.get("at_target") is not True
    trust = (document.get("control") or {}).get("trust") or {}
    if trust.get("error") or trust.get("ends_soon"):
        sys.exit(1)
    fails = (document.get("backup") or {}).get("error")
    if document.get("error") or away or fails or _database_ails(document) or _callers_lines(document):
        sys.exit(1)


def _who(state: Path | None) -> dict[str, Any]:
    if state is None:
        return {}
    try:
        who = identity.read(state)
    except identity.NotJoined as error:
        return {"identity": str(error)}
    return {"node": who.name, "node_id": who.node_id, "control": who.control_url}


def read_status(listen: str, token: str, *, tls: bool = False) -> dict[str, Any]:
    """Return the document of a node's /_skerry/status, requested over plain HTTP or `tls`.

    Raises: OSError, when no node answers; ValueError, when it refuses; EdgeSettingsError, when `listen` isn't an
    address.
    """
    host, _, port = listen.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 65_536):
        raise EdgeSettingsError(f"listen is {listen!r}; it must be HOST:PORT, as in {LISTEN}")
    host = host.removeprefix("[").removesuffix("]")
    # A node that listens on all addresses also answers on loopback.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104
    if tls:
        # It is this machine's own node, perhaps with an expired certificate, which is to be reported.
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
    """Return a node's status as text, one fact per line."""
    lines, refused = [], False
    if node := document.get("node"):
        lines.append(f"node       {node['name']} ({node['id']}), group {node['group']}")
    if control := document.get("control"):
        heard = f", last heard at {control['heard_at']}" if control["heard_at"] else ""
        answers = "answers" if control["reachable"] else "does not answer"
        if refused := control.get("refused", False):
            answers = "refuses this node's credential"
        lines.append(f"control    {control['url']} {answers}{heard}")
        lines += _trust_lines(control.get("trust") or {})
    held = bool(document.get("held"))
    lines.append(f"release    {_release(document.get('release'), document.get('confirmed'), held=held)}")
    if "at_target" in document:
        unknown = "not known while control refuses the node" if refused else "not known yet"
        at = {True: "yes", False: "no", None: unknown}[document["at_target"]]
        if held:
            brings = (document.get("restore") or {}).get("step")
            at = "no: the database is being brought back" if brings else HELD
        lines.append(f"at target  {at}")
    lines.append(f"schema     {document.get('schema_version', 0)}")
    if sync := document.get("sync"):
        step = f", step {sync['step']}" if sync.get("step") else ""
        lines.append(f"sync       to release {sync['release']}{step}, since {sync['started_at']}")
    lines += _rehearsal_lines(document.get("rehearsal") or {})
    lines += _restore_lines(document.get("restore") or {})
    for error in {
        e["code"]: e for e in (document.get("error"), (document.get("control") or {}).get("error")) if e
    }.values():
        lines.append(f"error      {error['code']} at {error['at']}: {error['message']}")
    if document.get("next_attempt"):
        lines.append(f"next try   {document['next_attempt']}")
    if (document.get("secrets") or {}).get("error"):
        lines.append(f"secrets    {document['secrets']['error']}")
    lines += _end_lines(document.get("tls") or {}) + _callers_lines(document)
    if "bytes" in document.get("database", {}) or _database_ails(document):
        lines.append(_database(document["database"]))
    lines += _backup_lines(document.get("backup") or {})
    lines += [f"built      {parts.told(name, part)}" for name, part in document.get("built", {}).items()]
    if unfenced := (document.get("workers") or {}).get("unfenced"):
        lines.append(f"unfenced   workers lack of their fence: {', '.join(unfenced)}")
    lines += [_function(function) for function in document.get("functions", [])]
    return "\n".join(lines) + "\n"


def _release(applied: dict[str, Any] | None, confirmed: dict[str, Any] | None, *, held: bool) -> str:
    """Return the release by control's number. A later one with the same functions and schema changes nothing here."""
    if confirmed is None:
        if applied is None:
            return "none" if held else "none yet"
        told = f"{applied['number']} (generation {applied['generation']})"
        return told if held else f"{told}, which control hasn't confirmed yet"
    told = f"{confirmed['number']} of group {confirmed['group']} (generation {confirmed['generation']})"
    if applied is None or applied["generation"] == confirmed["generation"]:
        return told
    return f"{told}, applied as release {applied['number']} (generation {applied['generation']})"


def _rehearsal_lines(rehearsal: dict[str, Any]) -> list[str]:
    """Return how far the rehearsal of a release is, or how the last one ended."""
    if not rehearsal:
        return []
    release = f"of release {rehearsal['release']}" if rehearsal["release"] is not None else "of a release"
    if rehearsal["outcome"] is None:
        step = f", step {rehearsal['step']}" if rehearsal["step"] else ", which control no longer wants"
        return [f"rehearsal  {release}{step}, since {rehearsal['started_at']}"]
    told = f"rehearsal  {release}: {rehearsal['outcome']} at {rehearsal['ended_at']}"
    if rehearsal["code"]:
        told += f", {rehearsal['code']}: {rehearsal['message']}"
    return [told + (f" Row: {rehearsal['row']}" if rehearsal["row"] else "")]


def _restore_lines(restore: dict[str, Any]) -> list[str]:
    """Return how far the node's database has been brought back, or how that ended last."""
    if not restore:
        return []
    if restore["outcome"] is None:
        of = f" of {restore['at']}" if restore["at"] else ""
        had = f", {restore['fetched'] >> 20} of {restore['bytes'] >> 20} MiB fetched" if restore["bytes"] else ""
        trouble = f": {restore['trouble']}" if restore["trouble"] else ""
        return [f"restore    the database{of}, step {restore['step']}{had}, since {restore['started_at']}{trouble}"]
    if restore["outcome"] == "failed":
        why = f"{restore['code']}: {restore['message']}"
        return [f"restore    failed at {restore['ended_at']}, and nothing was changed, {why}"]
    release = f"release {restore['release']}" if restore["release"] else "no release"
    kept = f"; the one of before is kept as {restore['kept']}" if restore["kept"] else ""
    return [f"restored   to the database of {restore['at']}, with {release}, at {restore['ended_at']}{kept}"]


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


def _backup_lines(backup: dict[str, Any]) -> list[str]:
    """Return how far the store is behind the database, and why it doesn't come nearer."""
    if not backup:
        return []
    every, lag, waits = f"every {backup['interval']:g} s", backup["lag_seconds"], backup["pending_bytes"]
    behind = f"it lacks what was written in the last {lag:.0f} s" if lag >= 1 else "it has everything"
    if not backup["reached"]:
        behind = f"it has nothing yet, after {lag:.0f} s"
    history = f", history {backup['lineage']} at {backup['reached']}" if backup["lineage"] else ""
    lines = [f"backup     to the store {every}: {behind}; {counted(waits, 'byte')} wait here{history}"]
    return lines + ([f"backup     {backup['error']}"] if backup["error"] else [])


def _function(function: dict[str, Any]) -> str:
    notes = ""
    if not function.get("runs", True):
        notes = " (can't be called: its code isn't here)"
    elif not function.get("compiled", True):
        notes = " (interpreted, until it is compiled)"
    if function.get("error"):
        notes += f" (can't be called: {function['error']['message']})"
    calls = function.get("calls") or {}
    # A client that disconnected is no failure of the function.
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
    told += [_schedule_line(line) for line in function.get("schedule", [])]
    told += [_release_calls(release) for release in function.get("releases", []) if release["calls"]]
    return "\n".join(told)


def _schedule_line(line: dict[str, Any]) -> str:
    """Return what is known of a line of a function's schedule, or of its calls after releases."""
    told = f"             {line['cron'] or 'after releases'}: "
    if line["last_run"] is None:
        told += "hasn't run yet"
    else:
        told += f"ran {line['last_run']}, {line['last_status']}"
    if line["late_seconds"] >= LATE:
        told += f", {line['late_seconds']:.0f} s late"
    if line["failures"]:
        told += f", {counted(line['failures'], 'failure')} since the start"
    return told + (f"; next {line['next_run']}" if line["next_run"] is not None else "")


def _release_calls(release: dict[str, Any]) -> str:
    """Return how a function's calls ended on one release."""
    went = f"{counted(release['calls'], 'call')}, {counted(release['errors'], 'error')}"
    return (
        f"             release {release['release']}: {went}, p50 {release['p50_ms']:g} ms, p99 {release['p99_ms']:g} ms"
    )


def _counts(times: dict[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in times.items())


def _trust_lines(trust: dict[str, Any]) -> list[str]:
    """Return until when the node trusts control, and why it rejects the CAs that control now gives out."""
    lines = [f"trust      CAs of control's good until {trust['ends_at']}"] if trust.get("ends_at") else []
    if trust.get("error"):
        lines.append(f"trust      the CAs that control gives out aren't taken: {trust['error']}")
    return lines


def _end_lines(tls: dict[str, Any]) -> list[str]:
    """Return until when the certificate of the local HTTP is valid."""
    good = tls.get("expires_at") and not tls.get("expired")
    return [f"local TLS  certificate good until {tls['expires_at']}"] if good else []


def _callers_lines(document: dict[str, Any]) -> list[str]:
    """Return what is, or soon will be, wrong with the callers file, the token file and the certificate."""
    callers, tls, token = (document.get(name) or {} for name in ("callers", "tls", "token"))
    lines = []
    if token.get("error"):
        lines.append(f"token      {token['error']}; the token that was read before stays in force")
    if callers.get("error"):
        lines.append(f"callers    {callers['error']}; the callers that were read before stay in force")
    if tls.get("error"):
        lines.append(f"tls        {tls['error']}; the certificate that was read before stays in use")
    if tls.get("expired"):
        lines.append(f"tls        the certificate ended at {tls['expires_at']}: clients refuse it")
    elif tls.get("ends_soon"):
        lines.append(f"tls        the certificate ends at {tls['expires_at']}: put another one in its place before")
    return lines
