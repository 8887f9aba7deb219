"""The machine: what the workers' fence needs from the kernel, the libraries, memory, and open files."""

import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

from control.protocol import settings_in_force
from control.protocol.counts import counted
from control.protocol.findings import Finding
from edge_runtime.built import parts
from edge_runtime.sandbox import fence
from edge_runtime.web.server import FEWEST, KEPT, KEPT_PER_WORKER

LOADING: Final = 60.0
"""Seconds that loading the libraries may take."""
MEMORY: Final = 256 * 1024 * 1024
"""Bytes that must be available for workers to start reliably."""
FEW_FILES: Final = 4096
"""Open files below which a node can have only few connections."""
_LOAD: Final = """
from edge_runtime.wasmedge import c_api
import edge_runtime.sql.libsql_connection, apsw, importlib.metadata
print(c_api.VERSION, importlib.metadata.version("libsql-experimental"), apsw.sqlite_lib_version())
"""


class MachineFacts(NamedTuple):
    lacking: tuple[str, ...]
    """Missing parts of the fence, one sentence each."""
    libraries: str
    """Their versions; '' if they can't be loaded."""
    libraries_error: str
    memory: int
    """Available bytes."""
    open_files: int
    """How many files a process may have open: the running node, or else a process that this user starts."""
    workers: int


def look(workers: int, node: int | None) -> MachineFacts:
    """Return the machine's facts; `node`: the node's process id, None if none is running."""
    return MachineFacts(fence.lacking(), *_libraries(), _available(), _open_files(node), workers)


def _libraries() -> tuple[str, str]:
    """Return the libraries' versions and why they can't be loaded; one of the two is ''."""
    command = [sys.executable, "-P", "-c", _LOAD]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LOADING, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return "", f"they weren't loaded after {LOADING:g} s"
    if done.returncode == 0:
        return done.stdout.strip(), ""
    last = done.stderr.strip().splitlines()[-1:]
    return "", last[0] if last else f"the process that loads them ended with status {done.returncode}"


def machine_findings(facts: MachineFacts, *, partial: bool) -> list[Finding]:
    """Check whether a node can run here; `partial`: an incomplete fence is acceptable."""
    return [
        *fence_findings(facts.lacking, partial=partial),
        *library_findings(facts.libraries, facts.libraries_error),
        *memory_findings(facts.memory),
        *file_findings(facts.open_files, facts.workers),
    ]


def fence_findings(lacking: Iterable[str], *, partial: bool) -> list[Finding]:
    found = [
        Finding("fence", "note" if partial else "wrong", text.rstrip("."), "docs/operations.md#the-fence")
        for text in lacking
    ]
    return found or [Finding("fence", "ok", "the kernel has Landlock and seccomp as the fence needs them")]


def library_findings(versions: str, error: str) -> list[Finding]:
    if versions:
        wasmedge, libsql, sqlite = versions.split()
        text = f"WasmEdge {wasmedge}, libsql {libsql} and SQLite {sqlite} can be loaded"
        return [Finding("libraries", "ok", text)]
    cure = "sudo apt-get install -y libwasmedge0" if "WasmEdge" in error or "wasmedge" in error else "just setup"
    return [Finding("libraries", "wrong", f"what runs functions can't be loaded: {error}", cure)]


def memory_findings(available: int) -> list[Finding]:
    text = f"{available >> 20} MiB of memory are available"
    if available < MEMORY:
        return [Finding("memory", "note", f"{text}, less than {MEMORY >> 20}", "ps -eo rss,args --sort=-rss | head")]
    return [Finding("memory", "ok", text)]


def file_findings(limit: int, workers: int) -> list[Finding]:
    needed = KEPT + KEPT_PER_WORKER * workers + FEWEST
    cure = "LimitNOFILE=65536 in the unit (systemctl edit skerry-edge)"
    if limit < needed:
        text = f"a node may have {limit} files open; with {counted(workers, 'worker')} it needs {needed}"
        return [Finding("open_files", "wrong", text, cure)]
    if limit < FEW_FILES:
        text = f"a node may have {limit} files open, and each connection of a client takes one"
        return [Finding("open_files", "note", text, cure)]
    return [Finding("open_files", "ok", f"a node may have {limit} files open")]


def built_findings(document: dict[str, Any], *, runs: bool) -> list[Finding]:
    """Return what `parts.document` says about the node that `runs` or about this program."""
    cure = "just compile && systemctl restart skerry-edge" if runs else "just compile"
    return [
        Finding("built", "note", parts.told(name, part), cure)
        if part["stale"]
        else Finding("built", "ok", parts.told(name, part))
        for name, part in document.items()
    ]


def variable_findings() -> list[Finding]:
    """Return the variables in this process's environment that look like Skerry's but aren't."""
    cure = "skerry-edge settings"
    found = [Finding("variables", "note", line, cure) for line in settings_in_force.unknown()]
    return found or [Finding("variables", "ok", "each variable SKERRY_… is one that there is")]


def _available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return sys.maxsize


def _open_files(node: int | None) -> int:
    """Return the node's limit, or the limit that a node raises its own to."""
    if node is not None:
        try:
            return resource.prlimit(node, resource.RLIMIT_NOFILE)[0]
        except OSError:
            pass  # it has exited, or is another user's
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)
