"""What the running node says about itself: rules over its status. Pure."""

from typing import Any

from control.protocol.counts import counted
from control.protocol.findings import Finding, Level


def node_findings(status: dict[str, Any], version: str, state: str) -> list[Finding]:
    """Return findings from the status of the node that runs on `state`, as seen by a command of this `version`."""
    look = f"skerry-edge status --state {state}"
    found = [Finding("node", "ok", f"a node runs on {state}")]
    if status.get("version") not in (None, version):
        text = f"the node that runs has the version {status['version']}, and what is installed {version}"
        found.append(Finding("version", "note", text, "systemctl restart skerry-edge"))
    else:
        found.append(Finding("version", "ok", f"the node has the version {version}, as this command"))
    return [
        *found,
        *_target(status, look),
        *_functions(status, look),
        *_workers(status, look),
        *_database(status, look),
        *_backup(status, look),
        *_files(status),
    ]


def _target(status: dict[str, Any], look: str) -> list[Finding]:
    control, error = status.get("control") or {}, status.get("error")
    found = []
    if control.get("error"):
        # If the checks of control and of the credential find the same, they say more.
        text = f"the node's last question to control failed: {control['error']['message']}"
        found.append(Finding("target", "wrong", f"{text.rstrip('.')} [{control['error']['code']}]", look))
    if error and (control.get("error") or {}).get("code") != error["code"]:
        text = f"the node's last change of release failed: {error['message']}"
        found.append(Finding("target", "wrong", f"{text.rstrip('.')} [{error['code']}]", look))
    if not found and control and status.get("at_target") is not True:
        syncing = status.get("sync")
        text = "the node is on its way to its target" if syncing else "it isn't known whether the node is at its target"
        if status.get("held"):
            text = "the node is held at the database that was brought back, and gets no release until it is resumed"
        found.append(Finding("target", "note", text, look))
    trust = (control.get("trust") or {}).get("error")
    if trust:
        found.append(Finding("trust", "wrong", f"the CAs that control gives out aren't taken: {trust}", look))
    return found or [Finding("target", "ok", "the node is at its target")]


def _functions(status: dict[str, Any], look: str) -> list[Finding]:
    found = []
    for function in status.get("functions", []):
        name, error = function["name"], function.get("error")
        called = sum(release["calls"] for release in function.get("releases", [])[:1])
        failed = sum(release["errors"] for release in function.get("releases", [])[:1])
        level: Level = "wrong"
        if error:
            text = f"{name} can't be called: {error['message']}"
        elif not function.get("runs", True) or function.get("lost"):
            text = f"{name} can't be called: its code isn't here, or is damaged; the node fetches it from control"
        elif (function.get("breaker") or {"state": "closed"})["state"] != "closed":
            text = f"{name} is cut off, because its calls ended their processes"
        elif called and called == failed:
            text, level = f"all failed that came to {name} on the newest release: {counted(called, 'call')}", "note"
        else:
            continue
        found.append(Finding("functions", level, text.rstrip("."), look))
    count = len(status.get("functions", []))
    return found or [Finding("functions", "ok", f"all can be called: {counted(count, 'function')}")]


def _workers(status: dict[str, Any], look: str) -> list[Finding]:
    workers, records = status.get("workers") or {}, status.get("records") or {}
    found = []
    if workers.get("error"):
        found.append(Finding("workers", "wrong", f"workers can't be started: {workers['error'].rstrip('.')}", look))
    elif workers.get("fit", 0) < workers.get("wanted", 0):
        text = f"running: {workers['fit']} of {counted(workers['wanted'], 'worker')}"
        found.append(Finding("workers", "note", text, look))
    if workers.get("unfenced"):
        text = f"workers lack of their fence: {', '.join(workers['unfenced'])}"
        found.append(Finding("workers", "note", text, "docs/operations.md#the-fence"))
    if not found:
        found.append(Finding("workers", "ok", f"running: {counted(workers.get('fit', 0), 'worker')}"))
    if records.get("error"):
        found.append(Finding("records", "wrong", f"what functions log isn't kept: {records['error']}", look))
    else:
        found.append(Finding("records", "ok", "what functions log is kept"))
    return found


def _database(status: dict[str, Any], look: str) -> list[Finding]:
    database, verified = status.get("database") or {}, status.get("verified") or {}
    found = []
    if database.get("held_by"):
        text = f"another program holds the database: {database['held_by']}; calls that write wait for it"
        found.append(Finding("database", "wrong", text, look))
    if database.get("checkpoint_error"):
        text = f"the database's log isn't moved into its file: {database['checkpoint_error']}"
        found.append(Finding("database", "wrong", text, look))
    if database.get("writes") == "refused":
        found.append(Finding("database", "wrong", "calls that may write are refused: the log is too long", look))
    step = (database.get("steps") or {}).get("error")
    if step:
        found.append(Finding("database", "wrong", f"a step of a schema change fails: {step['message']}", look))
    if verified.get("damaged"):
        text = f"artifacts were found damaged: {', '.join(map(str, verified['damaged']))}"
        found.append(Finding("database", "note", f"{text}; the node mends them", look))
    return found or [Finding("database", "ok", "the database takes writes")]


def _backup(status: dict[str, Any], look: str) -> list[Finding]:
    backup = status.get("backup")
    if not backup:
        return []
    if backup["error"]:
        return [Finding("backup", "wrong", f"the backup doesn't go on: {backup['error'].rstrip('.')}", look)]
    return [Finding("backup", "ok", "the backup goes on")]


def _files(status: dict[str, Any]) -> list[Finding]:
    """Return which files, changed while the node runs, it doesn't accept."""
    return [
        Finding(check, "wrong", f"the node goes on with what it had read before: {error}", "mend the file")
        for check in ("tls", "callers", "token", "secrets")
        if (error := (status.get(check) or {}).get("error"))
    ]
