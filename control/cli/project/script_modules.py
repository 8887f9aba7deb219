"""Modules of functions in JavaScript: the engine in `javascript/`, initialised with a script, and its snapshot taken.

The script is one ES module, as esbuild makes of a function's sources, with its source map beside it.
"""

import os
import posixpath
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec
import orjson

from control.cli.project import snapshots
from control.cli.project.snapshots import Initialisation
from control.cli.support.client import Failure, Json
from control.protocol.manifest import Manifest

ENGINE = Path(__file__).parent / "javascript" / "engine.wasm"
INIT = "skerry_init"
"""The engine's initialiser. It reads the script from stdin and, behind a NUL, what the build knows as JSON."""
TYPES = "env.d.ts"
"""What editors and TypeScript need to know: the types of a handler's parameters, with the manifest's names."""
_TEMPLATE = Path(__file__).parent / "javascript" / TYPES
_PACKAGES = re.compile(r"^\.\./.*/node_modules/")
_NAMES = {"    // CONFIG\n": "config", "    // SECRETS\n": "secrets"}
"""The lines of the template that stand for the manifest's names."""


class ScriptInvalid(Failure):
    """A script can't be made a module; the message says why."""


async def make(
    script: Path,
    module: Path,
    manifest: Json,
    *,
    project: Path,
    secrets: Mapping[str, str] | None = None,
    allow: Collection[str] = (),
) -> str:
    """Write the module of a script; return what its code outside of handlers logged. `secrets` are values that must not
    be in the module, but those of `allow`.

    Raises: ScriptInvalid, when the script can't be read, or its code fails.
    """
    try:
        text = script.read_bytes()
    except OSError as error:
        raise ScriptInvalid(f"the script {script} can't be read: {error.strerror}") from None
    if b"\0" in text:
        raise ScriptInvalid(f"the script {script} has a NUL in it: write \\0")
    known = msgspec.convert(manifest, Manifest)
    stdin = text + b"\0" + orjson.dumps({"map": _source_map(script, project), "secrets": known.secrets})
    how = Initialisation(INIT, allow=allow, stdin=stdin, compiled=True)
    try:
        return await snapshots.made(
            ENGINE, module, how, project=project, memory_pages=known.memory_pages, secrets=secrets
        )
    except snapshots.SnapshotFailed as failed:
        # The path of the engine tells nobody anything.
        why = str(failed).partition(": ")[2].replace("<3>", "")
        raise ScriptInvalid(f"no module can be made of {script}: {why}") from None


def _source_map(script: Path, project: Path) -> Json:
    """Return what a stack trace needs of a script's source map, with paths from the project's folder; an empty map if
    there is none."""
    try:
        given = orjson.loads(script.with_name(f"{script.name}.map").read_bytes())
        folder = Path(os.path.relpath(script.parent, project)).as_posix()
        sources = [posixpath.normpath(posixpath.join(folder, source)) for source in given["sources"]]
        # Where a package outside of the project is on this machine is nobody's business.
        named = [_PACKAGES.sub("node_modules/", source) for source in sources]
        return {"sources": named, "mappings": given["mappings"]}
    except FileNotFoundError:
        return {"sources": [], "mappings": ""}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ScriptInvalid(f"the source map of {script} can't be read: {error}") from None


def write_types(folder: Path, manifest: Json) -> None:
    """Write `TYPES` for a function with this manifest, unless it is there as it should be."""
    known = msgspec.convert(manifest, Manifest)
    text = _TEMPLATE.read_text("utf-8")
    for line, field in _NAMES.items():
        names = sorted(getattr(known, field))
        text = text.replace(line, "".join(f"    readonly {orjson.dumps(name).decode()}: string;\n" for name in names))
    file = folder / TYPES
    if not file.is_file() or file.read_text("utf-8") != text:
        file.write_text(text, "utf-8")
