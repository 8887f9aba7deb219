"""Starts from what a power failure left of a node's files, as far as this can be done without a front.

Run as a program: a line of JSON is read for each state (`Expected`), and one is written with what is wrong with it.
"""

import contextlib
import hashlib
import sys
from pathlib import Path

import msgspec

from edge_runtime.release.witness import Witness
from edge_runtime.sql import database
from edge_runtime.state import State
from edge_runtime.sync import identity
from edge_runtime.sync.sync_outcomes import Outbox


class Expected(msgspec.Struct):
    """What has been acknowledged before the power failed."""

    state: str
    """The state directory."""
    joined: bool = False
    release: int = 0
    """Number of the last release that control knew to serve."""
    credential: str = ""
    """Id of the credential that the node has to have: the one before is refused."""
    rows: set[str] = set()
    """Keys of rows whose writing calls were answered with a success."""
    undone: set[str] = set()
    """Keys of rows whose writing calls were answered with a failure that changes nothing."""


def wrong(expected: Expected) -> list[str]:
    """Start from the state; return what isn't as it has to be, a line each."""
    folder = Path(expected.state)
    found: list[str] = []
    try:
        who = identity.read(folder)
    except identity.NotJoined as error:
        return [f"no identity: {error}"] if expected.joined else []
    if expected.credential and expected.credential not in who.credential + who.next_credential:
        found.append(f"the node has lost its credential {expected.credential}")
    with State(folder, 1.0) as state, database.connect(state.database / database.FILE.name) as opened:
        Outbox(folder).waiting()
        Outbox(folder).begun()
        stored = database.stored(opened)
        if not Witness(folder).confirms(stored):
            found.append(f"the release in the libsql file isn't believed: {stored.release}")
        if opened.rows("PRAGMA integrity_check") != [("ok",)]:
            found.append("the libsql file is damaged")
        release = stored.release
        if (release.number if release else 0) < expected.release:
            found.append(f"the node is at {release}, and was at release {expected.release}")
        if release is None:
            return found
        if opened.rows("SELECT number FROM generation") != [(release.number,)]:
            found.append(f"the schema isn't that of release {release.number}")
        for function in release.functions:
            artifact = state.artifacts / f"{function.sha256}.wasm"
            with contextlib.suppress(FileNotFoundError):
                if hashlib.sha256(artifact.read_bytes()).hexdigest() == function.sha256:
                    continue
            found.append(f"the artifact of {function.name} {function.version} is lost or damaged")
        rows = {row[0] for row in opened.rows("SELECT id FROM written")}
        if lost := expected.rows - rows:
            found.append(f"{len(lost)} acknowledged rows are lost, {sorted(lost)[:3]} among them")
        if there := expected.undone & rows:
            found.append(f"{len(there)} rows are there whose calls had failed, {sorted(there)[:3]} among them")
    return found


def main() -> None:
    for line in sys.stdin.buffer:
        try:
            answer = wrong(msgspec.json.decode(line, type=Expected))
        except Exception as error:
            answer = [f"{type(error).__name__}: {error}"]
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
