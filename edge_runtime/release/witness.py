"""The witness: the front's own digest of what the libsql file must say about the node's release (docs/adr/0017).

Workers write the libsql file, so a worker that was taken over can write a different record of the release. The front
keeps the digest of what it commits in `witness.json`, which no child can reach, and trusts the libsql file only if its
digest is the same.
"""

import hashlib
import logging
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from control.protocol import wire
from edge_runtime import files
from edge_runtime.ipc.frames import Stored

log = logging.getLogger("skerry.flip")

FILE: Final = "witness.json"


class Kept(Struct, frozen=True):
    """The content of `witness.json`."""

    now: str
    """Digest of what the libsql file holds."""
    next: str = ""
    """Digest of what it holds after a COMMIT that may be in progress; empty if there is none."""
    restored: str = ""
    """Digest of what a backup holds that may be about to replace the file; empty if there is none."""


def digest(stored: Stored) -> str:
    """Return the sha256 of everything that the libsql file says about the node's release, including grants and
    routes."""
    release, inventory = stored.release, stored.inventory
    value = [
        None if release is None else [release.release_id, release.number, release.generation],
        []
        if release is None
        else [
            [f.name, f.version, f.sha256, f.manifest_digest, msgspec.to_builtins(f.manifest)]
            for f in sorted(release.functions, key=lambda f: f.name)
        ],
        msgspec.to_builtins(inventory),
    ]
    return hashlib.sha256(wire.canonical(value)).hexdigest()


def after(inventory: wire.Inventory, plan: wire.Plan) -> wire.Inventory:
    """Return the inventory that a node with `inventory` has after the plan."""
    changes = {change.number: change for change in inventory.schema_changes}
    for change in plan.schema_changes:
        changes.setdefault(change.number, wire.AppliedChange(change.number, change.revision, change.checksum))
    return wire.Inventory(
        schema_version=max(changes, default=0),
        schema_changes=[changes[number] for number in sorted(changes)],
        functions=[
            wire.RunningFunction(f.name, f.version, f.sha256, f.manifest_digest)
            for f in sorted(plan.functions, key=lambda f: f.name)
        ],
        database_id=inventory.database_id,
    )


class Witness:
    """The file `witness.json` in the state directory. It holds one digest, or two while a COMMIT is in progress, so
    that one of them matches whenever the process is killed."""

    def __init__(self, state: Path) -> None:
        self.path = state / FILE

    def kept(self) -> Kept | None:
        """Return the content of `witness.json`; None if there is no such file."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=Kept)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.error("%s can't be read: %s", self.path, error)
            return Kept("")

    def confirms(self, stored: Stored, *seen: Kept | None) -> bool:
        """Return whether the libsql file may be trusted: it says what was committed last, or names no release at all.

        It is also trusted if there is no `witness.json` yet, for instance after an upgrade from a version that kept
        none. A caller that read the libsql file while the node may have committed passes what was `kept` before and
        after: either is trusted.
        """
        if stored.release is None and not stored.inventory.functions:
            return True
        believed = seen or (self.kept(),)
        if None in believed:
            log.warning("%s doesn't exist: the libsql file is believed as it is", self.path)
        found = digest(stored)
        return any(kept is None or found in (kept.now, kept.next, kept.restored) for kept in believed)

    def announce(self, now: Stored, following: Stored) -> None:
        """Write to `witness.json`, before a COMMIT, that the libsql file holds `now` and may come to hold `following`.

        Both digests are on disk when this returns. Raises: OSError, when they can't be written.
        """
        self._keep(Kept(digest(now), digest(following)))

    def announce_restore(self, backup: Stored) -> None:
        """Write to `witness.json` that a backup is about to replace the libsql file. What was trusted before still is.

        The digest is on disk when this returns. Raises: OSError, when it can't be written.
        """
        try:
            kept = msgspec.json.decode(self.path.read_bytes(), type=Kept)
        except FileNotFoundError:
            # Either file is trusted.
            return
        except (msgspec.MsgspecError, UnicodeDecodeError):
            kept = Kept("")
        self._keep(msgspec.structs.replace(kept, restored=digest(backup)))

    def settle(self, stored: Stored) -> None:
        """Write to `witness.json` that the libsql file holds this, and that no COMMIT is in progress."""
        try:
            self._keep(Kept(digest(stored)))
        except OSError as error:
            # What was announced before has this digest too.
            log.error("%s can't be written: %s", self.path, error)

    def _keep(self, kept: Kept) -> None:
        data = msgspec.json.encode(kept)
        if not (self.path.exists() and self.path.read_bytes() == data):
            files.write(self.path, data)
