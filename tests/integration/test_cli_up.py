"""`skerry up` as a person runs it, and every command against what it started."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from control import cli
from control.cli import local
from control.service import ServiceError
from tests.support.services import remove_home

ROOT = Path(__file__).resolve().parents[2]
READY = "Ctrl-C ends everything"
LIMIT = 60.0


class Up:
    """A `skerry up` with a home of its own."""

    def __init__(self, home: Path, *arguments: str, **environment: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SKERRY_")}
        self.home = home
        self.environment = {**kept, "PYTHONPATH": str(ROOT), "SKERRY_HOME": str(home), **environment}
        self.log = home.with_name(f"{home.name}.log")
        with self.log.open("wb") as output:
            self.process = psutil.Popen(
                [sys.executable, "-m", "control.cli", "up", *arguments],
                cwd=ROOT,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self.log.read_text("utf-8")

    def wait_ready(self) -> None:
        deadline = time.monotonic() + LIMIT
        while READY not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)

    def family(self) -> list[psutil.Process]:
        found: list[psutil.Process] = [self.process, *self.process.children(recursive=True)]
        return found

    def end(self) -> None:
        if self.process.poll() is None:
            family = self.family()
            self.process.send_signal(signal.SIGINT)
            _, alive = psutil.wait_procs(family, timeout=30)
            for process in alive:
                process.kill()


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that PostgreSQL's own user can reach, where we are root."""
    yield from make_home()


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    """One for all the commands of this module, which leave it usable for each other."""
    for home in make_home():
        running = Up(home)
        try:
            running.wait_ready()
            yield running
        finally:
            running.end()


def make_home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="skerry-test-"))
    folder.chmod(0o711)
    yield folder / "home"
    remove_home(folder / "home")
    shutil.rmtree(folder, ignore_errors=True)


class Shell:
    """Runs commands as the person who started `skerry up` does."""

    def __init__(self, captured: pytest.CaptureFixture[str], logs: Path) -> None:
        self._captured = captured
        self._logs = logs
        self.out = self.err = ""

    def __call__(self, *arguments: str, ends: int = 0) -> str:
        status = cli.run(list(arguments))
        self.out, self.err = self._captured.readouterr()
        if status != ends:
            log = (self._logs / "control.log").read_text("utf-8", "replace")
            pytest.fail(f"{arguments} ended with {status}\n{self.out}\n{self.err}\n{log[-4000:]}", pytrace=False)
        return self.out

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))


@pytest.fixture
def skerry(up: Up, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    for name in [name for name in os.environ if name.startswith("SKERRY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SKERRY_HOME", str(up.home))
    monkeypatch.chdir(ROOT)
    return Shell(capsys, up.home / "logs")


def test_every_step_has_a_line_and_a_time(up: Up) -> None:
    lines = [line.split() for line in up.output.splitlines() if " s  " in line]
    assert all(float(line[0]) >= 0 for line in lines)
    steps = " ".join(" ".join(line[2:4]) for line in lines)
    for step in ("services", "certificates", "migrate", "control", "join", "edge", "schema change", "function",
                 "release", "sync", "call"):  # fmt: skip
        assert step in steps
    assert 'answers {"message":"こんにちは, Ada!","language":"ja"}' in up.output


def test_no_secret_is_shown_or_logged(up: Up) -> None:
    kept = json.loads((up.home / "cli.json").read_text())
    told = up.output + "".join(file.read_text("utf-8", "replace") for file in (up.home / "logs").iterdir())
    assert kept["token"] not in told
    assert "PRIVATE KEY" not in told
    assert "skj_" not in told
    assert "skn_" not in told
    assert (up.home / "cli.json").stat().st_mode & 0o077 == 0


def test_the_commands_that_it_prints_work(up: Up, skerry: Shell) -> None:
    commands = [shlex.split(line)[2:] for line in up.output.splitlines() if line.startswith("  SKERRY_HOME=")]
    assert len(commands) == 6
    outputs = [skerry(*command) for command in commands]
    assert "edge-1" in outputs[0]
    assert outputs[1] == '{"message":"Bonjour, Grace!","language":"fr"}\n'
    assert "edge-1 runs release" in outputs[2]
    assert outputs[4] == '{"name":"ada","count":1}\n'
    assert "- visits@1 is removed" in outputs[5]


def test_a_second_up_is_told_that_it_is_the_second(up: Up) -> None:
    second = Up(up.home.with_name("home"), "--demo")
    second.log.unlink()
    assert second.process.wait(LIMIT) == 1


def test_status_for_a_script(skerry: Shell) -> None:
    found = skerry.json("status")
    assert [group["name"] for group in found["groups"]][-1] == "default"
    (node,) = found["nodes"]
    assert (node["name"], node["at_target"], node["state"], node["error"]) == ("edge-1", True, "online", None)
    skerry("status", "--check")


def test_a_schema_change_that_fails_on_the_data(skerry: Shell, tmp_path: Path) -> None:
    visits, index, amended = ROOT / "examples" / "visits", tmp_path / "index.sql", tmp_path / "amended.sql"
    index.write_text("CREATE UNIQUE INDEX one_count ON visits (count);")
    amended.write_text(
        "DELETE FROM visits WHERE name NOT IN (SELECT min(name) FROM visits GROUP BY count);\n" + index.read_text()
    )
    if "visits" not in [change["name"] for change in skerry.json("schema", "list")]:
        skerry("schema", "add", str(visits / "schema.sql"), "--name", "visits")
    manifest = str(visits / "manifest.json")
    skerry("function", "push", "counter", str(visits / "visits.wasm"), "--manifest", manifest, "--wait")
    for name in ("bob", "eve"):
        assert skerry("invoke", "counter", name, "-X", "POST").startswith('{"name":')

    # Control's check passes: its own rows are distinct, and this node's aren't.
    skerry("schema", "add", str(index), "--wait", ends=5)
    number = skerry.json("schema", "list")[-1]["number"]
    assert "UNIQUE constraint failed" in skerry("status")
    failing = skerry("status")
    assert "failing" in failing
    assert "next attempt" in failing
    skerry("status", "--check", ends=5)
    assert skerry.json("syncs", "list", "--status", "failed")[0]["error"]["code"] == "schema_change_failed"
    # It serves its old release on.
    assert skerry("invoke", "counter", "bob") == '{"name":"bob","count":1}\n'

    skerry("schema", "amend", str(number), str(amended), "--wait")
    assert skerry.json("schema", "show", str(number))["revision"] == 2
    skerry("status", "--check")
    assert skerry("invoke", "counter", "eve") == '{"name":"eve","count":0}\n'


def test_a_schema_change_that_may_fail_somewhere_is_warned_of(skerry: Shell, tmp_path: Path) -> None:
    file = tmp_path / "teams.sql"
    file.write_text("CREATE TABLE teams (name TEXT);")
    skerry("schema", "add", str(file), "--no-release")
    file.write_text(
        "ALTER TABLE teams ADD COLUMN size INTEGER; UPDATE teams SET size = 1;"
        "CREATE UNIQUE INDEX by_size ON teams (size);"
    )
    assert "on some data it fails: UNIQUE constraint failed" in skerry("schema", "add", str(file), "--no-release")


def test_the_readmes_first_function(skerry: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks as they are: the project, the commands, the answer."""
    section = (ROOT / "README.md").read_text("utf-8").split("## A first function")[1].split("\n## ")[0]
    blocks: dict[str, list[str]] = {}
    for language, block in re.findall(r"^```([a-z]+)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
        blocks.setdefault(language, []).append(block)
    monkeypatch.chdir(tmp_path)
    _, *commands = blocks["sh"]
    for line in "".join(commands).splitlines():
        program, *words = shlex.split(line)
        if program == ".venv/bin/skerry":
            skerry(*words)
        else:
            assert [program, words[0]] == ["curl", "-d"]
            edge = json.loads((Path(os.environ["SKERRY_HOME"]) / "cli.json").read_text())["edge"]
            url = words[2].replace("http://127.0.0.1:8087", edge)
            with urllib.request.urlopen(url, data=words[1].encode(), timeout=LIMIT) as response:
                assert json.loads(response.read()) == json.loads(blocks["json"][0])
    assert blocks["c"][0] in (tmp_path / "notes" / "main.c").read_text()
    assert "notes" not in skerry("status")


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


def test_the_life_of_a_node(skerry: Shell, up: Up, tmp_path: Path) -> None:
    skerry("group", "create", "spare")
    made = skerry.json("node", "token", "--group", "spare")
    join = [sys.executable, "-m", "edge_runtime.cli", "join", "--control", made["url"], "--name", "edge-9"]
    told = {**up.environment, "SKERRY_JOIN_TOKEN": made["token"]}
    subprocess.run([*join, "--state", str(tmp_path / "edge-9")], env=told, check=True, timeout=LIMIT)
    assert skerry.json("node", "show", "edge-9")["group"] == "spare"
    assert {group["name"]: group["nodes"] for group in skerry.json("group", "list")}["spare"] == 1
    assert skerry.json("node", "move", "edge-9", "default")["group"] == "default"
    skerry("node", "retry", "edge-9")
    skerry("node", "revoke", "edge-9")

    # Its disk is lost: the same name again, with a token for it.
    rejoin = skerry.json("node", "token", "--rejoin", "edge-9")
    told["SKERRY_JOIN_TOKEN"] = rejoin["token"]
    subprocess.run([*join, "--state", str(tmp_path / "new-disk")], env=told, check=True, timeout=LIMIT)
    skerry("node", "remove", "edge-9", "--yes")
    skerry("node", "show", "edge-9", ends=3)
    assert [node["name"] for node in skerry.json("node", "list")] == ["edge-1"]


def test_a_release_that_no_node_can_reach_in_time(skerry: Shell, tmp_path: Path, up: Up) -> None:
    """A node that joined and never ran is waited for until the limit, and named."""
    skerry("group", "create", "asleep")
    made = skerry.json("node", "token", "--group", "asleep")
    join = [sys.executable, "-m", "edge_runtime.cli", "join", "--control", made["url"], "--name", "edge-8"]
    told = {**up.environment, "SKERRY_JOIN_TOKEN": made["token"]}
    subprocess.run([*join, "--state", str(tmp_path / "edge-8")], env=told, check=True, timeout=LIMIT)
    skerry("release", "create", "--group", "asleep", "--schema", "0", "--wait", "--timeout", "0.5", ends=5)
    assert "edge-8" in skerry.err
    skerry("node", "remove", "edge-8", "--yes")


def test_killed_and_started_again(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """kill -9 leaves no process; the next start finds its data, on the same ports where they are free; Ctrl-C ends
    everything in order."""
    first = Up(home)
    try:
        first.wait_ready()
        family = first.family()
        assert len(family) > 5
        first.process.kill()
        _, alive = psutil.wait_procs(family, timeout=30)
        assert alive == []
    finally:
        first.end()
    kept = json.loads((home / "cli.json").read_text())
    with socket.socket() as other:
        # Control's port is another's meanwhile: it takes a new one, and the edge finds it.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", int(kept["url"].rpartition(":")[2])))
        other.listen()
        second = Up(home)
        try:
            second.wait_ready()
            assert "the schema is this version's already" in second.output
            assert "こんにちは, Ada!" in second.output
            assert " join " not in second.output
            now = json.loads((home / "cli.json").read_text())
            assert now["url"] != kept["url"]
            assert {**now, "url": ""} == {**kept, "url": ""}
            monkeypatch.setenv("SKERRY_HOME", str(home))
            skerry = Shell(capsys, home / "logs")
            skerry("schema", "add", str(ROOT / "examples" / "visits" / "schema.sql"), "--wait", "--timeout", "30")

            family = second.family()
            second.process.send_signal(signal.SIGINT)
            assert second.process.wait(LIMIT) == 0
            _, alive = psutil.wait_procs(family, timeout=10)
            assert alive == []
            assert second.output.endswith("everything has ended\n")
        finally:
            second.end()


def test_on_services_that_the_environment_names(home: Path, empty_database_url: str, bucket_url: str) -> None:
    running = Up(home, "--demo", SKERRY_METADATA_URL=empty_database_url, SKERRY_ARTIFACTS_URL=bucket_url)
    try:
        assert running.process.wait(LIMIT) == 0, running.output
    finally:
        running.end()
    assert "that the environment names" in running.output
    assert "こんにちは, Ada!" in running.output
    assert not (home / "metadata").exists()
    for url in (empty_database_url, bucket_url):
        assert urlsplit(url).password not in running.output


def test_the_first_step_that_fails_is_named(home: Path) -> None:
    running = Up(home, "--demo", SKERRY_METADATA_URL="postgresql://u:secret@127.0.0.1:1/d")
    assert running.process.wait(LIMIT) == 1
    assert "error: services: set both SKERRY_METADATA_URL and SKERRY_ARTIFACTS_URL" in running.output
    assert "secret" not in running.output


def test_each_server_that_is_killed_comes_back(home: Path) -> None:
    """Each in turn, while a client calls: the edge answers on unless it is itself the one that was killed."""
    running = Up(home)
    try:
        running.wait_ready()
        url = f"{json.loads((home / 'cli.json').read_text())['edge']}/functions/hello?language=fr"
        servers = {
            "PostgreSQL": lambda line: "postgres" in line[0] and "-D" in line,
            "SeaweedFS": lambda line: line[0].endswith("weed"),
            "control": lambda line: "control.cli" in line and "serve" in line,
            "edge": lambda line: "edge_runtime.cli" in line and "run" in line,
        }
        for name, is_it in servers.items():
            (server,) = [child for child in running.process.children() if is_it(child.cmdline())]
            server.kill()
            deadline = time.monotonic() + LIMIT
            while f"{name} is back after" not in running.output:
                assert time.monotonic() < deadline, running.output
                if name != "edge":
                    with urllib.request.urlopen(url, timeout=LIMIT) as response:
                        assert b"Bonjour" in response.read()
                time.sleep(0.01)
            assert f"{name} was ended by signal 9; it is started again" in running.output
        with urllib.request.urlopen(url, timeout=LIMIT) as response:
            assert b"Bonjour" in response.read()
    finally:
        running.end()


async def test_one_that_ends_again_and_again_is_given_up(tmp_path: Path) -> None:
    child = local.Child(local.Home(tmp_path), 0, "brief", ["this"], {})

    async def start() -> None:
        await child.start(ready)

    async def ready() -> bool:
        return True

    told: list[str] = []
    await start()
    with pytest.raises(ServiceError, match="brief ended with status 0"):
        await local.watch([local.Kept(child, start)], lambda: True, told.append)
    assert len(told) == 2 * local.RESTARTS
