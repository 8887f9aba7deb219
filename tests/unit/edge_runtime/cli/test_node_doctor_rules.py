"""The rules of `skerry-edge doctor`, each with facts on both sides of its limit."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from control.protocol.findings import Finding, lines, worst
from edge_runtime import wal
from edge_runtime.cli.doctor import control_connection, machine, running_node, setting_rules, state_files
from edge_runtime.cli.doctor.control_connection import ControlFacts
from edge_runtime.cli.doctor.state_files import MIB, StateFacts
from edge_runtime.oneshot import database_guard
from edge_runtime.settings import WAL_LIMIT
from edge_runtime.sync.identity import Identity
from edge_runtime.wal import DatabaseSizes

STATE = Path("/var/lib/skerry")
NOW = 1_800_000_000.0
DAY = 86_400.0
WHO = Identity("id", "edge-1", "default", "https://control:8443", "secret", datetime.fromtimestamp(NOW, UTC))
STATUS: dict[str, Any] = {
    "version": "1",
    "control": {"error": None, "trust": {"error": None}},
    "at_target": True,
    "error": None,
    "functions": [{"name": "f", "runs": True, "error": None, "releases": [{"calls": 3, "errors": 1}]}],
    "workers": {"wanted": 2, "fit": 2, "unfenced": [], "error": None},
    "records": {"error": None},
    "database": {"writes": "open", "held_by": None, "checkpoint_error": None, "steps": {"error": None}},
    "verified": {"damaged": []},
}


def levels(found: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.level for finding in found}


def state(**more: Any) -> StateFacts:
    sizes = DatabaseSizes(MIB, 0, 0, 100 * 1024 * MIB)
    return StateFacts(STATE, 1000, 1000, (), False, sizes, 200 * 1024 * MIB)._replace(**more)


def test_the_worst_comes_first_and_what_is_well_only_when_asked_for() -> None:
    found = [Finding("a", "ok", "fine"), Finding("b", "note", "is x meant?", "y"), Finding("c", "wrong", "broken", "z")]
    assert worst(found) == "wrong"
    assert worst(found[:2]) == "note"
    assert worst([]) == "ok"
    counts = "1 wrong, 1 to note, 1 as they should be"
    shown = ["wrong  c: broken. Do: z", "note   b: is x meant? Do: y"]
    assert lines(found, verbose=False) == [*shown, counts]
    assert lines(found, verbose=True) == [*shown, "ok     a: fine", counts]


@pytest.mark.parametrize(
    ("facts", "level"),
    [
        (None, "wrong"),
        (state(), "ok"),
        (state(owner=1), "wrong"),
        (state(closed=("its file is closed", "chown it")), "wrong"),
        (state(open=((STATE, 0o750),)), "wrong"),
        (state(open=((STATE, 0o700),)), "ok"),
        (state(noexec=True), "wrong"),
    ],
)
def test_the_state_directory(facts: StateFacts | None, level: str) -> None:
    assert levels(state_files.state_findings(facts, STATE)) == {"state": level}


@pytest.mark.parametrize(("free", "level"), [(100_000, "ok"), (1_000, "note"), (250, "wrong"), (15, "wrong")])
def test_the_disk(free: int, level: str) -> None:
    facts = state(sizes=DatabaseSizes(MIB, 0, 0, free * MIB))
    assert levels(state_files.disk_findings(facts)) == {"disk": level}


@pytest.mark.parametrize(("free", "cure"), [(0, "df -h"), (1_000, "check-database")])
def test_a_database_that_cant_be_opened_on_a_full_disk_is_not_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, cure: str
) -> None:
    """To open it takes room, too."""

    def refuse(*_: object, **__: object) -> Any:
        raise database_guard.GuardFailed("database_unfit", "disk I/O error")

    monkeypatch.setattr(database_guard, "guarded", refuse)
    (tmp_path / "db").mkdir()
    (tmp_path / wal.FILE).write_bytes(b"x")
    (found,) = state_files.database_findings(tmp_path, DatabaseSizes(1, 0, 0, free * MIB))
    assert found.level == "wrong"
    assert cure in found.cure


@pytest.mark.parametrize(
    ("backup", "expected"),
    [(None, {}), ({"error": None}, {"backup": "ok"}), ({"error": "no room"}, {"backup": "wrong"})],
)
def test_the_backup(backup: Any, expected: dict[str, str]) -> None:
    found = levels(running_node.node_findings({**STATUS, "backup": backup}, "1", str(STATE)))
    assert {check: level for check, level in found.items() if check == "backup"} == expected


@pytest.mark.parametrize(("log", "level"), [(0, "ok"), (WAL_LIMIT // 2, "note"), (WAL_LIMIT, "wrong")])
def test_the_write_ahead_log(log: int, level: str) -> None:
    assert levels(state_files.log_findings(state(sizes=DatabaseSizes(MIB, 0, log, MIB)))) == {"wal": level}


@pytest.mark.parametrize(("skew", "level"), [(0, "ok"), (-29, "ok"), (31, "note"), (-31, "note"), (400, "wrong")])
def test_the_clock(skew: float, level: str) -> None:
    assert levels(control_connection.clock_findings(skew)) == {"clock": level}


@pytest.mark.parametrize(("left", "level"), [(31 * DAY, "ok"), (29 * DAY, "note"), (DAY / 2, "wrong")])
def test_the_end_of_controls_certificate(left: float, level: str) -> None:
    assert levels(control_connection.end_findings(NOW + left, NOW)) == {"control_certificate": level}
    assert control_connection.end_findings(None, NOW) == []


@pytest.mark.parametrize("code", ["name_unknown", "unreachable", "timed_out", "proxy_failed", "clock_behind", "x"])
def test_each_way_in_which_control_cant_be_reached_has_a_cure(code: str) -> None:
    (found,) = control_connection.control_findings(ControlFacts(WHO.control_url, (code, "why")), STATE)
    assert (found.check, found.level) == ("control", "wrong")
    assert found.cure
    assert "{" not in found.cure


def test_the_credential() -> None:
    def found(facts: ControlFacts | None, life: float = 0.0) -> Finding:
        who = Identity(*(getattr(WHO, name) for name in list(Identity.__dataclass_fields__)[:6]), credential_life=life)
        (one,) = control_connection.credential_findings(who, facts, NOW, STATE)
        return one

    assert found(None).level == "ok"
    assert found(ControlFacts("", None, asked=True)).level == "ok"
    assert found(None, DAY / 2).level == "note"
    assert found(ControlFacts("", None, refusal=("credential_expired", "it has ended"))).level == "note"
    revoked = found(ControlFacts("", None, refusal=("node_revoked", "it is revoked")))
    assert revoked.level == "wrong"
    assert "skerry-edge join --again" in revoked.cure
    assert "secret" not in f"{revoked}"


@pytest.mark.parametrize(
    ("change", "check", "level"),
    [
        ({}, "", ""),
        ({"version": "2"}, "version", "note"),
        ({"at_target": False}, "target", "note"),
        ({"at_target": False, "held": True}, "target", "note"),
        ({"error": {"code": "out_of_disk", "message": "no room"}}, "target", "wrong"),
        ({"control": {"error": {"code": "unreachable", "message": "no"}}}, "target", "wrong"),
        ({"control": {"trust": {"error": "no"}}}, "trust", "wrong"),
        ({"functions": [{"name": "f", "error": {"message": "a secret is missing."}}]}, "functions", "wrong"),
        ({"functions": [{"name": "f", "runs": False}]}, "functions", "wrong"),
        ({"functions": [{"name": "f", "breaker": {"state": "open"}}]}, "functions", "wrong"),
        ({"functions": [{"name": "f", "releases": [{"calls": 3, "errors": 3}]}]}, "functions", "note"),
        ({"workers": {"wanted": 2, "fit": 1}}, "workers", "note"),
        ({"workers": {"error": "no fork."}}, "workers", "wrong"),
        ({"workers": {"unfenced": ["seccomp"]}}, "workers", "note"),
        ({"records": {"error": "disk"}}, "records", "wrong"),
        ({"database": {"held_by": "process 1"}}, "database", "wrong"),
        ({"database": {"checkpoint_error": "disk"}}, "database", "wrong"),
        ({"database": {"writes": "refused"}}, "database", "wrong"),
        ({"database": {"steps": {"error": {"message": "x"}}}}, "database", "wrong"),
        ({"verified": {"damaged": ["f"]}}, "database", "note"),
        ({"tls": {"error": "no pair"}}, "tls", "wrong"),
        ({"secrets": {"error": "no TOML"}}, "secrets", "wrong"),
    ],
)
def test_what_a_running_node_says_of_itself(change: dict[str, Any], check: str, level: str) -> None:
    found = running_node.node_findings(STATUS | change, "1", "DIR")
    assert [(f.check, f.level) for f in found if f.level != "ok"] == ([(check, level)] if check else [])


def test_the_machine() -> None:
    def found(*lacking: str, libraries: str = "0 1 2", memory: int = 1 << 30, files: int = 65_536) -> dict[str, str]:
        facts = machine.MachineFacts(lacking, libraries, "libwasmedge.so.0: no such file", memory, files, 4)
        return {f.check: f.level for f in machine.machine_findings(facts, partial=False) if f.level != "ok"}

    assert found() == {}
    assert found("Landlock: none.") == {"fence": "wrong"}
    assert [f.level for f in machine.fence_findings(["Landlock: none."], partial=True)] == ["note"]
    assert found(libraries="") == {"libraries": "wrong"}
    assert found(memory=MIB) == {"memory": "note"}
    assert found(files=1024) == {"open_files": "note"}
    assert found(files=64) == {"open_files": "wrong"}


def test_libraries_that_take_too_long_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LOADING", 0.0)
    seen = machine.look(1, None)
    (found,) = machine.library_findings(seen.libraries, seen.libraries_error)
    assert (found.level, "weren't loaded after 0 s" in found.what) == ("wrong", True)


def test_settings_that_are_risky() -> None:
    values = {"SYNCHRONOUS": "FULL", "FENCE": "required", "HTTP_NETWORKS": ""}

    def found(**more: str) -> list[str]:
        given = {f"SKERRY_EDGE_{name}": value for name, value in {**values, **more}.items()}
        return [finding.level for finding in setting_rules.risk_findings(given)]

    assert found() == ["ok"]
    assert found(SYNCHRONOUS="NORMAL", FENCE="partial") == ["note", "note"]
    assert found(HTTP_NETWORKS="10.0.0.0/8") == ["ok"]


def test_a_stale_build_is_to_be_built_anew() -> None:
    built = {"front": {"compiled": True, "why": None, "stale": False}}
    assert [(f.level, f.what, f.cure) for f in machine.built_findings(built, runs=True)] == [
        ("ok", "the front is compiled", "")
    ]
    built["front"] = {"compiled": False, "why": "it isn't built", "stale": False}
    assert levels(machine.built_findings(built, runs=True)) == {"built": "ok"}
    built["front"] = {"compiled": False, "why": "it is built from another x.py than is here", "stale": True}
    for runs, cure in ((True, "just compile && systemctl restart skerry-edge"), (False, "just compile")):
        (found,) = machine.built_findings(built, runs=runs)
        assert (found.level, found.cure) == ("note", cure)
        assert found.what == "the front is not compiled: it is built from another x.py than is here"
