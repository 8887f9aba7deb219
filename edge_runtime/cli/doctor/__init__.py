"""`skerry-edge doctor`: finds what is, or will soon be, wrong with a node, on its machine.

Start with `node_doctor`, the command. Each other module examines one part of the machine and has the rules for it: a
function with I/O returns facts, and functions of these facts return findings. `CHECKS` has the names of all checks.
"""

from typing import Final

CHECKS: Final = {
    "state": "the state directory: there, open to this user alone, on a disk that programs may be run from",
    "identity": "the node has joined, and its identity can be read",
    "unit": "the systemd unit of the node, where there is one, lets it run, and starts it again and with the machine",
    "node": "a node runs on the state directory and answers",
    "version": "the node that runs has the version of this command",
    "built": "what `just compile` built is of the sources that are here, and this Python",
    "target": "the node is at its target, and its last sync didn't fail",
    "functions": "each function of the release can be called",
    "workers": "the workers run, with all of their fence",
    "records": "what functions log is kept",
    "control": "control can be reached: its name, its address, its certificate, and a proxy where one is named",
    "control_certificate": "control's certificate is good for 30 days or more",
    "clock": "this machine's clock goes with control's, to within 30 seconds",
    "trust": "the CAs by which the node trusts control are good for 30 days or more, and those that control gives out",
    "credential": "control takes the node's credential, which hasn't ended",
    "settings": "the settings fit together",
    "variables": "each variable SKERRY_… is one that there is",
    "listen": "the local HTTP's address is free, or the node's, and isn't open to others without TLS",
    "tls": "the certificate of the local HTTP goes with its key, and is good for 30 days or more",
    "callers": "the file of callers can be used",
    "token": "the file with the node's token can be used",
    "secrets": "the file of secrets can be used",
    "traces": "the collector that the settings name takes traces",
    "risks": "no setting gives up what the defaults guarantee",
    "disk": "there is room on the disk of the state directory",
    "wal": "the database's write-ahead log is short",
    "database": "the database is whole, takes writes, and no other program holds it",
    "backup": "the database's backup goes on, where there is one",
    "fence": "this machine has all that the workers' fence needs",
    "libraries": "WasmEdge, libsql and SQLite can be loaded, in the versions that this program works with",
    "memory": "there is memory for the workers",
    "open_files": "the node may have enough files open",
}
"""What each check looks for, by its name."""
