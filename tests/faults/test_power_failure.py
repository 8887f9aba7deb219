"""The order of the calls that decide what a power failure finds on disk (`test_power_cuts` builds what it may find).

A file is synced before it gets its name, its folder after, and what the libsql file needs is there before its COMMIT.
"""

import hashlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from control.local.pki import Pki
from control.protocol import faults, wire
from edge_runtime.aot_cache import key, put_on_disk
from edge_runtime.sql import database
from edge_runtime.sync.artifacts import Artifacts
from edge_runtime.sync.sync_outcomes import Outbox
from edge_runtime.wasmedge import QUICK, compile_module
from tests.guests.version import version
from tests.support.agents import Control, edge, joined, running_control

SCHEMA = "CREATE TABLE generation (number INTEGER NOT NULL); INSERT INTO generation VALUES (1);"


@dataclass
class Calls:
    """Calls of this process, in their order: ("sync" or "rename" or "step", path or point)."""

    made: list[tuple[str, str]] = field(default_factory=list)

    def index(self, kind: str, name: str) -> int:
        return self.made.index((kind, name))

    def durable(self, folder: Path) -> list[str]:
        """Names that files got in the folder, each checked: synced before, and its folder after.

        Compiled code is left out: it gets its name first, and its digest shows whether all of it is there.
        """
        names = []
        for at, (kind, what) in enumerate(self.made):
            path = Path(what.partition(" > ")[2])
            if kind != "rename" or not path.is_relative_to(folder) or path.parent.name == "aot":
                continue
            old, _, new = what.partition(" > ")
            assert ("sync", old) in self.made[:at], f"{new} has its name before {old} is on disk: {self.made}"
            assert ("sync", str(Path(new).parent)) in self.made[at:], f"the name {new} isn't on disk: {self.made}"
            names.append(Path(new).name)
        return names


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    found = Calls()
    fsync, replace, rename, reach = os.fsync, os.replace, os.rename, faults.reach

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        found.made.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))

    def renames(real: Callable[..., None]) -> Callable[..., None]:
        def renamed(old: Any, new: Any, **more: Any) -> None:
            real(old, new, **more)
            found.made.append(("rename", f"{old} > {new}"))

        return renamed

    def reached(point: str) -> None:
        found.made.append(("step", point))
        reach(point)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renames(replace))
    monkeypatch.setattr(os, "rename", renames(rename))
    monkeypatch.setattr(faults, "reach", reached)
    return found


@pytest.fixture
async def control(database_url: str, bucket_url: str, pki: Pki) -> AsyncIterator[Control]:
    async with running_control(database_url, bucket_url, pki) as running:
        yield running


async def test_what_a_sync_needs_is_on_disk_before_its_commit(control: Control, tmp_path: Path, calls: Calls) -> None:
    await joined(control, tmp_path)
    assert set(calls.durable(tmp_path)) >= {"identity.json", "ca.pem"}
    async with edge(tmp_path):
        await control.call("POST", "schema-changes", {"name": "first", "sql": SCHEMA})
        await control.release(functions={"hello": await control.push("hello", version(1), {"sql": "read"})})
        await control.until(lambda node: node["at_target"] and node["schema_version"] == 1)
    (artifact,) = Artifacts(tmp_path).folder.glob("*.wasm")
    assert artifact.name in calls.durable(tmp_path)
    folder = calls.index("sync", str(artifact.parent))
    assert folder < calls.index("step", "edge.sync.prepare.before")
    # What a compiler has begun for a better code, and couldn't end, may lie beside.
    made = [*(tmp_path / "aot").glob(f"{key(artifact.stem, QUICK)}.*")]
    assert len(made) == 2
    for code in made:
        assert calls.index("sync", str(code)) < calls.index("step", "edge.sync.prepare.before")
    assert calls.index("sync", str(tmp_path / "aot")) < calls.index("step", "edge.sync.prepare.before")
    assert "witness.json" in calls.durable(tmp_path)
    witness = calls.index("rename", f"{tmp_path / 'witness.json.new'} > {tmp_path / 'witness.json'}")
    state = calls.made.index(("sync", str(tmp_path)), witness)
    assert state < calls.index("step", "edge.sync.swap.before")
    # The report comes last: what it says is in the file by then.
    assert calls.index("step", "edge.sync.swap.after") < calls.index("step", "edge.sync.report.before")


def test_a_report_that_waits_is_on_disk(tmp_path: Path, calls: Calls) -> None:
    Outbox(tmp_path).keep("sync", wire.SyncUpdate("succeeded"))
    assert calls.durable(tmp_path) == ["report.json"]


def test_compiled_code_is_on_disk_when_that_is_asked_for(tmp_path: Path, calls: Calls) -> None:
    made = compile_module(version(1), tmp_path, QUICK)
    put_on_disk(tmp_path, hashlib.sha256(version(1)).hexdigest(), QUICK)
    assert [what for kind, what in calls.made if kind == "sync"] == [
        *(str(made.path.with_suffix(suffix)) for suffix in (".so", ".sha256")),
        str(tmp_path),
    ]


def test_commits_of_calls_and_releases_are_on_disk(tmp_path: Path) -> None:
    """2 is FULL: in WAL mode each COMMIT is synced. It is the default, and what the applier asks for."""
    with database.connect(tmp_path / "skerry.db") as opened:
        assert opened.rows("PRAGMA synchronous") == [(2,)]
        assert opened.rows("PRAGMA journal_mode") == [("wal",)]
