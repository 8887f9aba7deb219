"""The state directory: who may use it, who owns it, how much space its disk has, and the database in it."""

import os
import stat
from pathlib import Path
from typing import Final, NamedTuple

from control.protocol.findings import Finding
from edge_runtime import database_users, wal
from edge_runtime.cli.support import user_name
from edge_runtime.disk_space import DISK_RESERVE
from edge_runtime.settings import WAL_LIMIT
from edge_runtime.state import DATA_AWAITED, closed
from edge_runtime.sync import identity

LOOKED_THROUGH: Final = 64 * 1024 * 1024
"""Bytes of a database up to which all its pages are read; a larger one is left to `skerry-edge check-database`."""
FEW: Final = 0.1
"""The share of free disk space below which it is noted."""
ENOUGH: Final = 2 * 1024 * 1024 * 1024
"""Bytes that are enough on any disk."""
MIB: Final = 1024 * 1024


class StateFacts(NamedTuple):
    path: Path
    owner: int
    """The user id of its owner."""
    user: int
    """The user id of this process."""
    open: tuple[tuple[Path, int], ...]
    """Its files and folders that others may use, with their modes."""
    noexec: bool
    sizes: wal.DatabaseSizes
    disk_size: int
    log_limit: int = WAL_LIMIT
    closed: tuple[str, str] | None = None
    """Why this process's user can't use it, and what to do."""


def look(state: Path, log_limit: int) -> StateFacts | None:
    """Return the directory's facts; None if it doesn't exist. Raises: OSError."""
    if not state.is_dir():
        return None
    private = [state, identity.path(state), state / "secrets.toml", state / wal.FILE, state / "aot"]
    modes = [(path, stat.S_IMODE(path.lstat().st_mode)) for path in private if os.path.lexists(path)]
    disk = os.statvfs(state)
    folder = (state / wal.FILE).parent
    # Before the first run there is no folder of the database.
    sizes = wal.sizes(state / wal.FILE if folder.is_dir() else state / wal.FILE.name)
    return StateFacts(
        state,
        state.stat().st_uid,
        os.geteuid(),
        # A folder with mode 0700 hides its contents, whatever their modes.
        tuple(modes[:1]) if modes[0][1] & 0o077 else tuple(m for m in modes if m[0].name == "identity.json"),
        bool(disk.f_flag & os.ST_NOEXEC),
        sizes,
        disk.f_blocks * disk.f_frsize,
        log_limit,
        closed(state, to_serve=False),
    )


def state_findings(facts: StateFacts | None, path: Path) -> list[Finding]:
    """Check whether the directory can be a node's and is inaccessible to others."""
    if facts is None:
        cure = f"skerry-edge join --control URL --token TOKEN --state {path}"
        return [Finding("state", "wrong", f"there is no directory {path}: no node has joined there", cure)]
    found = []
    if facts.owner != facts.user:
        name = user_name(facts.owner)
        text = f"{path} belongs to the user {name}, and this is run as {user_name(facts.user)}: it can't look into it"
        found.append(Finding("state", "wrong", text, f"sudo -u {name} skerry-edge doctor --state {path}"))
    elif facts.closed is not None:
        found.append(Finding("state", "wrong", *facts.closed))
    for file, mode in facts.open:
        if mode & 0o077:
            text = f"others may use {file}, whose mode is {mode:04o}"
            found.append(Finding("state", "wrong", text, f"chmod go-rwx {file}"))
    if facts.noexec:
        text = f"{path} is on a file system that is mounted noexec, and compiled functions can't be run from there"
        found.append(Finding("state", "wrong", text, f'mount -o remount,exec "$(stat -c %m {path})"'))
    return found or [Finding("state", "ok", f"{path} is this user's, and closed to others")]


def disk_findings(facts: StateFacts) -> list[Finding]:
    """Check whether releases and calls have enough disk space."""
    free = facts.sizes.disk_free
    text = f"the disk of {facts.path} has {free // MIB} MiB free of {facts.disk_size // MIB}"
    cure = f"df -h {facts.path}"
    needed = DISK_RESERVE + facts.log_limit
    if free < DISK_RESERVE:
        return [Finding("disk", "wrong", f"{text}: no release is taken, and calls that write fail", cure)]
    if free < needed:
        text = f"{text}: less than the database's log may need, {needed // MIB} MiB"
        return [Finding("disk", "wrong", text, cure)]
    if free < min(ENOUGH, FEW * facts.disk_size):
        return [Finding("disk", "note", text, cure)]
    return [Finding("disk", "ok", text)]


def log_findings(facts: StateFacts) -> list[Finding]:
    """Check whether the write-ahead log is growing toward its limit."""
    log, limit = facts.sizes.log, facts.log_limit
    text = f"the database's write-ahead log has {log // MIB} MiB; at {limit // MIB} MiB calls that write are refused"
    cure = f"skerry-edge status --state {facts.path}"
    if log >= limit:
        return [Finding("wal", "wrong", text, cure)]
    return [Finding("wal", "note", text, cure)] if log >= limit // 2 else [Finding("wal", "ok", text)]


def database_findings(state: Path, sizes: wal.DatabaseSizes) -> list[Finding]:
    """Check whether the database of a stopped node is back, is intact, and isn't open in any program. The caller must
    have only one thread."""
    database = state / wal.FILE
    if (state / DATA_AWAITED).exists():
        text = "the database isn't back from its backup yet, and the node doesn't start before"
        again = f"skerry-edge join --state {state} with its other options as before, which goes on where it was"
        return [Finding("database", "wrong", text, f"{again}, or with --without-data to begin with an empty database")]
    if not database.exists():
        return [Finding("database", "ok", "there is no database yet: the node makes it when it first runs")]
    if others := database_users.users(database):
        text = f"{database} is open in {database_users.told(others)}, and no node runs"
        return [Finding("database", "note", text, f"ps -fp {','.join(str(user.pid) for user in others)}")]
    look_through = f"skerry-edge check-database --state {state}"
    if sizes.file + sizes.log > LOOKED_THROUGH:
        text = f"{database} has {sizes.file // MIB} MiB, which weren't read: `{look_through}` does that"
        return [Finding("database", "ok", text)]
    # libsql is loaded here: if it can't be, the check of the libraries says so.
    from edge_runtime.oneshot.database_guard import GuardFailed, guarded
    from edge_runtime.oneshot.database_report import DatabaseUnread, report
    from edge_runtime.release.witness import Witness

    try:
        with guarded(database, reading=False):
            whole = report(database, database)
    except (GuardFailed, DatabaseUnread) as failed:
        if sizes.disk_free < DISK_RESERVE:
            # Opening it takes some disk space too: this says nothing about the database.
            text = f"{database} can't be opened while its disk is full: {failed.message}"
            return [Finding("database", "wrong", text, f"df -h {state}")]
        return [Finding("database", "wrong", f"{database} can't be used: {failed.message}", look_through)]
    wrong = whole.findings()
    if not Witness(state).confirms(whole.stored):
        wrong.append("Its record of the release isn't what the node has committed (database_unverified).")
    if not wrong:
        return [Finding("database", "ok", f"{database} is whole")]
    cure = f"skerry-edge restore --help (a backup); {look_through} shows all of it"
    return [Finding("database", "wrong", f"{database}: {text.rstrip('.')}", cure) for text in wrong]
