import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.protocol import wire
from control.sync import plan

NAMES = st.sampled_from(["hello", "orders", "stock", "users"])


def sha(text: str) -> str:
    return wire.schema_checksum(text)


def function(name: str, version: int) -> plan.TargetFunction:
    return plan.TargetFunction(name, version, sha(f"{name}{version}"), 10, "row", {}, sha(f"manifest {name}{version}"))


def running(target: plan.TargetFunction) -> wire.RunningFunction:
    return wire.RunningFunction(target.name, target.version, target.sha256, target.manifest_digest)


def revision(number: int, number_of_revision: int) -> plan.Revision:
    return plan.Revision(number, number_of_revision, f"change {number}", sha(f"{number}/{number_of_revision}"))


functions = st.dictionaries(NAMES, st.integers(1, 3)).map(
    lambda versions: tuple(function(n, v) for n, v in versions.items())
)
registered = st.lists(st.integers(1, 3), max_size=6).map(
    lambda counts: plan.by_number([revision(n, r) for n, c in enumerate(counts, 1) for r in range(1, c + 1)])
)


@st.composite
def situations(draw: st.DrawFn) -> tuple[wire.Inventory, plan.TargetRelease, plan.Revisions]:
    """A node whose history is a true one, and a release that the registered schema changes allow."""
    revisions = draw(registered)
    version = draw(st.integers(0, len(revisions)))
    applied = [draw(st.sampled_from(revisions[number])) for number in range(1, version + 1)]
    inventory = wire.Inventory(
        schema_version=version,
        schema_changes=[wire.AppliedChange(r.number, r.revision, r.checksum) for r in applied],
        functions=[running(f) for f in draw(functions)],
    )
    release = plan.TargetRelease("r", 1, draw(st.integers(0, len(revisions))), draw(functions))
    return inventory, release, revisions


@given(situations())
def test_doing_the_work_leads_to_the_target(
    situation: tuple[wire.Inventory, plan.TargetRelease, plan.Revisions],
) -> None:
    inventory, release, revisions = situation
    work = plan.work(inventory, release, revisions)
    after = wire.Inventory(
        schema_version=inventory.schema_version + len(work.schema_changes),
        schema_changes=inventory.schema_changes
        + [wire.AppliedChange(c.number, c.revision, c.checksum) for c in work.schema_changes],
        functions=[running(f) for f in work.functions],
    )
    assert plan.at_target(after, release)
    assert plan.inconsistency(after) == ""
    assert plan.history_mismatch(after, revisions) == ""
    assert set(work.remove) == {f.name for f in inventory.functions} - {f.name for f in after.functions}


@given(situations())
def test_at_target_means_nothing_to_do(situation: tuple[wire.Inventory, plan.TargetRelease, plan.Revisions]) -> None:
    inventory, release, revisions = situation
    work = plan.work(inventory, release, revisions)
    changed = {(f.name, f.version) for f in release.functions} != {(f.name, f.version) for f in inventory.functions}
    assert plan.at_target(inventory, release) == (not work.schema_changes and not changed)
    if plan.at_target(inventory, release):
        assert work.remove == ()


@given(situations())
def test_a_node_never_goes_back_in_the_schema(
    situation: tuple[wire.Inventory, plan.TargetRelease, plan.Revisions],
) -> None:
    inventory, release, revisions = situation
    numbers = [c.number for c in plan.work(inventory, release, revisions).schema_changes]
    assert numbers == list(range(inventory.schema_version + 1, release.schema_floor + 1))


@given(situations(), st.data())
def test_a_checksum_that_no_revision_has_is_a_mismatch(
    situation: tuple[wire.Inventory, plan.TargetRelease, plan.Revisions], data: st.DataObject
) -> None:
    inventory, _, revisions = situation
    if inventory.schema_version:
        wrong = data.draw(st.integers(1, inventory.schema_version))
        inventory.schema_changes[wrong - 1] = wire.AppliedChange(wrong, 1, sha("other"))
        assert f"schema change {wrong} " in plan.history_mismatch(inventory, revisions)


def test_a_change_that_control_lacks_is_a_mismatch() -> None:
    inventory = wire.Inventory(schema_version=1, schema_changes=[wire.AppliedChange(1, 1, sha("a"))])
    assert "which control doesn't have" in plan.history_mismatch(inventory, {})


def test_the_newest_revision_is_planned() -> None:
    revisions = plan.by_number([revision(1, 2), revision(2, 1), revision(1, 1), revision(1, 3)])
    work = plan.work(wire.Inventory(), plan.TargetRelease("r", 1, 2, ()), revisions)
    assert [(c.number, c.revision) for c in work.schema_changes] == [(1, 3), (2, 1)]


@pytest.mark.parametrize("field", ["version", "sha256", "manifest_digest"])
def test_each_property_of_a_function_counts(field: str) -> None:
    wanted = function("hello", 1)
    other = dataclasses.replace(wanted, **{field: 2 if field == "version" else sha("other")})
    inventory = wire.Inventory(functions=[running(other)])
    assert plan.at_target(inventory, plan.TargetRelease("r", 1, 0, (other,)))
    assert not plan.at_target(inventory, plan.TargetRelease("r", 1, 0, (wanted,)))


@pytest.mark.parametrize(
    "inventory",
    [
        wire.Inventory(schema_version=1),
        wire.Inventory(schema_version=2, schema_changes=[wire.AppliedChange(2, 1, sha("a"))]),
        wire.Inventory(schema_changes=[wire.AppliedChange(1, 1, sha("a"))]),
        wire.Inventory(functions=[running(function("hello", 1)), running(function("hello", 2))]),
    ],
)
def test_an_inventory_that_contradicts_itself(inventory: wire.Inventory) -> None:
    assert plan.inconsistency(inventory)


def test_a_schema_version_that_no_memory_has_room_for_is_inconsistent():
    assert "10000000000000" in plan.inconsistency(wire.Inventory(schema_version=10_000_000_000_000))
