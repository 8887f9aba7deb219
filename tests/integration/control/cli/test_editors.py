"""Editors' own servers find no error in a new project, and find what is wrong in one that was broken for WASI."""

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from control.cli import main as cli
from control.cli.project import toolchains
from tests.support.deadlines import scaled

LIMIT = 240
"""Seconds that a server may take; rust-analyzer reads all of the standard library, in 10 s on an idle machine."""
NPM = Path(__file__).resolve().parents[4] / "lock" / "npm" / "node_modules"
TSSERVER = NPM / ".bin" / "tsserver"


def made(language: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new project in the language."""
    monkeypatch.chdir(folder)
    assert cli.run(["function", "new", "orders", "--lang", language]) == 0
    return folder / "orders"


def replace(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert text.count(before) == 1
    file.write_text(text.replace(before, after))


def out(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    """What a program printed."""
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=scaled(LIMIT)
    )
    return done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("gopls") is None, reason="gopls isn't installed: just toolchains")
def test_gopls_knows_that_a_go_project_is_for_wasi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made("go", tmp_path, monkeypatch)
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOPROXY": "off"}
    # Linux has it, and WASI hasn't. It is all that is found: without it the project has no error.
    replace(folder / "main.go", 'import (\n\t"encoding/json"', 'import (\n\t"encoding/json"\n\t"syscall"')
    replace(folder / "main.go", "\tauthor := ", "\t_ = syscall.PtraceAttach\n\tauthor := ")
    told = out(["gopls", "check", "main.go", "skerry.go"], folder, environment).splitlines()
    assert len(told) == 1
    assert "main.go:16:14-26: undefined: syscall.PtraceAttach" in told[0]


def analyzed(folder: Path, compiler: Path, tmp_path: Path) -> list[str]:
    """What rust-analyzer finds in a project, as lines."""
    # Not cargo: it would look for the library's dependencies on the network, which nothing here needs.
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "rustc").symlink_to(compiler)
    environment = {"PATH": str(programs), "HOME": str(tmp_path), "CARGO_HOME": str(tmp_path)}
    told = out(["/usr/bin/rust-analyzer", "diagnostics", str(folder)], folder, environment)
    assert "diagnostic scan complete" in told
    return re.findall(r"(?m)^(?:Error|Warning|WeakWarning) .*$", told)


@pytest.mark.skipif(
    not Path("/usr/bin/rust-analyzer").exists(), reason="rust-analyzer isn't installed: just toolchains"
)
def test_rust_analyzer_finds_the_standard_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made("rust", tmp_path, monkeypatch)
    if not (folder / toolchains.RUST_PROJECT).exists():
        pytest.skip("Rust for WASI, or the source of its standard library, isn't installed: just toolchains")
    sysroot = Path(json.loads((folder / toolchains.RUST_PROJECT).read_text())["sysroot"])
    if (sysroot / "bin" / "cargo").exists():
        pytest.skip("rust-analyzer would take the cargo that is beside this compiler, which needs the network")
    # It is all that is found, in a run that takes seconds: without it the project has no error.
    replace(folder / "main.rs", "fn main() {", 'fn main() {\n    let _count: usize = String::from("orders");')
    told = analyzed(folder, sysroot / "bin" / "rustc", tmp_path)
    assert len(told) == 1
    assert "expected usize, found String" in told[0]


def answers(folder: Path, asked: list[tuple[str, dict[str, Any]]]) -> Iterator[Any]:
    """The bodies of what TypeScript's server, which editors have, answers to these commands."""
    requests = [
        json.dumps({"seq": number, "type": "request", "command": command, "arguments": arguments})
        for number, (command, arguments) in enumerate(asked)
    ]
    command = [str(TSSERVER), "--disableAutomaticTypingAcquisition"]
    with subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        watch = threading.Timer(LIMIT, server.kill)
        watch.start()
        # It stops at the end of what it is asked, with answers or not.
        server.stdin.write("\n".join(requests) + "\n")
        server.stdin.flush()
        left = len(asked)
        for line in server.stdout:
            message = json.loads(line) if line.startswith("{") else {}
            if message.get("type") == "response":
                assert message["success"], message
                yield message["body"]
                left -= 1
            if not left:
                break
        watch.cancel()
        server.kill()
        assert not left


def typescript(folder: Path) -> dict[str, list[str]]:
    """What TypeScript's server finds in each file of a project."""
    files = sorted(folder.glob("*.ts"))
    opened = [{"file": str(file), "fileContent": file.read_text()} for file in files]
    asked: list[tuple[str, dict[str, Any]]] = [("updateOpen", {"openFiles": opened})]
    asked += [(f"{kind}DiagnosticsSync", {"file": str(file)}) for file in files for kind in ("syntactic", "semantic")]
    asked.append(("compilerOptionsDiagnostics-full", {"projectFileName": str(folder / "tsconfig.json")}))
    found: dict[str, list[str]] = {}
    for (_, arguments), body in list(zip(asked, answers(folder, asked), strict=True))[1:]:
        name = Path(arguments.get("file") or arguments["projectFileName"]).name
        found.setdefault(name, []).extend(each.get("text") or each["message"] for each in body)
    return found


@pytest.mark.skipif(not TSSERVER.exists(), reason="TypeScript isn't installed: just toolchains")
def test_typescript_knows_assemblyscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made("assemblyscript", tmp_path, monkeypatch)
    (folder / "node_modules").symlink_to(NPM)
    assert typescript(folder) == {"main.ts": [], "skerry.ts": [], "tsconfig.json": []}
    # JavaScript has it, and AssemblyScript hasn't.
    replace(folder / "main.ts", "function main(): void {", "function main(): void {\n  setTimeout(main, 1);")
    assert typescript(folder) == {"main.ts": ["Cannot find name 'setTimeout'."], "skerry.ts": [], "tsconfig.json": []}
    # Without the file, nothing of AssemblyScript is known.
    (folder / "tsconfig.json").write_text("{}")
    assert "Cannot find name 'i64'." in typescript(folder)["skerry.ts"]


@pytest.mark.skipif(not TSSERVER.exists(), reason="TypeScript isn't installed: just toolchains")
def test_typescript_knows_what_handlers_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made("ts", tmp_path, monkeypatch)
    fine: dict[str, list[str]] = {"env.d.ts": [], "main.ts": [], "tsconfig.json": []}
    assert typescript(folder) == fine
    replace(folder / "main.ts", "await list(env, author)", "await list(env.dbs, author)")
    assert typescript(folder)["main.ts"] == ["Property 'dbs' does not exist on type 'Env'."]
    # Without the file, nothing of Skerry is known.
    (folder / "env.d.ts").unlink()
    assert "Cannot find name 'Env'." in typescript(folder)["main.ts"]
