"""Plug-ins as compilers make them: by the official PDK for AssemblyScript, the one that a registry of packages has with
its compiler, and by Go and Rust without a PDK. Each call ends as by Extism's own host.

What the other PDKs build was checked by hand: docs/adr/0014-extism.md.
"""

import os
import subprocess
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

import pytest

from control.cli.project.toolchains import TOOLCHAINS
from edge_runtime.guests.guest import LoadedFunction
from edge_runtime.oneshot.check import check_module
from tests.guests.build import CACHE, HERE
from tests.support import by_extism, projects
from tests.support.by_extism import Call, alike, by_node
from tests.support.deadlines import scaled
from tests.support.functions import function
from tests.support.projects import NPM

PACKAGES = NPM.parent
PLUGINS = HERE / "plugins"
CODE = CACHE / "code"
CONFIG = {"thing": "config"}


def assemblyscript(*options: str) -> Callable[[Path], bytes]:
    def build(made: Path) -> bytes:
        if not (NPM / "asc").exists() or not (PACKAGES / "@extism" / "as-pdk").exists():
            pytest.skip("AssemblyScript and @extism/as-pdk aren't installed: just toolchains")
        packages = ["--path", str(PACKAGES), "--use", "abort=plugin/abort"]
        return ran([str(NPM / "asc"), "plugin.ts", "--outFile", str(made), *packages, *options], made)

    return build


def compiler(name: str, language: str, *options: str) -> Callable[[Path], bytes]:
    def build(made: Path) -> bytes:
        projects.needs(language)
        found = TOOLCHAINS[name].find(made.parent)
        assert found
        return ran([*found, *options, "-o", str(made), f"plugin.{'go' if name == 'go' else 'rs'}"], made, name)

    return build


def ran(command: list[str], made: Path, toolchain: str = "asc") -> bytes:
    environment = {**os.environ, **TOOLCHAINS[toolchain].environment}
    done = subprocess.run(command, cwd=PLUGINS, env=environment, capture_output=True, text=True, timeout=scaled(200))
    assert done.returncode == 0, done.stderr
    return made.read_bytes()


BUILDS = {
    "assemblyscript": assemblyscript("-O"),
    "assemblyscript with _initialize": assemblyscript("--runtime=stub", "--exportStart=_initialize"),
    "go": compiler("go", "go", "build", "-buildmode=c-shared", "-ldflags=-s"),
    "rust": compiler(
        "rustc", "rust", "--edition=2021", "--crate-type=cdylib", "-Copt-level=2", "-Cpanic=abort", "-Cstrip=symbols"
    ),
}


@pytest.fixture(scope="module", params=BUILDS)
def wasm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return BUILDS[request.param](tmp_path_factory.mktemp("plugin") / "plugin.wasm")


@pytest.fixture(scope="module")
def loaded(wasm: bytes) -> LoadedFunction:
    """The plug-in, whose code is kept between runs: LLVM takes seconds for Go's, which is the same in each."""
    CODE.mkdir(mode=0o700, parents=True, exist_ok=True)
    return function(wasm, CODE, config=CONFIG, abi="extism")


TEXT = "hello, wörld EIO".encode()
CALLS = [
    *[Call("echo", (b"aeiou bcd\x00\xff" * 10_000)[:size]) for size in (0, 5, 8, 100_003)],
    *[Call("count_vowels", text) for text in (TEXT, b"", b"x" * 2000)],
    *[Call(name) for name in ("everything", "fail", "complain", "broken", "nowhere")],
]


def test_a_plugin_answers(wasm: bytes, loaded: LoadedFunction) -> None:
    assert check_module(wasm)["abi"] == "extism"
    for call in CALLS[:4]:
        assert by_node(loaded, call).data == call.data
    assert by_node(loaded, Call("count_vowels", TEXT)).data == b'{"count":5,"begun":7}'
    answer = by_node(loaded, Call("everything"))
    assert (answer.data, answer.log) == (b"config, this is var a", b"<4>a warning\n")
    ends = [(by_node(loaded, Call(name)).how, by_node(loaded, Call(name)).data) for name in ("fail", "complain")]
    assert ends == [("code", b"3"), ("error", b"what it says")]


def test_it_ends_as_by_extisms_own_host(wasm: bytes, loaded: LoadedFunction, reference: Executor) -> None:
    theirs = reference.submit(by_extism.calls, wasm, CALLS, CONFIG).result()
    # What it writes to stderr, as of a panic, is in the log of a node's call alone.
    mine = [by_node(loaded, call) for call in CALLS]
    mine = [end._replace(log=b"") if call.name == "broken" else end for end, call in zip(mine, CALLS, strict=True)]
    assert mine == [alike(end) for end in theirs]
