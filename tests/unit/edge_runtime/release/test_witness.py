"""What the front believes of the libsql file."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.protocol import wire
from control.protocol.manifest import HttpGrant, Manifest
from edge_runtime.ipc.frames import LocalFunction, LocalRelease, Stored
from edge_runtime.release.witness import FILE, Witness, after, digest
from tests.support.plans import changes, local, plan

SCHEMA = wire.AppliedChange(1, 1, "a" * 64)


def stored(generation: int = 1, *functions: LocalFunction, changed: list[wire.AppliedChange] | None = None) -> Stored:
    """A release of these functions, or of one, as the libsql file says it."""
    given = list(functions) or [local("hello", b"wasm", sql="read"), local("other", b"more")]
    applied = [SCHEMA] if changed is None else changed
    return Stored(
        LocalRelease(f"release {generation}", generation, generation, len(applied), given),
        wire.Inventory(
            schema_version=len(applied),
            schema_changes=applied,
            functions=[wire.RunningFunction(f.name, f.version, f.sha256, f.manifest_digest) for f in given],
            database_id="one",
        ),
    )


EMPTY = Stored(None, wire.Inventory(database_id="one"))
FORGED_MANIFEST = msgspec.structs.replace(
    local("hello", b"wasm", sql="read"), manifest=Manifest(sql="write", http=HttpGrant(["evil.org"]))
)


@pytest.mark.parametrize(
    "forged",
    [
        pytest.param(stored(2), id="generation"),
        pytest.param(stored(1, FORGED_MANIFEST, local("other", b"more")), id="a grant, its digest kept"),
        pytest.param(stored(1, local("hello", b"else", sql="read"), local("other", b"more")), id="code"),
        pytest.param(stored(1, local("hello", b"wasm", sql="read")), id="one function less"),
        pytest.param(stored(changed=[wire.AppliedChange(1, 2, "a" * 64)]), id="a revision"),
        pytest.param(stored(changed=[]), id="no schema"),
        pytest.param(Stored(stored().release, EMPTY.inventory), id="no inventory"),
        pytest.param(Stored(None, stored().inventory), id="no release, and functions"),
    ],
)
def test_what_was_not_committed_is_not_believed(tmp_path: Path, forged: Stored) -> None:
    witness = Witness(tmp_path)
    witness.settle(stored())
    assert witness.confirms(stored())
    assert not witness.confirms(forged)


def test_where_code_lies_is_not_what_is_believed(tmp_path: Path) -> None:
    """Nor in which order functions come: a plan's, or the file's."""
    made = stored()
    assert made.release is not None
    functions = [msgspec.structs.replace(f, aot="/x.so", aot_digest="y") for f in reversed(made.release.functions)]
    assert digest(Stored(msgspec.structs.replace(made.release, functions=functions), made.inventory)) == digest(made)


def test_while_a_commit_is_under_way_both_sides_of_it_are_believed(tmp_path: Path) -> None:
    witness = Witness(tmp_path)
    witness.announce(EMPTY, stored(1))
    assert witness.confirms(EMPTY)
    assert witness.confirms(stored(1))
    witness.announce(stored(1), stored(2))
    assert [witness.confirms(stored(n)) for n in (1, 2, 3)] == [True, True, False]
    assert [Witness(tmp_path).confirms(stored(n)) for n in (1, 2, 3)] == [True, True, False]
    witness.settle(stored(2))
    assert [witness.confirms(stored(n)) for n in (1, 2, 3)] == [False, True, False]


def test_a_file_that_names_no_release_is_an_empty_node_s(tmp_path: Path) -> None:
    witness = Witness(tmp_path)
    witness.settle(stored())
    assert witness.confirms(EMPTY)


def test_without_a_witness_the_file_is_believed_and_with_a_damaged_one_not(tmp_path: Path) -> None:
    witness = Witness(tmp_path)
    assert witness.confirms(stored())
    for damage in (b"", b"{", b"\xff", b"[]", b'{"next": "x"}', json.dumps({"now": digest(stored(2))}).encode()):
        (tmp_path / FILE).write_bytes(damage)
        assert not witness.confirms(stored()), damage


def test_it_is_the_node_s_alone_and_not_written_for_nothing(tmp_path: Path) -> None:
    Witness(tmp_path).settle(stored())
    file = tmp_path / FILE
    before = file.stat()
    assert before.st_mode & 0o777 == 0o600
    Witness(tmp_path).settle(stored())
    assert file.stat().st_ino == before.st_ino


@given(st.integers(0, 3), st.integers(0, 3), st.sets(st.sampled_from("abc")))
def test_what_a_plan_leads_to(applied: int, planned: int, names: set[str]) -> None:
    """As the applier finds it in the file: what was applied stays, the rest of the plan comes on top."""
    sqls = [f"CREATE TABLE t{n} (x)" for n in range(1, 7)]
    have = [wire.AppliedChange(c.number, c.revision, c.checksum) for c in changes(sqls[:applied])]
    inventory = wire.Inventory(schema_version=applied, schema_changes=have, database_id="one")
    functions = [local(name, name.encode()) for name in names]
    again: list[Any] = changes(sqls[: applied + planned], revision=2)
    found = after(inventory, plan(1, again, functions))
    assert [(c.number, c.revision) for c in found.schema_changes] == [
        (n, 1 if n <= applied else 2) for n in range(1, applied + planned + 1)
    ]
    assert (found.schema_version, found.database_id) == (applied + planned, "one")
    assert [f.name for f in found.functions] == sorted(names)
