"""Finding the compilers of functions, and running a project's build command.

A build command names its compiler as {zig}, {rustc}, {go}, {asc} or {esbuild}. Each is replaced by the compiler found
on this machine, with the options that it needs to build a module for WASI, or the script of a module. The rest of the
command is the project's own.
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

import control
from control.cli.project import script_modules, snapshots
from control.cli.project.project_files import FunctionSource
from control.cli.support import output
from control.cli.support.client import Failure
from control.protocol.manifest import Manifest

FLAGS = "compile_flags.txt"
"""Lets clangd find Zig's C library for WASI. It names folders of this machine, so git ignores it."""
RUST_PROJECT = "rust-project.json"
"""Lets rust-analyzer find main.rs and the compiler's standard library; it is also specific to this machine."""
SILENT = 1.5
"""Seconds of a build before a line on a terminal says that it is still running."""
FIRST_BUILDS = {
    "zig": "the first build takes up to a minute, since Zig compiles its libraries for WASI and keeps them",
    "go": "the first build takes up to a minute, since Go compiles its libraries for WASI and keeps them",
}
"""Why the first build takes much longer than others, for each such compiler."""
SCRIPT = (
    "--bundle", "--format=esm", "--platform=neutral", "--target=es2024", "--main-fields=module,main",
    "--conditions=workerd,worker,browser", '--define:process.env.NODE_ENV="production"', "--sourcemap=external",
    "--sources-content=false", "--legal-comments=none", "--charset=utf8", "--log-level=warning",
)  # fmt: skip
"""Options with which esbuild makes the script of a function: one ES module, and its source map beside it."""
_MODULE_OF_A_HOST = re.compile(r'Could not resolve "(?:node|cloudflare):')
NO_MODULES = (
    "modules of Node and of Cloudflare aren't there, and neither --platform=node nor --external brings them: use a "
    "package, or an entry of it, that is for browsers or Workers (docs/javascript.md says what is there)"
)
"""What helps where a script imports one."""
_TOOL = re.compile(r"\{(\w+)\}")
_EDITION = re.compile(r"--edition[= ](\d{4})\b")
_RUST_FILE = re.compile(r"(\S+\.rs)(?:\s|$)")


class BuildFailed(Failure):
    """The build command failed, or its compiler is missing; the message has what the command printed."""


@dataclass(frozen=True)
class Toolchain:
    """A compiler: how to find and install it, and the environment it needs."""

    find: Callable[[Path], list[str] | None]
    """Returns the compiler's command for a project in this folder; None if it isn't installed."""
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
    found = _of_npm("asc", folder)
    return [found] if found else None


def _esbuild(folder: Path) -> list[str] | None:
    found = _of_npm("esbuild", folder)
    return [found, *SCRIPT] if found else None


def _of_npm(name: str, folder: Path) -> str | None:
    """Return the path of a program that npm has installed for the project in a folder, the checkout or the user."""
    # A build runs in the project's folder, where the caller's relative paths don't apply. A project of several
    # functions may have one node_modules for all.
    above = folder.absolute()
    own = [place / "node_modules" / ".bin" / name for place in (above, above.parent)]
    brought = _checkout() / "lock" / "npm" / "node_modules" / ".bin" / name
    return next((str(each) for each in (*own, brought) if each.exists()), shutil.which(name))


def _checkout() -> Path:
    """Return the checkout in which `just toolchains` puts asc; for an installed wheel, the folder isn't a checkout."""
    return Path(control.__file__).parents[1]


def _ziglang() -> str:
    if (_checkout() / "Justfile").is_file():
        # The version with which the examples are tested.
        return f"just setup, in {_checkout()}"
    return f"{shlex.quote(sys.executable)} -m pip install ziglang"


_TOOLCHAINS = f", or just toolchains, in {_checkout()}" if (_checkout() / "Justfile").is_file() else ""
"""The other way of installing what npm brings."""

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
        + _TOOLCHAINS,
    ),
    "esbuild": Toolchain(
        _esbuild,
        "install esbuild: npm install, in the project's folder (npm itself: apt-get install nodejs npm)" + _TOOLCHAINS,
    ),
}


def missing(name: str, folder: Path) -> str:
    """Return how to install the toolchain; '' if it is installed."""
    return "" if TOOLCHAINS[name].find(folder) else TOOLCHAINS[name].install


def command(source: FunctionSource) -> tuple[list[str], dict[str, str]]:
    """Return the function's build command with its compiler's command, and the environment to run it in.

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
    """Write `FLAGS` if Zig is installed."""
    library = _library_of_zig()
    if library is None:
        return
    headers = ("include", "libc/include/wasm-wasi-musl", "libc/include/generic-musl")
    found = [line for path in headers for line in ("-isystem", f"{library}/{path}")]
    lines = ["--target=wasm32-wasip1", "-nostdinc", *found]
    (folder / FLAGS).write_text("\n".join(lines) + "\n", "utf-8")


def _write_rust_project(folder: Path, build: str) -> None:
    """Write `RUST_PROJECT` if Rust for WASI and the source of its standard library are installed."""
    compiler, root, edition = _rustc(folder), _RUST_FILE.search(build), _EDITION.search(build)
    if compiler is None or root is None:
        return
    asked = [compiler[0], "--print", "sysroot"]
    sysroot = Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())  # noqa: S603
    # Named explicitly, since rust-analyzer doesn't find it from the sysroot alone.
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
    """After `SILENT` seconds, tell a person at a terminal what is being built and why that may take a while."""
    await asyncio.sleep(SILENT)
    if sys.stderr.isatty():
        tools = [tool[1] for part in source.build.split() if (tool := _TOOL.fullmatch(part))]
        why = next((f"; {FIRST_BUILDS[tool]}" for tool in tools if tool in FIRST_BUILDS), "")
        output.note(f"building {source.name}{f' with {tools[0]}' if tools else ''} …{why}", style="dim")


async def build(source: FunctionSource, secrets: Mapping[str, str] | None = None) -> float:
    """Build the function's module, with its snapshot if it has one; return how many seconds that took. `secrets` are
    values that must not be in a snapshot.

    Raises: BuildFailed, when the build fails or doesn't make the module; SnapshotFailed, when that has no snapshot.
    """
    began = time.monotonic()
    if source.script is not None:
        script_modules.write_types(source.folder, source.manifest)
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
                # The build's children, such as those of make or cargo, are in its process group.
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if process.returncode:
            text = out.decode(errors="replace").strip()
            cure = NO_MODULES if source.script is not None and _MODULE_OF_A_HOST.search(text) else ""
            raise BuildFailed(f"the build of {source.name} ended with status {process.returncode}:\n{text}", cure=cure)
    built = source.script or (source.module if source.snapshot is None else source.built)
    if not built.is_file():
        did = "its build didn't make it" if source.build else "its function.toml has no build command"
        what = "module" if source.script is None else "script"
        raise BuildFailed(f"the {what} of {source.name}, {built}, isn't there: {did}")
    if source.script is not None:
        log = await script_modules.make(
            source.script,
            source.module,
            source.manifest,
            project=source.folder,
            secrets=secrets,
            allow=source.allow,
        )
        for line in log.splitlines():
            output.note(f"  | {output.logged(line)}", style="dim")
    elif source.snapshot is not None:
        pages = msgspec.convert(source.manifest, Manifest).memory_pages
        await snapshots.made(
            built, source.module, source.snapshot, project=source.folder, memory_pages=pages, secrets=secrets
        )
    elif source.build:
        await snapshots.joined(built)
    return time.monotonic() - began
