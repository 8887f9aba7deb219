"""What nodes can run and what functions need: control's rule is the edge's own check of a plan."""

from typing import Any, Literal, get_args
from unittest import mock

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.problems import ProblemError
from control.protocol import wire
from control.protocol.manifest import MANIFEST_FIELDS, Manifest, field_paths
from control.sync import compatibility, requirements
from control.sync.requirements import Need
from edge_runtime.errors import SyncFailed
from edge_runtime.sync import capabilities as told
from edge_runtime.sync import plan_check

ABIS = st.sampled_from(told.ABIS)
METHODS = st.lists(st.sampled_from(["GET", "PUT"]), min_size=1, max_size=2)
MANIFESTS = st.fixed_dictionaries(
    {"abi": ABIS},
    optional={
        "entry": st.just("run"),
        "route": st.fixed_dictionaries(
            {"path": st.just("/a/{id}")}, optional={"methods": METHODS, "hosts": st.just(["shop.example"])}
        ),
        "sql": st.sampled_from(["none", "read", "write"]),
        "http": st.fixed_dictionaries(
            {"hosts": st.just(["api.example"])},
            optional={"methods": METHODS, "request_bytes": st.integers(0, 9), "time_limit_ms": st.integers(10, 20)},
        ),
        # Names of fields, and no fields.
        "config": st.dictionaries(st.sampled_from(["hosts", "path", "abi"]), st.just("x")),
        "secrets": st.just(["KEY"]),
        "time_limit_ms": st.integers(10, 60_000),
        "queue": st.integers(0, 5),
        "probe": st.fixed_dictionaries({}, optional={"path": st.just("/"), "status": st.just(204)}),
    },
).map(lambda manifest: msgspec.to_builtins(msgspec.convert(manifest, Manifest)))
"""As control keeps them."""


LOST = [field for field in MANIFEST_FIELDS if field not in ("abi", "schedule", "timezone")]
"""Fields that an older version may lack; the check of a plan itself reads the others."""


def older(kind: type[msgspec.Struct], lost: set[str], abis: set[str], above: str = "") -> Any:
    """`kind` as a version had it that didn't know these fields and knew only these ABIs."""
    made = []
    for field in msgspec.structs.fields(kind):
        path = above + field.name
        if path in lost:
            continue
        type_ = field.type
        if path == "abi":
            type_ = Literal["", *sorted(abis)]  # type: ignore[valid-type]
        for part in get_args(type_):
            if isinstance(part, type) and issubclass(part, msgspec.Struct):
                type_ = older(part, lost, abis, f"{path}.") | None
        default = msgspec.field(default_factory=field.default_factory)
        if field.default_factory is msgspec.NODEFAULT:
            default = msgspec.field() if field.default is msgspec.NODEFAULT else msgspec.field(default=field.default)
        made.append((field.name, type_, default))
    return msgspec.defstruct(kind.__name__, made, forbid_unknown_fields=True, kw_only=True)


@given(
    MANIFESTS,
    st.sets(st.sampled_from(LOST), max_size=3),
    st.sets(ABIS, min_size=1),
)
def test_the_rule_is_what_a_nodes_check_of_a_plan_does(
    manifest: dict[str, Any], lost: set[str], abis: set[str]
) -> None:
    version = older(Manifest, lost, abis)
    document = {"abi": sorted(abis), "manifest": list(field_paths(version))}
    lacks = requirements.lacks(document, requirements.needs({"f": manifest}))
    with mock.patch.object(plan_check, "Manifest", version):
        if lacks:
            with pytest.raises(SyncFailed, match="the manifest of function f is not one that this node understands"):
                plan_check.parse_manifest("f", manifest)
        else:
            plan_check.parse_manifest("f", manifest)


@given(st.dictionaries(st.sampled_from(["f", "g"]), MANIFESTS))
def test_a_node_of_this_version_lacks_nothing(manifests: dict[str, dict[str, Any]]) -> None:
    assert requirements.lacks(told.document(), requirements.needs(manifests)) == []


def test_what_is_lacking_is_named_with_who_needs_it() -> None:
    new = {"abi": "direct", "http": {"hosts": ["a.example"], "retries": 3}, "cron": {"at": "noon"}}
    needs = requirements.needs({"new": new, "old": {"abi": "wagi"}, **{f"d{n}": {"abi": "direct"} for n in range(4)}})
    document = {"abi": ["wagi"], "manifest": list(MANIFEST_FIELDS)}
    lacks = requirements.lacks(document, needs)
    assert [requirements.shown(need, needs[need]) for need in lacks] == [
        "the ABI direct (for d0, d1, d2 and 2 others)",
        "the manifest's field cron (for new)",
        "the manifest's field http.retries (for new)",
    ]
    # What is in a field that is lacking whole is lacking with it.
    without_http = {"manifest": [field for field in MANIFEST_FIELDS if not field.startswith("http")]}
    assert requirements.lacks(without_http, needs) == [Need("manifest", "cron"), Need("manifest", "http")]


@pytest.mark.parametrize("document", [{}, {"abi": None}, {"abi": "wagi", "manifest": {"abi": 1}}, {"features": []}])
def test_what_a_node_has_not_told_is_not_held_against_it(document: dict[str, Any]) -> None:
    needs = requirements.needs({"f": {"abi": "direct", "secrets": ["KEY"]}})
    assert requirements.lacks(document, needs) == []
    assert requirements.lacks({**document, "abi": [{"odd": 1}, 2]}, needs) == [Need("abi", "direct")]


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=5))
def test_the_first_by_name_are_named_and_all_are_counted(groups: list[tuple[bool, int]]) -> None:
    made, unfit = [], []
    for number, (fit, nodes) in enumerate(groups):
        names = [f"n-{node:02}-{number}" for node in range(nodes)]
        unfit += [] if fit else names
        document = {"abi": ["wagi", "direct"] if fit else ["wagi"], "manifest": ["abi"]}
        made.append(compatibility.SameCapabilities(document, nodes, names[: compatibility.NAMED]))
    found = compatibility.unfit(made, {"f": {"abi": "direct"}})
    assert found.count == len(unfit)
    assert [node.name for node in found.nodes] == sorted(unfit)[: compatibility.NAMED]
    assert all(node.lacks == ["the ABI direct (for f)"] for node in found.nodes)


def test_a_refusal_names_some_and_says_what_to_do() -> None:
    compatibility.refuse(compatibility.Unfit(0, []), "default")
    nodes = [compatibility.UnfitNode(f"n{n}", ["the ABI direct (for f)"]) for n in range(7)]
    with pytest.raises(ProblemError) as caught:
        compatibility.refuse(compatibility.Unfit(30, nodes), "default")
    assert (caught.value.code, caught.value.status, caught.value.field) == ("nodes_unfit", 409, "allow_unfit")
    text = caught.value.detail
    assert text.startswith(
        "30 nodes can't run this release of group default: n0 lacks the ABI direct (for f); n1 lacks"
    )
    assert "n4 lacks the ABI direct (for f) and 25 others. Upgrade" in text
    assert "n5" not in text
    for way in ("Upgrade", "skerry node move", "--allow-unfit"):
        assert way in text
    with pytest.raises(ProblemError, match=r"1 node can't run .* n0 lacks the ABI direct \(for f\)\. Upgrade"):
        compatibility.refuse(compatibility.Unfit(1, nodes[:1]), "default")


def test_a_document_is_bounded() -> None:
    requirements.check("labels", {"a": "x" * (requirements.LIMIT - 8)})
    deep: Any = []
    for _ in range(600):
        deep = [deep]
    for wrong, said in (({"a": "x" * (requirements.LIMIT - 7)}, "16384 bytes at most"), (deep, "nested too deeply")):
        with pytest.raises(ProblemError, match=said) as caught:
            requirements.check("capabilities", wrong)
        assert (caught.value.code, caught.value.field) == ("invalid_body", "capabilities")


def test_another_document_or_protocol_has_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    document = told.document()
    digest = told.digest(document)
    assert told.digest(dict(reversed(document.items()))) == digest
    digests = {digest, told.digest({**document, "python": "4.0"})}
    monkeypatch.setattr(wire, "PROTOCOL", wire.PROTOCOL + 1)
    digests.add(told.digest(document))
    assert len(digests) == 3
    assert all(len(text) == 64 for text in digests)
    requirements.check("capabilities", document)
