"""What a node demands of a plan before it follows it."""

from typing import Any

import pytest

from control.protocol import wire
from control.protocol.manifest import Manifest
from edge_runtime.disk_space import DISK_RESERVE
from edge_runtime.errors import SyncFailed
from edge_runtime.sync import plan_check

SHA = "a" * 64


def planned(name: str = "hello", manifest: dict[str, Any] | None = None, **changes: Any) -> wire.PlannedFunction:
    manifest = manifest if manifest is not None else {"abi": "wagi"}
    return wire.PlannedFunction(
        **{
            "name": name,
            "version": 1,
            "sha256": SHA,
            "size": 1000,
            "url": "https://store/x",
            "manifest": manifest,
            "manifest_digest": "b" * 64,
        }
        | changes
    )


def plan(generation: int = 5, functions: list[wire.PlannedFunction] | None = None) -> wire.Plan:
    return wire.Plan("s", 60.0, generation, "r", 1, 0, functions=functions or [])


def test_a_lower_generation_is_refused_and_the_same_one_is_followed() -> None:
    with pytest.raises(SyncFailed) as caught:
        plan_check.check_plan(plan(4), 5)
    assert caught.value.code == "generation_lower"
    assert plan_check.check_plan(plan(5), 5) == {}


def test_the_manifests_of_a_plan_are_typed() -> None:
    function = planned(manifest={"sql": "read", "time_limit_ms": 50})
    assert plan_check.check_plan(plan(functions=[function]), 0) == {"hello": Manifest(sql="read", time_limit_ms=50)}


@pytest.mark.parametrize(
    "manifest",
    [
        *({"grant_network": True}, {"sql": "admin"}, {"time_limit_ms": "5"}),
        *({"schedule": ["0 0 L * *"]}, {"schedule": ["0 3 * * *"], "timezone": "Europe/Atlantis"}),
    ],
)
def test_a_manifest_that_the_node_does_not_understand_fails_the_sync_by_name(manifest: dict[str, Any]) -> None:
    with pytest.raises(SyncFailed, match="function hello") as caught:
        plan_check.check_plan(plan(functions=[planned(manifest=manifest)]), 0)
    assert caught.value.code == "manifest_unknown"


def test_a_function_named_twice_is_refused() -> None:
    with pytest.raises(SyncFailed) as caught:
        plan_check.check_plan(plan(functions=[planned(), planned(version=2)]), 0)
    assert caught.value.code == "plan_invalid"


def test_space_is_needed_for_what_is_missing_alone() -> None:
    one, other = planned("a", sha256="1" * 64, size=100), planned("b", sha256="2" * 64, size=1000)
    same = planned("c", sha256="2" * 64, size=1000)
    assert plan_check.space_needed([one, other, same], {}) == 1100 * 7
    assert plan_check.space_needed([one, other], {"1" * 64: 100}) == 7000
    assert plan_check.space_needed([one, other], {"1" * 64: 100, "2" * 64: 400}) == 6600
    assert plan_check.space_needed([one], {"1" * 64: 100}) == 0


def test_a_disk_that_is_too_full_is_refused_before_the_download_and_says_how_much_is_missing() -> None:
    plan_check.check_space(1, DISK_RESERVE + 1, "/x")
    plan_check.check_space(0, 0, "/x")  # nothing to fetch: nothing to refuse
    with pytest.raises(SyncFailed, match=r"needs 3\.0 MiB .* /x has only 18\.0 MiB") as caught:
        plan_check.check_space(3 * 1024 * 1024, 18 * 1024 * 1024, "/x")
    assert caught.value.code == "disk_full"
