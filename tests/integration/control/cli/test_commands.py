"""The commands of `skerry`, as the person who started `skerry up` gives them."""

import json
import os
import re
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from uuid import uuid4

import pytest

from control.protocol import version
from edge_runtime.cli.status import read_status, render
from tests.support.deadlines import scaled
from tests.support.up import LIMIT, ROOT, Shell, Up


def test_status_for_a_script(skerry: Shell) -> None:
    found = skerry.json("status")
    assert [group["name"] for group in found["groups"]][-1] == "default"
    (node,) = found["nodes"]
    assert (node["name"], node["at_target"], node["state"], node["error"]) == ("edge-1", True, "online", None)
    skerry("status", "--check")


def test_status_shows_how_a_releases_calls_end(skerry: Shell) -> None:
    """Nodes tell it with their polls, each 5 s for two minutes after a change of release."""
    hello = ROOT / "examples" / "hello"
    push = ("function", "push", "told", str(hello / "hello.wasm"), "--manifest", str(hello / "manifest.json"), "--wait")
    release = skerry.json(*push)["release"]["number"]
    for _ in range(3):
        skerry("invoke", "told")
    deadline = time.monotonic() + scaled(LIMIT)
    while True:
        found = skerry.json("status")["fleet"]
        (group,) = (g for g in found["groups"] if g["name"] == "default")
        newest = group["releases"][0]
        # What is shown of the fleet may be some seconds old, and of the release before.
        if newest["release"] == release and newest["calls"] >= 3:
            break
        assert time.monotonic() < deadline, group
        time.sleep(0.2)
    assert (group["release"], newest["nodes"], newest["errors"]) == (release, 1, 0)
    assert (group["nodes"], group["standings"]["at_target"]) == (1, 1)
    assert 0 < newest["p50"] <= newest["p99"] < LIMIT
    assert f"release {group['release']}: 1 node, " in skerry("status")


def test_wait_and_a_nodes_status_tell_the_same_release(skerry: Shell) -> None:
    """Also where the node needs no change for a release, and so knows of it by the number alone."""
    release = skerry.json("release", "create", "--reason", "nothing new", "--wait")
    node = release["nodes"][0]
    assert node["generation"] == release["generation"]
    said = skerry("release", "create", "--reason", "nothing new again", "--wait")
    [told] = re.findall(r"runs release (\d+ of group default \(generation \d+\)) after", said)
    assert told.startswith(f"{release['number'] + 1} of group default ")
    edge = json.loads((Path(os.environ["SKERRY_HOME"]) / "cli.json").read_text())["edge"]
    listen = edge.removeprefix("http://")
    deadline = time.monotonic() + scaled(LIMIT)
    while (status := render(read_status(listen, ""))) and f"release    {told}" not in status:
        assert time.monotonic() < deadline, status
        time.sleep(0.05)
    # It says, too, by which number it came here.
    assert re.search(r"applied as release \d+ \(generation \d+\)", status)
    assert skerry.json("node", "show", node["name"])["generation"] == release["generation"] + 1


def test_who_asks_and_how_a_group_is(skerry: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    me = skerry.json("whoami")
    assert (me["operator"], me["by_session"], me["ends_at"]) == ("admin", False, None)
    assert skerry("whoami").split() == ["operator", "admin", "control", me["url"], "may", "admin", "by", "its", "token",
                                        "ends", "never"]  # fmt: skip
    token = skerry.json("operator", "add", "reads", "--role", "read@default", "--expires-in", "1d")["token"]
    with monkeypatch.context() as patch:
        patch.setenv("SKERRY_URL", me["url"])
        patch.setenv("SKERRY_CA", str(Path(os.environ["SKERRY_HOME"]) / "pki" / "ca.pem"))
        patch.setenv("SKERRY_TOKEN", token)
        assert "read@default" in skerry("whoami")
    skerry("operator", "revoke", "reads", "--yes")
    newest = skerry.json("release", "list", "--limit", "1")[0]
    shown = skerry("group", "show", "default")
    for part in ("1 at target", f"{newest['number']} (generation {newest['generation']})", "hello@1"):
        assert part in shown
    assert skerry.json("group", "show", "default")["release"]["number"] == newest["number"]
    skerry("group", "show", "nowhere", ends=3)
    assert "[unknown_group, field group]" in skerry.err


def test_names_with_a_slip_are_answered_with_the_near_ones(skerry: Shell) -> None:
    hello = ROOT / "examples" / "hello"
    pushed = ("function", "push", "greeting", str(hello / "hello.wasm"), "--manifest", str(hello / "manifest.json"))
    skerry(*pushed, "--no-release")
    operator = skerry.json("operator", "list")[0]["name"]
    for words, told in (
        (("node", "show", "egde-1"), "is edge-1 meant?"),
        (("node", "show", "edge-11"), "is edge-1 meant?"),
        (("function", "show", "greetnig"), "is greeting meant?"),
        (("release", "create", "--group", "defualt"), "is default meant?"),
        (("release", "create", "--set", "greetnig=1"), "is greeting meant?"),
        (("function", "show", "greeting@99"), "`skerry function show greeting` shows its versions"),
        (("operator", "show", f"{operator}x"), f"is {operator} meant?"),
        (("group", "delete", "quite-another", "--yes"), "`skerry group list` shows"),
        (("webhook", "delete", "quite-another", "--yes"), "`skerry webhook list` shows"),
    ):
        skerry(*words, ends=3)
        assert told in skerry.err
    # As it is printed, so it is taken.
    assert skerry.json("function", "show", "greeting@1") == skerry.json("function", "show", "greeting", "1")
    assert "greeting@1" in skerry("function", "show", "greeting@1")
    release = skerry.json("release", "create", "--set", "greeting@1", "--wait")
    assert ("greeting", 1) in [(f["name"], f["version"]) for f in release["functions"]]
    skerry("release", "create", "--remove", "greeting", "--wait")
    skerry("function", "delete", "greeting@1", "--yes", "--force")


def test_refusals_name_the_code_and_change_nothing(skerry: Shell, tmp_path: Path) -> None:
    before = skerry.json("release", "list")
    no_module, bad_sql, large = tmp_path / "no.wasm", tmp_path / "bad.sql", tmp_path / "large.wasm"
    no_module.write_bytes(b"not a module")
    bad_sql.write_text("CREATE TABL x (y)")
    with large.open("wb") as file:
        file.truncate(64 * 1024 * 1024 + 1)
    for arguments, code in [
        (["function", "push", "no", str(no_module)], "module_refused"),
        (["function", "push", "large", str(large)], "artifact_too_large"),
        (["schema", "add", str(bad_sql)], "schema_refused"),
        (["release", "create", "--set", "hello=99"], "unknown_version"),
        (["release", "create", "--group", "nowhere"], "unknown_group"),
        (["node", "show", "nobody"], "unknown_node"),
        (["function", "delete", "hello", "--yes"], "version_in_target"),
    ]:
        skerry(*arguments, ends=3)
        assert code in skerry.err
    assert skerry.json("release", "list") == before


def test_a_refused_command_changes_nothing(skerry: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The release is refused; before, the version or the schema change was made all the same."""

    def everything() -> list[object]:
        return [skerry.json(*verb, "list") for verb in (("function",), ("schema",), ("release",), ("operator",))]

    wasm, file, project = ROOT / "examples" / "hello" / "hello.wasm", tmp_path / "halves.sql", tmp_path / "halves"
    file.write_text("CREATE TABLE halves (name TEXT);")
    monkeypatch.chdir(tmp_path)
    skerry("function", "new", project.name, "--lang", "c")
    before = everything()
    for arguments in (
        ["function", "push", "halves", str(wasm), "--group", "nope"],
        ["schema", "add", str(file), "--group", "nope"],
        ["schema", "amend", "1", str(file), "--group", "nope"],
        ["release", "create", "--group", "nope"],
        ["operator", "add", "of-nope", "--role", "read@nope"],
        ["node", "token", "--group", "nope"],
    ):
        skerry(*arguments, ends=3)
        assert "unknown_group" in skerry.err
        assert everything() == before
    # It isn't even built.
    skerry("function", "push", str(project), "--group", "nope", ends=3)
    assert "is built" not in skerry.out
    skerry("function", "push", "halves", str(wasm), "--schema", "999", ends=3)
    assert everything() == before
    assert skerry.json("function", "push", "halves", str(wasm), "--no-release")["version"]["version"] == 1
    skerry("function", "delete", "halves", "--yes")


def test_a_rollback_goes_to_the_last_good_release(skerry: Shell) -> None:
    wasm = ROOT / "examples" / "hello" / "hello.wasm"
    good = skerry.json("release", "create", "--reason", "a good one", "--wait")
    skerry("function", "push", "bad", str(wasm), "--wait")
    planned = skerry("rollback", "--plan")
    assert f"would be made (generation {good['generation'] + 2}), a rollback to release {good['number']}:" in planned
    assert "- bad@1 is removed" in planned
    assert skerry.json("rollback", "--plan")["rollback_to"] == good["number"]
    assert skerry.json("release", "list", "--limit", "1")[0]["number"] == good["number"] + 1
    assert "- bad@1 is removed" in skerry("rollback", "default", "--reason", "bad is bad", "--wait")
    assert f"release {good['number'] + 2} of group default is made" in skerry.out
    newest = skerry.json("release", "list", "--limit", "1")[0]
    assert (newest["rollback_to"], newest["reason"]) == (good["number"], "bad is bad")
    skerry("group", "create", "untried")
    skerry("rollback", "untried", ends=3)
    assert "release_not_possible" in skerry.err
    skerry("function", "delete", "bad", "--force", "--yes")


def test_a_function_is_deleted_with_its_place_in_the_release(skerry: Shell) -> None:
    wasm = ROOT / "examples" / "hello" / "hello.wasm"
    pushed = skerry.json("function", "push", "twice", str(wasm), "--sql", "read", "--wait", "--reason", "why not")
    assert pushed["release"]["nodes"][0]["at_target"]
    assert [item["name"] for item in pushed["release"]["changes"]["add"]] == ["twice"]
    assert skerry.json("release", "list", "--limit", "1")[0]["reason"] == "why not"
    assert skerry.json("invoke", "twice", "?language=de")["status"] == 200
    skerry("function", "delete", "twice", "1", "--release", "--yes")
    assert "twice" not in [item["name"] for item in skerry.json("function", "list") if item["versions"]]
    again = skerry.json("function", "push", "twice", str(wasm), "--no-release")
    assert again["version"]["version"] == 2
    assert again["release"] is None


def test_the_life_of_a_node(skerry: Shell, up: Up, tmp_path: Path) -> None:
    skerry("group", "create", "spare")
    unwanted = skerry.json("node", "token")
    made = skerry.json("node", "token", "--group", "spare")
    assert unwanted["id"] in skerry("node", "token", "list")
    assert unwanted["token"] not in skerry.out
    skerry("node", "token", "revoke", "nonsense", ends=2)
    assert "`skerry node token list` has the ids" in skerry.err
    assert unwanted["id"] in skerry("node", "token", "revoke", unwanted["token"])
    assert unwanted["token"] not in skerry.out
    listed = {token["id"]: token["state"] for token in skerry.json("node", "token", "list")}
    assert (listed[unwanted["id"]], listed[made["id"]]) == ("revoked", "open")
    listed = [token["id"] for token in skerry.json("node", "token", "list", "--state", "revoked")]
    assert (unwanted["id"] in listed, made["id"] in listed) == (True, False)
    join = [sys.executable, "-m", "edge_runtime.cli.main", "join", "--control", made["url"], "--name", "edge-9"]
    told = {**up.environment, "SKERRY_JOIN_TOKEN": made["token"]}
    subprocess.run([*join, "--state", str(tmp_path / "edge-9")], env=told, check=True, timeout=scaled(LIMIT))
    assert skerry.json("node", "show", "edge-9")["group"] == "spare"
    skerry("node", "token", "revoke", made["id"], ends=3)
    assert "skerry node revoke edge-9" in skerry.err
    assert {group["name"]: group["nodes"] for group in skerry.json("group", "list")}["spare"] == 1
    assert skerry.json("node", "move", "edge-9", "default")["group"] == "default"
    skerry("node", "retry", "edge-9")
    assert "ends in 90 d" in skerry("node", "show", "edge-9")
    skerry("node", "revoke", "edge-9")
    assert "none is valid" in skerry("node", "show", "edge-9")
    assert re.search(r"^standing +revoked *$", skerry.out, re.MULTILINE)
    for which in (["--standing", "revoked"], ["--state", "revoked"]):
        assert [node["name"] for node in skerry.json("node", "list", *which)] == ["edge-9"]
    assert re.search(r"edge-9 +default +revoked ", skerry("node", "list"))
    said = skerry("status", "--check", ends=5)
    assert re.search(r"edge-9: revoked (\d+(\.\d)? s ago|now)", said)
    assert "`skerry node delete edge-9`" in said
    assert "not well: edge-9 (revoked)" in skerry.err
    assert "skerry node token --rejoin" in skerry.err
    # It neither holds a release up nor counts as one that has it; a script gets its name.
    made = skerry.json("release", "create", "--wait", ends=6)
    none: dict[str, list[str]] = {"failed": [], "late": [], "offline": [], "held": []}
    assert made["followed"] == {"arrived": ["edge-1"], "revoked": ["edge-9"], **none}
    assert json.loads(skerry.err)["error"]["code"] == "nodes_not_reached"
    skerry("release", "create", "--wait", ends=6)
    assert "edge-9 is revoked: it gets no release" in skerry.out

    # It joins again, under the name that it has.
    told["SKERRY_JOIN_TOKEN"] = skerry.json("node", "token", "--rejoin", "edge-9")["token"]
    again = [*join[: join.index("--name")], "--again", "--state", str(tmp_path / "edge-9")]
    subprocess.run(again, env=told, check=True, timeout=scaled(LIMIT))
    assert "ends in 90 d" in skerry("node", "show", "edge-9")

    # Its disk is lost: the same name again, with a token for it.
    rejoin = skerry.json("node", "token", "--rejoin", "edge-9")
    told["SKERRY_JOIN_TOKEN"] = rejoin["token"]
    subprocess.run([*join, "--state", str(tmp_path / "new-disk")], env=told, check=True, timeout=scaled(LIMIT))
    assert "tokyo-1" in skerry("node", "rename", "edge-9", "tokyo-1")
    skerry("node", "rename", "edge-1", "tokyo-1", ends=3)
    assert skerry("node", "label", "tokyo-1", "site=tokyo", "floor=2") == "tokyo-1: floor=2 site=tokyo\n"
    assert skerry.json("node", "label", "tokyo-1", "floor-")["labels"] == {"site": "tokyo"}
    skerry("node", "label", "tokyo-1", "floor", ends=2)
    skerry("node", "delete", "tokyo-1", "--yes")
    skerry("node", "show", "tokyo-1", ends=3)
    skerry("group", "delete", "default", "--yes", ends=3)
    assert "default" in skerry.err
    skerry("group", "delete", "spare", "--yes")
    assert "spare" not in {group["name"] for group in skerry.json("group", "list")}
    assert [node["name"] for node in skerry.json("node", "list")] == ["edge-1"]


def test_a_release_that_a_node_is_too_old_for(skerry: Shell, up: Up) -> None:
    assert "abi wagi extism direct" in skerry("node", "show", "edge-1")
    assert re.search(r"manifest +all fields *$", skerry.out, re.MULTILINE)
    assert re.search(rf"^version +{re.escape(version.running().short)} *$", skerry.out, re.MULTILINE)
    assert skerry.json("node", "list")[0]["version"] == version.running().short
    wasm = str(ROOT / "examples" / "hello" / "hello.wasm")
    for group in ("old", "ageing"):
        skerry("group", "create", group)
    made = skerry.json("node", "token", "--group", "old")
    body = {"name": "edge-7", "attempt": str(uuid4()), "capabilities": {"abi": ["extism"], "manifest": ["abi"]}}
    request = urllib.request.Request(f"{made['url']}/v1/nodes", json.dumps(body).encode())
    request.add_header("Authorization", f"Bearer {made['token'].partition('.')[0]}")
    request.add_header("Content-Type", "application/json")
    tls = ssl.create_default_context(cafile=json.loads((up.home / "cli.json").read_text())["ca"])
    urllib.request.urlopen(request, timeout=scaled(LIMIT), context=tls).close()
    assert "manifest" in skerry("node", "show", "edge-7")
    assert "all fields but entry, route" in skerry.out

    push = ["function", "push", "late", wasm, "--group", "old"]
    skerry(*push, ends=3)
    assert "nodes_unfit" in skerry.err
    assert "edge-7 lacks the ABI wagi (for late)" in skerry.err
    assert skerry.json(*push, "--no-release")["version"]["version"] == 1
    create = ["release", "create", "--group", "old", "--set", "late=1", "--schema", "0"]
    lacking = "! node edge-7 can't run it, it lacks the ABI wagi (for late)"
    assert lacking in skerry(*create, "--plan")
    skerry(*create, ends=3)
    assert lacking in skerry(*create, "--allow-unfit")
    skerry(*push, "--allow-unfit", "--now")
    skerry("node", "move", "edge-7", "ageing")
    skerry("node", "move", "edge-7", "old", ends=3)
    assert "nodes_unfit" in skerry.err
    assert skerry.json("node", "move", "edge-7", "old", "--allow-unfit")["group"] == "old"
    skerry("node", "delete", "edge-7", "--yes")


def test_a_release_that_no_node_can_reach_in_time(skerry: Shell, tmp_path: Path, up: Up) -> None:
    """A node that joined and never ran is waited for until the limit, and named."""
    skerry("group", "create", "asleep")
    made = skerry.json("node", "token", "--group", "asleep")
    join = [sys.executable, "-m", "edge_runtime.cli.main", "join", "--control", made["url"], "--name", "edge-8"]
    told = {**up.environment, "SKERRY_JOIN_TOKEN": made["token"]}
    subprocess.run([*join, "--state", str(tmp_path / "edge-8")], env=told, check=True, timeout=scaled(LIMIT))
    skerry("release", "create", "--group", "asleep", "--schema", "0", "--wait", "--timeout", "500ms", ends=5)
    assert "edge-8" in skerry.err
    skerry("node", "delete", "edge-8", "--yes")


def test_every_verb_that_makes_a_release_shows_its_plan(skerry: Shell, tmp_path: Path) -> None:
    def everything() -> list[object]:
        return [skerry.json(*verb, "list") for verb in (("function",), ("schema",), ("release",), ("node",))]

    file = tmp_path / "plans.sql"
    file.write_text("CREATE TABLE plans (name TEXT);")
    skerry("group", "create", "plans")
    before = everything()
    assert "(plans) would be registered" in skerry("schema", "add", str(file), "--plan")
    newest = [change for change in skerry.json("schema", "list") if not change["withdrawn"]][-1]
    file.write_text(newest["sql"] + " -- again")
    said = skerry("schema", "amend", str(newest["number"]), str(file), "--plan")
    assert "revision" in said
    assert "would be made" in said
    visits = ROOT / "examples" / "visits"
    planned = skerry("function", "push", "planned", str(visits / "visits.wasm"), "--plan")
    assert "planned@1 would be made" in planned
    assert "+ planned@1" in planned
    name = skerry.json("function", "list")[0]["name"]
    assert "would be deleted" in skerry("function", "delete", name, "--release", "--force", "--plan")
    assert "edge-1 would move to group plans" in skerry("node", "move", "edge-1", "plans", "--plan")
    skerry("schema", "add", str(file), "--plan", "--wait", ends=2)
    assert everything()[:3] == before[:3]


def test_operators_of_a_group_with_an_end(skerry: Shell) -> None:
    skerry("group", "create", "branches")
    roles = ("--role", "push@branches", "--role", "read", "--function", "orders")
    made = skerry.json("operator", "add", "ci", *roles, "--expires-in", "90d")
    pushes = {"role": "push", "group": "branches", "functions": ["orders"]}
    assert made["grants"] == [pushes, {"role": "read", "group": None, "functions": None}]
    assert "push@branches (orders), read" in skerry("operator", "list")
    assert "never" in skerry("operator", "change", "ci", "--role", "deploy@branches", "--no-end")
    [found] = [o for o in skerry.json("operator", "list") if o["name"] == "ci"]
    deploys = {"role": "deploy", "group": "branches", "functions": None}
    assert (found["grants"], found["expires_at"]) == ([deploys], None)
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
