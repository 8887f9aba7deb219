"""Find the compilers of functions, and run a project's build command.

A build command names its compiler as {zig}, {rustc}, {go} or {asc}. Each is replaced by the compiler that is found on
this machine, with the options that it needs to make a module for WASI. The rest of the command is the project's own.
"""

import asyncio
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import control
from control.cli.project.project_files import FunctionSource
from control.cli.support import output
from control.cli.support.client import Failure

FLAGS = "compile_flags.txt"
"""By it clangd finds the C library of WASI that Zig has. It names folders of this machine, so git ignores it."""
RUST_PROJECT = "rust-project.json"
"""By it rust-analyzer finds main.rs and the standard library of the compiler; likewise of this machine."""
SILENT = 1.5
"""Seconds of a build before a line on a terminal says that it goes on."""
FIRST_BUILDS = {
    "zig": "the first build takes up to a minute, since Zig compiles its libraries for WASI and keeps them",
    "go": "the first build takes up to a minute, since Go compiles its libraries for WASI and keeps them",
}
"""Of each compiler whose first build takes much longer than others, why."""
_TOOL = re.compile(r"\{(\w+)\}")
_EDITION = re.compile(r"--edition[= ](\d{4})\b")
_RUST_FILE = re.compile(r"(\S+\.rs)(?:\s|$)")


class BuildFailed(Failure):
    """The build command failed, or its compiler is missing; the message has what the command printed."""


@dataclass(frozen=True)
class Toolchain:
    """A compiler: how it is found and installed, and what it needs in its environment."""

    find: Callable[[Path], list[str] | None]
    """Returns the compiler's command for a project in this folder; None where it isn't installed."""
    install: str
    """How to install it, for the error message."""
    environment: dict[str, str] = field(default_factory=dict)


def _zig(_folder: Path) -> list[str] | None:
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang"]
    found = shutil.which("zig")
    return [found] if found else None


def _rustc(_folder: Path) -> list[str] | None:
    for rustc in dict.fromkeys(filter(None, (shutil.which("rustc"), shutil.which("rustc", path="/usr/bin")))):
        # A rustup on the PATH may not have the target; Debian's own compiler may.
        asked = [rustc, "--print", "target-libdir", "--target", "wasm32-wasip1"]
        told = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603
        if not told or not Path(told).is_dir():
            continue
        target = [rustc, "--target", "wasm32-wasip1"]
        if any(Path(told).parents[1].glob("*/bin/rust-lld")):
            return target
        names = ["wasm-ld", *(f"wasm-ld-{version}" for version in range(24, 13, -1))]
        linker = next(filter(None, map(shutil.which, names)), None)
        if linker:
            return [*target, "-C", f"linker={linker}"]
    return None


def _go(_folder: Path) -> list[str] | None:
    found = shutil.which("go")
    return [found] if found else None


def _asc(folder: Path) -> list[str] | None:
    # A build runs in the project's folder, where a relative path of the caller's doesn't hold.
    own = folder.absolute() / "node_modules" / ".bin" / "asc"
    brought = _checkout() / "lock" / "npm" / "node_modules" / ".bin" / "asc"
    found = next((str(asc) for asc in (own, brought) if asc.exists()), shutil.which("asc"))
    return [found] if found else None


def _checkout() -> Path:
    """Return the checkout that this runs in, where `just toolchains` puts asc; for an installed wheel it isn't one."""
    return Path(control.__file__).parents[1]


def _ziglang() -> str:
    if (_checkout() / "Justfile").is_file():
        # The version that the examples are tested with.
        return f"just setup, in {_checkout()}"
    return f"{shlex.quote(sys.executable)} -m pip install ziglang"


TOOLCHAINS = {
    "zig": Toolchain(_zig, f"install Zig, which compiles C too: {_ziglang()}"),
    "rustc": Toolchain(
        _rustc,
        "install Rust for WASI: apt-get install rustc libstd-rust-dev-wasm32 lld-19 (Debian), or with rustup: "
        "rustup target add wasm32-wasip1",
    ),
    "go": Toolchain(
        _go,
        "install Go 1.22 or later: apt-get install golang-go (Debian)",
        {"GOOS": "wasip1", "GOARCH": "wasm", "GOTOOLCHAIN": "local"},
    ),
    "asc": Toolchain(
        _asc,
        "install AssemblyScript: npm install, in the project's folder (npm itself: apt-get install nodejs npm)"
        + (f", or just toolchains, in {_checkout()}" if (_checkout() / "Justfile").is_file() else ""),
    ),
}


def missing(name: str, folder: Path) -> str:
    """Say how to install the toolchain; '' where it is installed."""
    return "" if TOOLCHAINS[name].find(folder) else TOOLCHAINS[name].install


def command(source: FunctionSource) -> tuple[list[str], dict[str, str]]:
    """Return the function's build command, with its compiler's command in it, and the environment to run it in.

    Raises: BuildFailed, when the command can't be read, or its compiler is unknown or missing.
    """
    words: list[str] = []
    environment = dict(os.environ)
    try:
        parts = shlex.split(source.build)
    except ValueError as error:
        raise BuildFailed(f"the build command of {source.name} can't be read: {error}") from None
    for part in parts:
        tool = _TOOL.fullmatch(part)
        if tool is None:
            words.append(part)
            continue
        toolchain = TOOLCHAINS.get(tool[1])
        if toolchain is None:
            raise BuildFailed(f"the build command of {source.name} names {part}; there are {', '.join(TOOLCHAINS)}")
        found = toolchain.find(source.folder)
        if found is None:
            raise BuildFailed(f"{source.name} is built by {tool[1]}, which isn't here", cure=toolchain.install)
        words += found
        environment |= toolchain.environment
    return words, environment


def write_editor_files(folder: Path, build: str) -> None:
    """Write what editors need to know about this machine for a function with this build command, unless it exists.

    That is `FLAGS` for a function built by `{zig} cc`, and `RUST_PROJECT` for one built by `{rustc}`.
    """
    if build.startswith("{zig} cc ") and not (folder / FLAGS).exists():
        _write_flags(folder)
    elif build.startswith("{rustc} ") and not (folder / RUST_PROJECT).exists():
        _write_rust_project(folder, build)


def _write_flags(folder: Path) -> None:
    """Write `FLAGS`, unless Zig isn't here."""
    library = _library_of_zig()
    if library is None:
        return
    headers = ("include", "libc/include/wasm-wasi-musl", "libc/include/generic-musl")
    found = [line for path in headers for line in ("-isystem", f"{library}/{path}")]
    lines = ["--target=wasm32-wasip1", "-nostdinc", *found]
    (folder / FLAGS).write_text("\n".join(lines) + "\n", "utf-8")


def _write_rust_project(folder: Path, build: str) -> None:
    """Write `RUST_PROJECT`, unless Rust for WASI or the source of its standard library isn't here."""
    compiler, root, edition = _rustc(folder), _RUST_FILE.search(build), _EDITION.search(build)
    if compiler is None or root is None:
        return
    asked = [compiler[0], "--print", "sysroot"]
    sysroot = Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())  # noqa: S603
    # Named, since rust-analyzer doesn't look for it by the sysroot alone.
    library = sysroot / "lib" / "rustlib" / "src" / "rust" / "library"
    if not (library / "std").is_dir():
        return
    crate: dict[str, str | list[str]] = {
        "root_module": root[1],
        "edition": edition[1] if edition else "2015",
        "deps": [],
        "target": "wasm32-wasip1",
    }
    content = {"sysroot": str(sysroot), "sysroot_src": str(library), "crates": [crate]}
    (folder / RUST_PROJECT).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _library_of_zig() -> Path | None:
    """Return the folder of the libraries that come with Zig; None without Zig."""
    package = importlib.util.find_spec("ziglang")
    program = shutil.which("zig")
    if package is not None and package.origin:
        beside = Path(package.origin).parent
    elif program:
        beside = Path(program).resolve().parent
    else:
        return None
    return beside / "lib" if (beside / "lib" / "libc").is_dir() else None


async def _say_that_it_builds(source: FunctionSource) -> None:
    """After `SILENT`, tell a person at a terminal what is being built, and why that may take a while."""
    await asyncio.sleep(SILENT)
    if sys.stderr.isatty():
        tools = [tool[1] for part in source.build.split() if (tool := _TOOL.fullmatch(part))]
        why = next((f"; {FIRST_BUILDS[tool]}" for tool in tools if tool in FIRST_BUILDS), "")
        output.note(f"building {source.name}{f' with {tools[0]}' if tools else ''} …{why}", style="dim")


async def build(source: FunctionSource) -> float:
    """Build the function's module; return how many seconds that took.

    Raises: BuildFailed, when the build fails, or didn't make the module.
    """
    began = time.monotonic()
    if source.build:
        words, environment = command(source)
        try:
            process = await asyncio.create_subprocess_exec(
                *words,
                cwd=source.folder,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise BuildFailed(f"the build command of {source.name} can't be run: {words[0]}: {error}") from None
        said = asyncio.create_task(_say_that_it_builds(source))
        try:
            out, _ = await process.communicate()
        finally:
            said.cancel()
            if process.returncode is None:
                # The build's own children, such as those of make or cargo, are in its process group.
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if process.returncode:
            text = out.decode(errors="replace").strip()
            raise BuildFailed(f"the build of {source.name} ended with status {process.returncode}:\n{text}")
    if not source.module.is_file():
        did = "its build didn't make it" if source.build else "its function.toml has no build command"
        raise BuildFailed(f"the module of {source.name}, {source.module}, isn't there: {did}")
    return time.monotonic() - began
