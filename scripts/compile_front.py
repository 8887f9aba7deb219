"""Compiles modules of the front with mypyc, unchanged, into FOLDER/edge_runtime/built/front. `scripts/compile` runs it.

These are the modules that each call passes through, according to profiles. Others gain nothing measurable. None has an
`async def`: mypyc throws exceptions into coroutines in a way that Python has deprecated, and a cancellation then ends
in a warning, or in an error where warnings are errors.
"""

import ast
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edge_runtime.built.compiled_modules import STAMP, SUFFIX
from scripts.compile_native import CACHES

MODULES = (
    "edge_runtime.dispatch.breaker",
    "edge_runtime.dispatch.call",
    "edge_runtime.dispatch.outcomes",
    "edge_runtime.dispatch.pool",
    "edge_runtime.dispatch.served_functions",
    "edge_runtime.dispatch.time_watchdog",
    "edge_runtime.dispatch.worker_link",
    "edge_runtime.dispatch.worker_socket",
    "edge_runtime.pauses",
    "edge_runtime.telemetry.call_counts",
    "edge_runtime.telemetry.call_traces",
    "edge_runtime.token_bucket",
    "edge_runtime.web.app",
    "edge_runtime.web.connection",
    "edge_runtime.web.connection_memory",
    "edge_runtime.web.parser",
    "edge_runtime.web.routes",
    "edge_runtime.web.site_policy",
)
GROUP = "skerry_front"
"""Names the file with the code of all modules: GROUP__mypyc."""


def path_of(name: str) -> str | None:
    """Return the path of one of our modules, relative to the packages' folder; None for others."""
    path = name.replace(".", "/")
    return next((p for p in (f"{path}.py", f"{path}/__init__.py") if Path(p).exists()), None)


def imported(path: str) -> Iterator[str]:
    """Yield the paths of our modules that a module imports, and of their packages."""
    for node in ast.walk(ast.parse(Path(path).read_text("utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            if parts[0] in ("control", "edge_runtime"):
                yield from filter(None, (path_of(".".join(parts[:n])) for n in range(1, len(parts) + 1)))


def sources(modules: tuple[str, ...]) -> list[str]:
    """Return the paths of these modules and of all our modules that they import, directly or indirectly."""
    todo = [path for name in modules if (path := path_of(name)) is not None]
    found = set(todo)
    while todo:
        new = set(imported(todo.pop())) - found
        found |= new
        todo += new
    return sorted(found)


def compile_by_zig() -> None:
    """Use Zig as the C compiler, for code that runs on every processor of this kind and every glibc since 2.31."""
    zig = f"{sys.executable} -m ziglang cc -target {platform.machine()}-linux-gnu.2.31"
    # Debian's Python headers include a file that is beside them.
    os.environ["CC"] = f"{zig} -idirafter /usr/include"
    os.environ["LDSHARED"] = f"{zig} -shared"
    os.environ |= CACHES


def main(folder: Path) -> None:
    # Imported here, since tests import this module for its names, in each of their processes.
    from mypyc.build import mypycify
    from setuptools import setup

    # mypy names modules by their paths from here.
    os.chdir(folder)
    compile_by_zig()
    place = Path("edge_runtime/built/front")
    read = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in sources(MODULES)}
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".making-") as made:
        extensions = mypycify(
            ["--config-file", "pyproject.toml", *filter(None, map(path_of, MODULES))],
            opt_level="3",
            debug_level="0",
            strict_dunder_typing=True,
            group_name=GROUP,
            target_dir=f"{made}/c",
        )
        arguments = ["build_ext", "--build-lib", f"{made}/lib", "--build-temp", f"{made}/temp"]
        setup(name=GROUP, packages=[], py_modules=[], ext_modules=extensions, script_args=arguments)
        whole = Path(made, "front")
        whole.mkdir()
        modules = []
        for file in Path(made, "lib").rglob(f"*{SUFFIX}"):
            name = ".".join(file.relative_to(made).parts[1:])
            file.rename(whole / name)
            modules.append(name.removesuffix(SUFFIX))
        stamp = {"suffix": SUFFIX, "modules": sorted(modules), "sources": read}
        Path(whole, STAMP).write_text(json.dumps(stamp, indent=1) + "\n", "utf-8")
        shutil.rmtree(place, ignore_errors=True)
        whole.rename(place)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
