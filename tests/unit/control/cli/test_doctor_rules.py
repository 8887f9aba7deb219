"""The rules of `skerry doctor`, each with answers of control on both sides of its limit."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from control.cli.doctor import access_rules, bucket_rules, certificate_rules, fleet_rules, version_rules
from control.protocol.findings import Finding

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
STORE: dict[str, Any] = {
    "bucket": "b",
    "problem": None,
    "state": "owned",
    "deletions": "on",
    "restored_at": None,
    "access_waiting": 0,
    "access_waiting_since": None,
    "sweep_problem": None,
    "keeps_versions": False,
}
NODE: dict[str, Any] = {
    "name": "edge-1",
    "standing": "at_target",
    "state": "online",
    "warnings": [],
    "version": "0.1.0+a",
}
ADMIN: dict[str, Any] = {
    "name": "ada",
    "grants": [{"role": "admin", "group": None}],
    "expires_at": None,
    "last_used_at": "2026-11-28T11:00:00Z",
    "created_at": "2026-01-01T00:00:00Z",
}


def bad(found: list[Finding]) -> list[tuple[str, str]]:
    """Check and level of each finding that isn't ok; each of those has a cure."""
    assert found
    assert all(finding.cure for finding in found if finding.level != "ok")
    return [(finding.check, finding.level) for finding in found if finding.level != "ok"]


def at(**ago: float) -> str:
    return (NOW - timedelta(**ago)).isoformat()


@pytest.mark.parametrize(
    ("change", "level"),
    [
        ({}, ""),
        ({"standing": "revoked"}, "note"),
        ({"standing": "offline"}, "wrong"),
        ({"standing": "failing"}, "wrong"),
        ({"warnings": [{"kind": "overdue"}]}, "wrong"),
    ],
)
def test_nodes(change: dict[str, Any], level: str) -> None:
    assert bad(fleet_rules.node_findings([NODE, NODE | change])) == ([("nodes", level)] if level else [])


def test_what_ends_on_nodes() -> None:
    def found(days: float, **numbers: str) -> list[tuple[str, str]]:
        credential = {"return_until": at(days=-days)}
        ok = Finding("node_credentials", "ok", "")
        return bad([ok, *fleet_rules.detail_findings([NODE | {"credential": credential, "numbers": numbers}], NOW)])

    assert found(31) == []
    assert found(29) == [("node_credentials", "note")]
    assert found(31, certificate_ends_at=at(days=-29)) == [("node_certificates", "note")]
    assert found(31, trust_ends_at=at(days=-29)) == [("node_certificates", "note")]


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.2.0+b", []),
        ("0.1.3", []),
        ("0.1rc1", []),
        ("0.3.0", [("versions", "note")]),
        ("0.4.0", [("versions", "wrong")]),
        ("0.0.9", [("versions", "wrong")]),
        ("1.2.0", [("versions", "wrong")]),
        ("of a node's own", [("versions", "wrong")]),
        (None, [("versions", "note")]),
    ],
)
def test_versions_of_nodes(version: str | None, expected: list[tuple[str, str]]) -> None:
    assert bad(version_rules.node_findings([NODE | {"version": version}], "0.2.0+a")) == expected


@pytest.mark.parametrize(
    ("answers", "other", "expected"),
    [
        ("0.2.0+a", "0.2.0+a", []),
        ("0.2.0+a", "0.2.0+b", ["note"]),
        ("0.2.0+a", "0.3.0", ["note"]),
        ("0.2.0+a", "0.4.0", ["wrong"]),
        ("0.2.0+a", None, ["note"]),
        ("0.1.0", "0.1.0", []),
        ("0.4.0", "0.4.0", ["wrong"]),
        (None, None, ["note"]),
    ],
)
def test_versions_of_replicas(answers: str | None, other: str | None, expected: list[str]) -> None:
    """Seen by a command of 0.2.0."""
    replicas = [{"version": answers, "answers": True}, {"version": other, "answers": False}]
    assert bad(version_rules.replica_findings(replicas, "0.2.0+a")) == [("replicas", level) for level in expected]
    assert version_rules.controls_version(replicas, "0.2.0+a") == (answers or "0.2.0+a")


def test_groups_and_releases() -> None:
    group = {"name": "shops", "release": {"number": 1}, "nodes": 1}
    assert bad(fleet_rules.group_findings([group])) == []
    assert bad(fleet_rules.group_findings([group | {"nodes": 0}])) == [("groups", "note")]

    def fleet(calls: int, errors: int) -> dict[str, Any]:
        release = {"release": 1, "calls": calls, "errors": errors}
        return {"minutes": 10, "groups": [{"name": "shops", "releases": [release]}]}

    assert bad(fleet_rules.release_findings(fleet(0, 0))) == []
    assert bad(fleet_rules.release_findings(fleet(3, 2))) == []
    assert bad(fleet_rules.release_findings(fleet(3, 3))) == [("releases", "wrong")]


def test_control_its_clock_and_its_certificates() -> None:
    ready = {"status": "ready", "notes": ["the CA ends", "no artifact is deleted: x", "other"]}
    assert bad(fleet_rules.ready_findings(ready, ["the CA ends"])) == [("control", "note")]
    assert bad(fleet_rules.clock_findings(NOW + timedelta(seconds=59), NOW)) == []
    assert bad(fleet_rules.clock_findings(NOW + timedelta(seconds=61), NOW)) == [("clock", "note")]
    assert bad(certificate_rules.certificate_findings({"notes": ["it ends"], "certificates": []})) == [
        ("certificates", "wrong")
    ]
    (told,) = certificate_rules.certificate_findings({"notes": ["certificates: no pair"], "certificates": []})
    assert told.what == "no pair"
    assert bad(certificate_rules.certificate_findings({"notes": [], "certificates": []})) == []
    lacking = {"trust": "x", "nodes": 2, "have": 1, "lacking": [NODE]}
    assert bad(certificate_rules.trust_findings(lacking)) == [("trust", "note")]
    assert certificate_rules.trust_findings(lacking)[0].what.startswith("1 node told of other CAs")
    assert bad(certificate_rules.trust_findings(lacking | {"lacking": []})) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"restored_at": at(hours=1)}, [("metadata", "wrong")]),
        ({"problem": "no bucket"}, [("store", "wrong")]),
        ({"deletions": "held", "held_since": at(hours=1), "held_reason": "x"}, [("store", "note")]),
        ({"access_waiting": 1, "access_waiting_since": at(minutes=4)}, []),
        ({"access_waiting": 1, "access_waiting_since": at(minutes=6)}, [("store", "wrong")]),
        ({"sweep_problem": "x"}, [("store", "wrong")]),
        ({"keeps_versions": True}, [("store", "note")]),
    ],
)
def test_the_store(change: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert bad(bucket_rules.store_findings(STORE | change, NOW)) == expected


def test_a_trial_of_the_store() -> None:
    assert bad(bucket_rules.trial_findings({"code": None, "problem": None})) == []
    assert bad(bucket_rules.trial_findings({"code": "store_full", "problem": "x"})) == [("store", "wrong")]


def test_artifacts() -> None:
    check: dict[str, Any] = {"looked": 1, "artifacts": 1, "faults": []}
    assert bad(bucket_rules.artifact_findings(check)) == []
    fault = {"sha256": "ab", "fault": "missing", "versions": []}
    assert bad(bucket_rules.artifact_findings(check | {"faults": [fault]})) == [("artifacts", "wrong")]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"last_used_at": at(days=91)}, [("operators", "note")]),
        ({"last_used_at": None, "created_at": at(days=6)}, []),
        ({"last_used_at": None, "created_at": at(days=8)}, [("operators", "note")]),
        ({"expires_at": at(days=-29)}, [("operators", "note")]),
        ({"expires_at": at(days=1)}, [("operators", "wrong")]),
        ({"expires_at": at(days=-1), "person": {"name": "x"}}, []),
    ],
)
def test_operators(change: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    others = [ADMIN, ADMIN | {"name": "eve"}]
    assert bad(access_rules.operator_findings([*others, ADMIN | {"name": "bob"} | change], NOW)) == expected


def test_one_admin_is_too_few() -> None:
    (found,) = access_rules.operator_findings([ADMIN, ADMIN | {"grants": [{"role": "admin", "group": "shops"}]}], NOW)
    assert found.what.startswith("ada is the only admin of all groups")


def test_tokens_webhooks_audit_and_refusals() -> None:
    def token(hours: float) -> dict[str, Any]:
        return {"id": "x", "group": "default", "created_by": "ada", "created_at": at(hours=hours)}

    assert bad(access_rules.join_token_findings([token(23)], NOW)) == []
    assert bad(access_rules.join_token_findings([token(25)], NOW)) == [("join_tokens", "note")]
    hook = {"name": "h", "ended_at": None, "given_up": 0}
    assert bad(access_rules.webhook_findings([hook])) == []
    assert bad(access_rules.webhook_findings([hook | {"given_up": 1}])) == [("webhooks", "wrong")]
    assert bad(access_rules.webhook_findings([hook | {"ended_at": at(hours=1)}])) == [("webhooks", "wrong")]
    assert bad(access_rules.audit_findings(unsealed=False)) == []
    assert bad(access_rules.audit_findings(unsealed=True)) == [("audit", "wrong")]

    def refused(count: int, minutes: float) -> list[tuple[str, str]]:
        one = {"minute": at(minutes=minutes), "address": "192.0.2.1", "count": count}
        return bad(access_rules.refusal_findings([one], NOW))

    assert refused(99, 5) == []
    assert refused(100, 5) == [("refusals", "note")]
    assert refused(100, 61) == []


@pytest.mark.parametrize(
    ("listen", "risky"), [("", False), ("127.0.0.1:9090", False), ("[::1]:9090", False), ("0.0.0.0:9090", True)]
)
def test_settings(listen: str, risky: bool) -> None:
    settings = [{"name": "SKERRY_METRICS_LISTEN", "value": listen}]
    assert bad(access_rules.setting_findings(settings, [])) == ([("settings", "note")] if risky else [])
    assert bad(access_rules.setting_findings([], ["SKERRY_X is none"])) == [("settings", "note")]
