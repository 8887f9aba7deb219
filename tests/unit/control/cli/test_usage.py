"""What the CLI refuses by itself, before it asks control, and what it tells about itself."""

import io
import os
import pwd
import subprocess
import sys
from pathlib import Path

import click
import orjson
import pytest

from control.cli import main as cli
from control.protocol import version
from tests.support.deadlines import scaled

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A control that would be noticed: each of these commands must end before it is asked."""
    monkeypatch.setenv("SKERRY_URL", "https://127.0.0.1:1")
    monkeypatch.setenv("SKERRY_TOKEN", "sko_none")
    monkeypatch.delenv("SKERRY_CA", raising=False)
    monkeypatch.setenv("SKERRY_HOME", str(tmp_path / "none"))


def commands(group: click.Group, before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        found.append((*before, name))
        if isinstance(command, click.Group):
            found += commands(command, (*before, name))
    return found


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    every = commands(cli.skerry)
    assert len(every) > 50
    for command in every:
        assert cli.run([*command, "--help"]) == 0, command
        shown = capsys.readouterr().out
        assert shown.startswith("Usage: skerry"), command
        # A sentence that says what it does, beside the options.
        assert shown.split("\n\n")[1].strip(), command


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nosuch"], "nosuch"),
        (["stauts"], "status"),
        (["functions"], "function"),
        (["function", "shwo", "f"], "show"),
        (["recover", "--yse"], "--yes"),
        (["status", "--jsn"], "--json"),
        (["function", "show", "f@two"], "f@2"),
        (["function", "show", "f@0"], "f@2"),
        (["function", "show", "f@2", "3"], "two versions"),
        (["function", "delete", "f@2", "3", "--yes"], "two versions"),
        (["release", "create", "--remove", "f@2"], "name alone, f"),
        (["logs", "--function", "f@2"], "name alone, f"),
        (["node", "move", "a", "Not A Name"], "lower case"),
        (["function", "push", "f", "FILE", "--wait", "--no-release"], "--no-release"),
        (["function", "push", "f", "/no/such/file"], "does not exist"),
        (
            ["function", "push", "shop.ts"],
            "shop.ts is no folder: push takes a project's FOLDER (`skerry function new` makes one), or NAME FILE",
        ),
        (["function", "push"], ". is no function's project"),
        (["function", "push", "f", "FILE", "--time-limit", "5"], "time_limit_ms"),
        (["function", "push", "f", "FILE", "--config", "novalue"], "KEY=VALUE"),
        (["function", "push", "f", "FILE", "--config", "1st=1"], "config"),
        (["schema", "add", "FILE", "--wait", "--no-release"], "--no-release"),
        (["schema", "amend", "0", "FILE"], "0"),
        (["release", "create", "--rollback-to", "1", "--set", "f=1"], "--rollback-to"),
        (["release", "create", "--plan", "--wait"], "--plan"),
        (["release", "create", "--set", "f=two"], "number"),
        (["release", "create", "--policy", "FILE"], "can't be read"),
        (["release", "create", "--policy", "POLICY", "--now"], "--now leaves steps out"),
        (["release", "rehearse", "--now"], "--now"),
        (["function", "push", "f", "FILE", "--now", "--no-release"], "--no-release"),
        (["schema", "add", "FILE", "--policy", "POLICY", "--no-release"], "--no-release"),
        (["group", "policy", "shops", "FILE"], "can't be read"),
        (["group", "policy", "shops", "POLICY", "--none"], "--none"),
        (["rollout", "status", "--nodes", "--follow"], "give one of them"),
        (["rollout", "status", "--nodes", "lost"], "at_target"),
        (["rollout", "abort", "--all"], "--all"),
        (["operator", "add", "o"], "--role"),
        (["operator", "add", "o", "--role", "boss"], "read, push, deploy, admin"),
        (["operator", "add", "o", "--role", "read@Not A Name"], "no group's name"),
        (["operator", "add", "o", "--role", "deploy", "--function", "f"], "--function"),
        (["operator", "add", "o", "--role", "read", "--expires-in", "90"], "90d"),
        (["operator", "change", "o"], "nothing to change"),
        (["operator", "change", "o", "--no-end", "--expires-in", "1d"], "--no-end"),
        (["node", "token", "--expires-in", "1"], "1m at least, and 30d at most"),
        (["node", "token", "--expires-in", "2x"], "a number with ms, s, m, h or d behind it"),
        (["rollback", "--timeout", "0s"], "100ms at least"),
        (["invoke", "f", "--edge", "http://127.0.0.1:1", "--header", "nocolon"], "NAME:VALUE"),
        (["invoke", "f"], "--edge"),
    ],
)
def test_wrong_use(
    arguments: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "f.wasm"
    file.write_bytes(b"\0asm")
    policy = tmp_path / "rollout.toml"
    policy.write_text("[rollout]\n")
    given = {"FILE": str(file), "POLICY": str(policy)}
    assert cli.run([given.get(argument, argument) for argument in arguments]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("test", "nots"), "Directory 'nots' does not exist. Did you mean 'notes'?"),
        (("function", "push", "f", "notes/functon.wasm"), "does not exist. Did you mean 'notes/function.wasm'?"),
        (("schema", "add", "notes/another"), "File 'notes/another' does not exist.\n"),
        (("schema", "add", "nowhere/at-all"), "File 'nowhere/at-all' does not exist.\n"),
    ],
)
def test_a_mistyped_file_is_answered_with_the_near_one(
    arguments: tuple[str, ...],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "function.wasm").write_bytes(b"\0asm")
    monkeypatch.chdir(tmp_path)
    assert cli.run([*arguments]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("m.toml", "sql = 'read", "can't be read"),
        ("m.json", "{", "can't be read"),
        ("m.json", "[1]", "no table"),
        ("m.toml", "sql = 'all'", "`$.sql`; there are `none`, `read`, `write`"),
        ("m.toml", "time_limit = 5", "is `time_limit_ms` meant?"),
        ("m.json", '{"http": {"hosts": ["a"], "method": ["GET"]}}', "is `methods` meant?"),
        ("m.toml", "unknown = 1", "unknown"),
        ("m.json", '{"probe": {"status": 5}}', "$.probe.status"),
    ],
)
def test_a_wrong_manifest_is_refused_before_the_upload(
    name: str, content: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wasm, manifest = tmp_path / "f.wasm", tmp_path / name
    wasm.write_bytes(b"\0asm")
    manifest.write_text(content)
    assert cli.run(["function", "push", "f", str(wasm), "--manifest", str(manifest)]) == 2
    assert told in capsys.readouterr().err


def test_a_removal_is_asked_for_first(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []
    monkeypatch.setattr(click, "confirm", lambda text, **_: asked.append(text) or (_ for _ in ()).throw(click.Abort))
    for arguments in (["node", "delete", "n"], ["function", "delete", "f"], ["operator", "revoke", "o"]):
        assert cli.run(arguments) == 130
    assert len(asked) == 3


def test_a_question_that_nobody_can_answer_says_which_option_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["node", "delete", "n"], ["group", "delete", "g"], ["operator", "revoke", "o", "--json"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        assert cli.run(arguments) == 2
        told = capsys.readouterr().err
        assert "nobody answered the question" in told
        assert "--yes" in told


def test_a_reader_that_goes_away_is_no_error() -> None:
    """As in `skerry ... | head -0`."""
    command = [sys.executable, "-m", "control.cli", "function", "push", "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait(scaled(30))


@pytest.mark.parametrize(
    ("line", "status", "told"),
    [
        pytest.param("-m control.cli completion bash >/dev/full", 1, "No space left on device", id="full"),
        pytest.param("-m edge_runtime.cli completion bash >/dev/full", 1, "No space left on device", id="full-edge"),
        pytest.param("-m control.cli whoami >&- 2>&-", 2, "", id="closed"),
        pytest.param("-m control.cli whoami", 1, "the current folder isn't there any more", id="gone"),
        pytest.param(
            "-c 'from control.protocol.command_line import *; prepare_output(); print(chr(8211))'", 0, "", id="dash"
        ),
    ],
)
def test_no_place_or_output_ends_a_command_by_a_traceback(tmp_path: Path, line: str, status: int, told: str) -> None:
    """A full disk, a reader that is gone, closed streams, an encoding without dashes, a folder that was deleted."""
    folder = tmp_path / "folder"
    folder.mkdir()
    gone = f"rmdir {folder};" if "folder" in told else ""
    script = f"cd {folder}; {gone} {sys.executable} {line}; exit ${{PIPESTATUS[0]}}"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    ran = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, timeout=scaled(60))
    assert told in ran.stderr, ran.stderr
    assert "Traceback" not in ran.stderr + ran.stdout
    assert "Exception ignored" not in ran.stderr
    assert ran.returncode == status, ran.stderr


def test_a_user_without_a_home_is_told_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a container that runs as a number."""

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    for name in ("HOME", "XDG_CONFIG_HOME", "SKERRY_URL", "SKERRY_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert cli.run(["whoami"]) == 2
    assert "no control to talk to" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["function", "show"], ["release", "create", "--set", "a=b"], ["status", "--nothing"], ["node", "show"]],
)
def test_wrong_use_is_a_document_for_a_script(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*arguments, "--json"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    error = orjson.loads(told.err)["error"]
    assert (error["code"], error["exit"]) == ("usage", 2)
    assert error["message"]


@pytest.mark.parametrize("module", ["control.cli", "edge_runtime.cli"])
def test_the_version_has_the_commit(module: str) -> None:
    # Somebody may have committed since this process read it.
    version.running.cache_clear()
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"], capture_output=True, text=True, timeout=scaled(60)
    )
    program = "skerry" if module == "control.cli" else "skerry-edge"
    assert done.stdout == f"{program}, version {version.told()}\n", done.stderr


def test_a_shell_that_completes_does_not_wait_for_the_client_of_control() -> None:
    """Its library takes a third of the start of a command."""
    code = "import sys; from control.cli import main; main.run(['completion', 'bash']); print('aiohttp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "_skerry_completion" in done.stdout
    assert done.stdout.endswith("\nFalse\n")


@pytest.mark.parametrize(
    ("arguments", "warned"),
    [
        (["node", "remove", "n"], "skerry node remove is skerry node delete now"),
        (["webhook", "remove", "w"], "skerry webhook remove is skerry webhook delete now"),
        (["node", "delete", "n"], ""),
        (["node", "list", "--unseen", "300", "--standing", "no"], "300, is written with one, 300s, now"),
        (["node", "list", "--unseen", "5m", "--standing", "no"], ""),
    ],
)
def test_words_of_the_version_before_go_on_with_a_warning(
    arguments: list[str], warned: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert cli.run(arguments) == 2
    told = capsys.readouterr().err
    assert (warned in told, "Warning: " in told) == (True, bool(warned))


def test_an_old_word_is_in_no_help_and_no_summary_is_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for group in ([], ["node"], ["webhook"], ["function"], ["operator"], ["audit"], ["artifacts"], ["node", "token"]):
        assert cli.run([*group, "--help"]) == 0
        shown = capsys.readouterr().out
        assert "..." not in shown.partition("Commands:")[2], group
        assert "  remove " not in shown
        assert max(map(len, shown.splitlines())) <= 80
