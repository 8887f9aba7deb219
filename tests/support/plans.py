"""Plans for an applier, as control would make them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec

from control.protocol import wire
from control.protocol.manifest import Manifest, manifest_digest
from edge_runtime.ipc.frames import LocalFunction
from tests.support.functions import compiled


def changes(sqls: Sequence[str], first: int = 1, revision: int = 1) -> list[wire.PlannedChange]:
    """Schema changes with these texts, numbered from `first`."""
    return [
        wire.PlannedChange(number, revision, f"change {number}", wire.schema_checksum(sql), sql)
        for number, sql in enumerate(sqls, first)
    ]


def local(name: str, wasm: bytes, folder: Path | None = None, version: int = 1, **manifest: Any) -> LocalFunction:
    """A function version; compiled into `folder`, where one is given."""
    wanted = msgspec.convert(manifest, Manifest)
    sha256 = hashlib.sha256(wasm).hexdigest()
    path, digest = "", ""
    if folder is not None:
        aot = compiled(wasm, folder)
        path, digest = str(aot.path), aot.digest
    return LocalFunction(
        name,
        version,
        sha256,
        wanted,
        manifest_digest(wanted),
        path,
        digest,
    )


def plan(
    generation: int,
    planned: Sequence[wire.PlannedChange] = (),
    functions: Sequence[LocalFunction] = (),
    *,
    floor: int | None = None,
) -> wire.Plan:
    """A plan of these changes and functions; the floor is the last change, where none is given."""
    return wire.Plan(
        sync_id=str(uuid4()),
        lease=60.0,
        generation=generation,
        release_id=str(uuid4()),
        release_number=max(1, generation % 1000),
        schema_floor=floor if floor is not None else max((change.number for change in planned), default=0),
        schema_changes=list(planned),
        functions=[
            wire.PlannedFunction(f.name, f.version, f.sha256, 0, "", msgspec.to_builtins(f.manifest), f.manifest_digest)
            for f in functions
        ],
    )
