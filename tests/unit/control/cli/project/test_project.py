"""Functions' projects: what function.toml may say, and what a build says when it can't."""

import asyncio
import importlib.util
import os
import re
import select
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from control.cli import main as cli
from control.cli.project import authoring, project_files, toolchains
from control.cli.project.snapshots import SnapshotFailed
from control.telemetry.webhooks import webhook_signature
from edge_runtime.guests.abi import binary
from edge_runtime.guests.abi.snapshot import join_segments
from tests.guests.build import wat
from tests.support.deadlines import deadline, scaled
from tests.support.programs import runs
from tests.unit.edge_runtime.guests.abi.test_snapshot import many

TOML = 'name = "f"\nmodule = "f.wasm"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project that python "builds"."""
    (tmp_path / project_files.FILE).write_text(TOML + f"build = '{sys.executable} make.py'\nschema = \"schema\"\n")
    (tmp_path / "make.py").write_text("open('f.wasm', 'wb').write(b'\\0asm')")
    (tmp_path / "schema").mkdir()
    return tmp_path


def refused(folder: Path) -> str:
    with pytest.raises(project_files.ProjectInvalid) as error:
        project_files.read(folder).changes()
    assert error.value.exit_code == 2
    return str(error.value)


@pytest.mark.parametrize("template", authoring.TEMPLATES)
@pytest.mark.parametrize("language", authoring.LANGUAGES)
def test_a_new_project_is_named_and_whole(
    language: str, template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["function", "new", "my-orders", "--lang", language, "--template", template]) == 0
    found = project_files.read(tmp_path / "my-orders")
    assert found.name == "my-orders"
    assert [change.number for change in found.changes()] == [1]
    readme = (found.folder / "README.md").read_text()
    assert "/functions/my-orders" in readme
    assert "notes" not in re.findall(r"# (\w+)|/functions/(\w+)", readme)
    assert f"that {authoring.TEMPLATES[template]}.\n\n`main." in readme
    assert ("-d milk" in readme) == (template == "http")
    assert ("[my-orders]" in readme) == (template == "webhook")
    assert bool(found.functions[0].manifest.get("schedule")) == (template == "cron")
    assert bool(found.functions[0].manifest.get("secrets")) == (template == "webhook")
    # A script's helpers are in the engine, and what editors know of them beside it.
    helper = [file for pattern in ("skerry*", "env.d.ts") for file in found.folder.glob(pattern) if file.is_file()]
    assert helper
    assert not {file.name for file in found.folder.iterdir()} & set(authoring.BUILD_FILES)
    assert authoring.LANGUAGES[language] in found.functions[0].build
    # Again would write over what the author has changed meanwhile.
    before = {file: file.stat().st_mtime_ns for file in found.folder.rglob("*")}
    capsys.readouterr()
    assert cli.run(["function", "new", "my-orders", "--lang", language]) == 1
    assert "is there already" in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in found.folder.rglob("*")} == before


def test_the_event_in_the_webhooks_readme_is_signed_by_the_secret_beside_it() -> None:
    calls = (authoring.examples() / authoring.TEMPLATE_FOLDER / "webhook" / authoring.CALLS).read_text()
    secret, body = (re.findall(pattern, calls)[0] for pattern in ('WEBHOOK_SECRET = "(.+)"', "-d '(.+?)'"))
    sent = dict(re.findall(r"-H '([\w-]+): (.+?)'", calls))
    signed = webhook_signature.headers(secret, sent["webhook-id"], int(sent["webhook-timestamp"]), body.encode())
    assert sent == signed


def sources(folder: Path) -> str:
    """All that a new project has of SQL."""
    files = [*folder.rglob("main.*"), *folder.rglob("*.sql"), *folder.rglob("tests/*.toml")]
    return "\n".join(file.read_text() for file in files)


@pytest.mark.parametrize("language", authoring.LANGUAGES)
@pytest.mark.parametrize(
    ("template", "name", "table"),
    [
        ("http", "my-orders", "my_orders"),
        ("http", "notes", "notes"),
        ("http", "7up", "notes_7up"),
        *((template, "order", "notes_order") for template in authoring.TEMPLATES),
    ],
)
def test_its_table_is_named_after_it(
    language: str, template: str, name: str, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that two projects can share a database."""
    monkeypatch.chdir(tmp_path)
    assert cli.run(["function", "new", name, "--lang", language, "--template", template]) == 0
    text = sources(tmp_path / name)
    assert set(re.findall(r"\b(?:INTO|FROM|TABLE|UPDATE|ON(?! CONFLICT)) (\w+)", text)) == {table}
    assert (f"INDEX {table}_of_author ON {table} (" in text) == (template == "http")
    names = [path.name for path in (tmp_path / name).glob("*/*.*")]
    assert {f"0001_{table}.sql", f"{name}.toml"} <= set(names)
    with sqlite3.connect(":memory:") as opened:
        for language_too in ("other", name):
            if language_too != name:
                cli.run(["function", "new", language_too, "--lang", language, "--template", template])
            opened.executescript(project_files.read(tmp_path / language_too).changes()[0].sql)
    opened.close()


def test_a_project_has_several_functions_and_one_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["function", "new", "orders", "--lang", "c", "--project", "shop"]) == 0
    monkeypatch.chdir(tmp_path / "shop")
    # Within the project, it is the one.
    assert cli.run(["function", "new", "stock", "--lang", "rust"]) == 0
    found = project_files.read(Path())
    assert (found.name, [source.name for source in found.functions]) == ("shop", ["orders", "stock"])
    assert [(change.number, change.name) for change in found.changes()] == [(1, "orders"), (2, "stock")]
    assert not (tmp_path / "shop" / "stock" / "schema").exists()
    assert "`schema/` of the project creates its table" in (tmp_path / "shop" / "stock" / "README.md").read_text()
    alone = project_files.read(tmp_path / "shop" / "stock")
    assert (alone.name, [source.name for source in alone.functions]) == ("shop", ["stock"])
    assert [change.number for change in alone.changes()] == [1, 2]
    # Also from a folder within.
    monkeypatch.chdir(tmp_path / "shop" / "stock" / "tests")
    assert [change.number for change in project_files.read(Path("..")).changes()] == [1, 2]
    (tmp_path / "more" / "within").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "more" / "within")
    assert cli.run(["function", "new", "orders", "--lang", "c", "--project", ".."]) == 0
    assert project_files.read(tmp_path / "more").name == "more"
    monkeypatch.chdir(tmp_path / "shop")
    # One that is there isn't written over, and a project of one function stays one.
    capsys.readouterr()
    assert cli.run(["function", "new", "stock", "--lang", "c"]) == 1
    assert cli.run(["function", "new", "third", "--lang", "c", "--project", "stock"]) == 2
    assert "is a project of one function" in capsys.readouterr().err
    assert cli.run(["function", "new", "third", "--lang", "c", "--project", "x", "--into", "y"]) == 2


@pytest.mark.parametrize(
    ("given", "typed", "says"),
    [
        ([], "cobol\nzig\ncrud\n", "a function in zig, by the template crud:"),
        ([], "\n\n", "a function in ts, by the template http:"),
        (["--template", "cron"], "go\n", "a function in go, by the template cron:"),
        (["--lang", "rust"], "", "a function in rust, by the template http:"),
        ([], "rust\n\4", "nothing was changed"),
    ],
)
def test_in_a_terminal_it_asks_for_what_is_not_given(
    given: list[str],
    typed: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    ours, theirs = os.openpty()
    os.write(ours, typed.encode())
    with open(theirs) as stdin, open(theirs, "w", closefd=False) as stderr, monkeypatch.context() as terminal:
        terminal.setattr(sys, "stdin", stdin)
        terminal.setattr(sys, "stderr", stderr)
        status = cli.run(["function", "new", "f", *given])
        stderr.write("the end")
        stderr.flush()
        shown = ""
        while not shown.endswith("the end"):
            shown += os.read(ours, 8192).decode()
    os.close(ours)
    assert says in shown + capsys.readouterr().out
    assert (tmp_path / "f").exists() == (status == 0)
    assert ("Language (" in shown) == ("--lang" not in given)
    assert ("Template (" in shown) == (not given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "say in which language: --lang ts|js|"),
        (["--lang", "cobol"], "'cobol' is not one of 'ts', 'js'"),
        (["--lang", "c", "--template", "blog"], "'blog' is not one of 'http', 'crud', 'cron', 'webhook'"),
    ],
)
def test_elsewhere_it_asks_nothing(
    given: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["function", "new", "f", *given]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_which_functions_a_file_concerns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("orders", "stock"):
        assert cli.run(["function", "new", name, "--lang", "c", "--project", "shop"]) == 0
    found = project_files.read(Path("shop"))
    for path, names in (
        ("shop/orders/main.c", ["orders"]),
        ("shop/orders/deeper/one.c", ["orders"]),
        ("shop/common.h", ["orders", "stock"]),
        ("shop/schema/0001_orders.sql", []),
        ("shop/orders/tests/orders.toml", []),
        ("shop/tests/both.toml", []),
    ):
        assert [source.name for source in found.concerned([Path(path)])] == names, path


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"skerry.toml": 'name = "shop"'}, "has no function yet"),
        ({"skerry.toml": "name = 1"}, "skerry.toml isn't valid"),
        ({"skerry.toml": 'name = "shop"\nfunctions = []'}, "functions"),
        ({"skerry.toml": 'name = "shop"', "function.toml": TOML}, "has skerry.toml and function.toml"),
        ({"skerry.toml": 'name = "shop"', "a/function.toml": TOML, "b/function.toml": TOML}, "are both the function f"),
        ({"skerry.toml": 'name = "shop"', "a/function.toml": TOML + 'schema = "schema"'}, "names a schema"),
        (
            {
                "skerry.toml": 'name = "shop"',
                "a/function.toml": TOML + "[manifest]\nroute = { path = '/x' }",
                "b/function.toml": TOML.replace('"f"', '"g"') + "[manifest]\nroute = { path = '/x' }",
            },
            "take the same requests",
        ),
        (
            {
                "skerry.toml": 'name = "shop"',
                "a/function.toml": TOML + "[manifest]\nroute = { path = '/x', hosts = ['a.example'] }",
                "b/function.toml": TOML.replace('"f"', '"g"')
                + "[manifest]\nroute = { path = '/x', hosts = ['b.example', 'a.example'] }",
            },
            "for a.example",
        ),
    ],
)
def test_what_is_wrong_with_a_project_of_several_is_named(files: dict[str, str], told: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert told in refused(tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('name = "f"', "module"),
        (TOML + "modul = 1", "modul"),
        ('name = "Not"\nmodule = "f.wasm"', "name"),
        (TOML + "[manifest]\nsql = 'all'", "sql"),
        (TOML + "[manifest]\nsqll = 'read'", "sqll"),
        (TOML + "[manifest.route]\npath = '/functions/x'", "functions"),
        (TOML + "[manifest.route]\npath = '/x'\nhosts = ['shop.example:80']", "a host's name in lower case"),
        (TOML + "snapshot = { renew = 'anew' }", "init"),
        (TOML + "snapshot = { init = '' }", "init"),
        (TOML + "snapshot = { init = 'warm', stdin = 'x' }", "stdin"),
        ("name = ", "can't be read"),
    ],
)
def test_what_is_wrong_in_function_toml_is_named(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / project_files.FILE).write_text(text)
    message = refused(tmp_path)
    assert str(tmp_path / project_files.FILE) in message
    assert told in message


def test_a_folder_without_function_toml_is_no_project(tmp_path: Path) -> None:
    assert f"{tmp_path} is no function's project" in refused(tmp_path)


@pytest.mark.parametrize(
    ("names", "told"),
    [(["0002_a.sql"], "[2]"), (["1_a.sql", "0001_b.sql"], "[1, 1]"), (["a.sql"], "a.sql isn't named NNNN_name.sql")],
)
def test_the_schema_is_numbered_without_a_gap(names: list[str], told: str, folder: Path) -> None:
    for name in names:
        (folder / "schema" / name).write_text("SELECT 1;")
    assert told in refused(folder)


def test_the_schema_is_in_the_order_of_its_numbers(folder: Path) -> None:
    for name in ("10_j", "9_i", *(f"000{number}_{chr(96 + number)}" for number in range(1, 9))):
        (folder / "schema" / f"{name}.sql").write_text(f"-- {name}")
    (folder / "schema" / "notes.txt").write_text("no change")
    changes = project_files.read(folder).changes()
    assert [(c.number, c.name, c.sql[-1]) for c in changes] == [(n, chr(96 + n), chr(96 + n)) for n in range(1, 11)]


async def test_a_build_runs_in_the_project_and_makes_its_module(folder: Path) -> None:
    found = project_files.read(folder)
    assert await toolchains.build(found.functions[0]) > 0
    assert found.functions[0].module.read_bytes() == b"\0asm"


async def test_a_build_joins_many_data_segments(folder: Path) -> None:
    wasm = many([])
    (folder / "make.py").write_text(f"open('f.wasm', 'wb').write({wasm!r})")
    await toolchains.build(project_files.read(folder).functions[0])
    assert (folder / "f.wasm").read_bytes() == join_segments(wasm) != wasm


async def test_a_module_without_a_build_stays_as_it_is(folder: Path) -> None:
    (folder / project_files.FILE).write_text(TOML)
    (folder / "f.wasm").write_bytes(wasm := many([]))
    await toolchains.build(project_files.read(folder).functions[0])
    assert (folder / "f.wasm").read_bytes() == wasm


@pytest.mark.parametrize(("pages", "done"), [(8, True), (7, False)])
async def test_a_snapshot_is_what_is_served(pages: int, *, done: bool, folder: Path) -> None:
    grows = "(if (i32.eq (memory.grow (i32.const 7)) (i32.const -1)) (then unreachable))"
    wasm = wat(f'(module (memory (export "memory") 1) (func (export "warm") {grows}))')
    (folder / "make.py").write_text(f"open('f.wasm', 'wb').write({wasm!r})")
    with (folder / project_files.FILE).open("a") as file:
        file.write(f'snapshot = {{ init = "warm" }}\n[manifest]\nmemory_pages = {pages}\n')
    source = project_files.read(folder).functions[0]
    assert (source.module, source.built) == (folder / "f.snapshot.wasm", folder / "f.wasm")
    if not done:
        with pytest.raises(SnapshotFailed, match="Its warm failed: unreachable"):
            await toolchains.build(source)
    else:
        await toolchains.build(source)
        assert binary.read(source.module.read_bytes()).memories[0].minimum == 8
    assert source.built.read_bytes() == wasm


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("raise SystemExit('no such register')", "ended with status 1:\nno such register"),
        ("pass", "its build didn't make it"),
    ],
)
async def test_a_build_that_fails_says_why(program: str, told: str, folder: Path) -> None:
    (folder / "make.py").write_text(program)
    with pytest.raises(toolchains.BuildFailed) as error:
        await toolchains.build(project_files.read(folder).functions[0])
    assert told in str(error.value)


async def test_a_build_that_is_given_up_leaves_nothing_running(folder: Path) -> None:
    sleeper = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(60)"
    (folder / "make.py").write_text(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleeper!r}])")
    building = asyncio.ensure_future(toolchains.build(project_files.read(folder).functions[0]))
    async with deadline(20):
        while not (folder / "pid").exists() or not (folder / "pid").read_text():
            await asyncio.sleep(0.01)
    child = psutil.Process(int((folder / "pid").read_text()))
    building.cancel()
    async with deadline(20):
        await asyncio.wait([building])
        assert building.cancelled()
        while runs(child):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("command", "told"),
    [("nosuchcompiler x", "nosuchcompiler"), ("{clang} x", "there are zig"), ("'x", "can't be read")],
)
async def test_a_build_command_that_cannot_run_is_named(command: str, told: str, folder: Path) -> None:
    (folder / project_files.FILE).write_text(TOML + f'build = "{command}"')
    with pytest.raises(toolchains.BuildFailed) as error:
        await toolchains.build(project_files.read(folder).functions[0])
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("language", "told"),
    [
        ("rust", "apt-get install rustc libstd-rust-dev-wasm32"),
        ("go", "apt-get install golang-go"),
        ("assemblyscript", "npm install"),
        ("ts", "install esbuild: npm install"),
        ("zig", f"just setup, in {Path(__file__).parents[5]}"),
        ("c", f"just setup, in {Path(__file__).parents[5]}"),
    ],
)
def test_a_compiler_that_is_missing_is_told_with_its_cure(
    language: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing: Any = lambda *_, **__: None  # noqa: E731
    monkeypatch.setattr(toolchains.shutil, "which", nothing)
    monkeypatch.setattr(importlib.util, "find_spec", nothing)
    # `just toolchains` may have put asc into this checkout.
    monkeypatch.setattr(toolchains, "_checkout", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.run(["function", "new", "f", "--lang", language]) == 0
    assert told in capsys.readouterr().out
    assert cli.run(["function", "build", "f"]) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "f" / "function.wasm").exists()


def test_a_rustc_without_the_target_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rustc = tmp_path / "rustc"
    rustc.write_text("#!/bin/sh\necho /no/such/folder\n")
    rustc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = toolchains.TOOLCHAINS["rustc"].find(tmp_path)
    assert found is None or found[0] != str(rustc)


async def test_a_compiler_in_the_project_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "f" / "node_modules" / ".bin" / "asc"
    compiler.parent.mkdir(parents=True)
    compiler.write_text("#!/bin/sh\necho made > f.wasm\n")
    compiler.chmod(0o755)
    (tmp_path / "f" / project_files.FILE).write_text(TOML + 'build = "{asc} main.ts"\n')
    monkeypatch.chdir(tmp_path)
    found = project_files.read(Path("f"))
    await toolchains.build(found.functions[0])
    assert found.functions[0].module.read_text() == "made\n"


def test_a_compiler_that_the_checkout_brought_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brought = tmp_path / "lock" / "npm" / "node_modules" / ".bin" / "asc"
    brought.parent.mkdir(parents=True)
    brought.touch()
    monkeypatch.setattr(toolchains, "_checkout", lambda: tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    assert toolchains.missing("asc", tmp_path / "project") == ""
    brought.unlink()
    assert "npm install, in the project's folder" in toolchains.missing("asc", tmp_path / "project")


def test_a_long_build_says_on_a_terminal_what_it_does(folder: Path) -> None:
    """And says nothing where stderr is a file or a pipe, as in CI."""
    goes_on = folder / "go"
    os.mkfifo(goes_on)
    (folder / project_files.FILE).write_text(TOML + "build = 'cat go'\n")
    command = [sys.executable, "-m", "control.cli", "function", "build", str(folder)]
    ours, theirs = os.openpty()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        shown = ""
        while "building" not in shown:
            assert select.select([ours], [], [], 60)[0], shown
            shown += os.read(ours, 1000).decode()
        goes_on.write_text("")
        process.wait(scaled(60))
    os.close(ours)
    assert "building f …" in shown
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        with goes_on.open("w"):  # which the build has begun to read
            time.sleep(toolchains.SILENT + 0.5)
        assert "building" not in process.communicate(timeout=scaled(60))[1]


def test_what_nodes_cannot_run_is_said_after_the_build(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["function", "build", str(folder)]) == 1
    assert "nodes can't run" in capsys.readouterr().err
