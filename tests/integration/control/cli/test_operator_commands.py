"""`skerry operator`: who may do what, in which groups and until when."""

import json

import pytest

from tests.support.up import Shell, Up


def test_operators_of_a_group_with_an_end(skerry: Shell) -> None:
    skerry("group", "create", "branches")
    made = skerry.json(
        "operator",
        "add",
        "ci",
        "--role",
        "push@branches",
        "--role",
        "read",
        "--function",
        "orders",
        "--expires-in",
        "90d",
    )
    pushes = {"role": "push", "group": "branches", "functions": ["orders"]}
    assert made["grants"] == [pushes, {"role": "read", "group": None, "functions": None}]
    assert "push@branches (orders), read" in skerry("operator", "list")
    assert "never" in skerry("operator", "change", "ci", "--role", "deploy@branches", "--no-end")
    [found] = [o for o in skerry.json("operator", "list") if o["name"] == "ci"]
    assert (found["grants"], found["expires_at"]) == (
        [{"role": "deploy", "group": "branches", "functions": None}],
        None,
    )
    skerry("operator", "revoke", "ci", "--yes")


def test_operators_and_their_roles(skerry: Shell, up: Up, monkeypatch: pytest.MonkeyPatch) -> None:
    token = skerry.json("operator", "add", "auditor", "--role", "read")["token"]
    kept = json.loads((up.home / "cli.json").read_text())
    monkeypatch.setenv("SKERRY_URL", kept["url"])
    monkeypatch.setenv("SKERRY_CA", kept["ca"])
    monkeypatch.setenv("SKERRY_TOKEN", token)
    skerry("node", "list")
    skerry("group", "create", "blue", ends=3)
    assert "role_insufficient" in skerry.err
    monkeypatch.setenv("SKERRY_TOKEN", kept["token"])
    assert {operator["name"] for operator in skerry.json("operator", "list")} >= {"admin", "auditor"}
    skerry("operator", "revoke", "auditor", "--yes")
    monkeypatch.setenv("SKERRY_TOKEN", token)
    skerry("node", "list", ends=3)
    assert "credentials_invalid" in skerry.err
    assert "skerry operator add" in skerry.err
    monkeypatch.setenv("SKERRY_TOKEN", kept["token"])
    assert skerry.json("audit", "list", "--limit", "1")[0]["action"].startswith("operator.")
    of_auditor = ("audit", "list", "--target", "auditor", "--actor", "admin", "--since", "1h")
    assert [row["action"] for row in skerry.json(*of_auditor)] == ["operator.revoke", "operator.create"]
    assert 'grants: - → ["read"]' in skerry(*of_auditor)
    assert skerry.json(*of_auditor, "--until", "2d") == []
    skerry("audit", "list", "--since", "soon", ends=2)
