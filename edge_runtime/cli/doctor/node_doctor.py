"""`skerry-edge doctor`."""

import asyncio
import logging
import sys
import time
from pathlib import Path
from typing import Any, Final

import click

from control.protocol import findings, version
from control.protocol.findings import Finding
from edge_runtime import logs
from edge_runtime.built import parts
from edge_runtime.cli.doctor import (
    control_connection,
    machine,
    running_node,
    setting_rules,
    state_files,
    systemd_unit,
)
from edge_runtime.cli.doctor.setting_rules import Values
from edge_runtime.cli.run import run_options, settings_of, shown_settings
from edge_runtime.cli.support import JSON, STATE, show
from edge_runtime.settings import WAL_LIMIT, processors
from edge_runtime.state import closed
from edge_runtime.sync import authorities, identity
from edge_runtime.web import node_socket
from edge_runtime.web.node_socket import NodeAbsent, NodeSilent

START: Final = "systemctl reset-failed 'skerry-edge.*' && systemctl start skerry-edge"
"""Works even if systemd has given up on the node or its socket."""
EXITS: Final = {"ok": 0, "note": 4, "wrong": 1}
"""Exit status by the worst level. 2 is wrong usage, as for all commands."""


@click.command()
@STATE
@run_options
@click.option("--verbose", is_flag=True, help="Show what is as it should be, too.")
@JSON
def doctor(state: Path, form: logs.Format, debug: bool, verbose: bool, as_json: bool, **given: Any) -> None:
    """Look for what is wrong with this machine's node, or will soon be, and say what to do; also while it is down.

    Run it as the node's user, with the environment or the flags of `skerry-edge run`; the settings of a node that runs
    are asked of it. It changes nothing.

    Exits 0 if all is well, 4 if there is something to note, 1 if something is wrong.
    """
    # The node's own code, which checks files here, logs what it finds: a finding reports that already.
    logging.getLogger("skerry").setLevel(logging.CRITICAL + 1)
    state = state.absolute()
    found = _look(state, given)
    if as_json:
        show(findings.document(found))
    else:
        for line in findings.lines(found, verbose=verbose):
            click.echo(line)
    sys.exit(EXITS[findings.worst(found)])


def _look(state: Path, given: dict[str, Any]) -> list[Finding]:
    found = machine.variable_findings()
    try:
        facts = state_files.look(state, WAL_LIMIT)
    except OSError as error:
        why = f"{state} can't be looked into: {error}", f"ls -ld {state} (run this as the node's user)"
        return [*found, Finding("state", "wrong", *(closed(state, to_serve=False) or why))]
    found += state_files.state_findings(facts, state)
    found += _unit(state, facts)
    status, silent = _status(state)
    values = _settings(state, given, found, runs=status is not None)
    if facts is None or facts.owner != facts.user:
        # Files that another user creates or opens would be inaccessible to the node.
        return found
    if values is not None:
        facts = facts._replace(log_limit=int(values["SKERRY_EDGE_WAL_LIMIT"]))
    # A full disk causes many of the other findings.
    found += state_files.disk_findings(facts) + state_files.log_findings(facts)
    if status is not None:
        found += running_node.node_findings(status, version.running().short, str(state))
    else:
        text = silent or f"no node runs on {state}"
        found.append(Finding("node", "wrong", text, f"{START} (skerry-edge run --state {state})"))
        if facts.closed is None:
            # First, while this process has one thread.
            found += state_files.database_findings(state, facts.sizes)
    built = status.get("built", {}) if status is not None else parts.document()
    found += machine.built_findings(built, runs=status is not None)
    if values is not None:
        found += setting_rules.file_findings(state, values)
        found += setting_rules.listen_findings(values, runs=status is not None)
        found += setting_rules.risk_findings(values)
        found += setting_rules.trace_findings(values)
    workers = int(values["SKERRY_EDGE_WORKERS"]) if values is not None else 2 * processors()
    seen = machine.look(workers, _pid(state) if status is not None else None)
    found += machine.machine_findings(seen, partial=values is not None and values["SKERRY_EDGE_FENCE"] == "partial")
    return found + _control(state, status)


def _unit(state: Path, facts: state_files.StateFacts | None) -> list[Finding]:
    """Return the facts about the unit that starts a node on the state directory."""
    if facts is None:
        return []
    try:
        return systemd_unit.unit_findings(systemd_unit.look(state), facts.owner)
    except (OSError, ValueError) as error:
        return [Finding("unit", "note", f"the unit can't be read: {error}", f"systemctl cat {systemd_unit.NAME}")]


def _status(state: Path) -> tuple[dict[str, Any] | None, str]:
    """Return the running node's status, or None and the reason why there is none."""
    try:
        return node_socket.ask(state, "status"), ""
    except NodeAbsent:
        return None, ""
    except NodeSilent as error:
        return None, str(error)


def _settings(state: Path, given: dict[str, Any], found: list[Finding], *, runs: bool) -> Values | None:
    """Return the running node's settings, or those that one would have; None if they don't fit together, which is then
    reported as a finding."""
    try:
        settings = node_socket.ask(state, "settings")["settings"] if runs else shown_settings(settings_of(state, given))
    except click.UsageError as error:
        found.append(Finding("settings", "wrong", error.message, f"skerry-edge settings --state {state}"))
        return None
    except (NodeAbsent, NodeSilent, KeyError) as error:
        found.append(Finding("settings", "note", f"the node doesn't tell its settings: {error}", "ask again"))
        return None
    found.append(Finding("settings", "ok", "the settings fit together"))
    return {setting["name"]: setting["value"] for setting in settings}


def _control(state: Path, status: dict[str, Any] | None) -> list[Finding]:
    """Return the facts about the control plane that the node's identity names."""
    try:
        who = identity.read(state)
    except identity.IdentityClosed as error:
        return [Finding("identity", "wrong", f"{identity.path(state)} is closed to this user", error.cure)]
    except (identity.NotJoined, OSError) as error:
        cure = f"skerry-edge join --control URL --token TOKEN --state {state}"
        return [Finding("identity", "wrong", str(error).partition(": ask for")[0], cure)]
    found = [Finding("identity", "ok", f"this is the node {who.name} of {who.control_url}")]
    facts = asyncio.run(control_connection.look(state, who, ask=True))
    found += control_connection.control_findings(facts, state)
    answered = facts if facts.trouble is None else None
    now = time.time()
    ca = identity.ca_path(state)
    try:
        pem = authorities.read(ca) if ca is not None else None
    except OSError:
        pem = ""
    found += control_connection.trust_findings(pem, answered.trust if answered else None, now, state)
    return found + control_connection.credential_findings(who, answered, now, state)


def _pid(state: Path) -> int | None:
    """Return the process id of the node that holds the state directory's lock."""
    try:
        return int((state / "lock").read_text().strip())
    except (OSError, ValueError):
        return None
