"""An author's project: a folder with functions and the schema that they share.

A folder with `function.toml` is a project of one function:

name = "orders"                     the function's name
build = "{zig} cc … main.c"         the command that makes the module, run in the folder; without it nothing is built
module = "function.wasm"            the module that the build makes
schema = "schema"                   optional: a folder of NNNN_name.sql files
script = ".build/main.js"           optional: the ES module that the build makes; Skerry makes the module of it
snapshot = { init = "warm" }        optional: an export that is run once, at build; the module begins as it has left it
[manifest]                          what the function may do and how it is called: docs/functions.md

A folder with `skerry.toml` is a project of several: each folder in it that has a `function.toml` is one of them.

name = "shop"                       the project's name
schema = "schema"                   optional, as above; the functions' own files name none
"""

import os
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec

from control import manifest_rules
from control.cli.project.snapshots import Initialisation
from control.cli.support.client import Failure, Json
from control.protocol import wire
from control.protocol.manifest import Manifest, unfit

FILE = "function.toml"
SEVERAL = "skerry.toml"
TESTS = "tests"
"""The folder, in a project or in one of its functions, with test cases."""
SCHEMA = re.compile(r"(\d{1,9})_([^/]+)\.sql")
SNAPSHOT = ".snapshot.wasm"
"""What ends the name of a module's snapshot, in the place of `.wasm`."""
CURE = f"`skerry function new NAME --lang LANGUAGE` writes a project; its {FILE} is described in docs/functions.md"

Content = TypeVar("Content", bound=msgspec.Struct)


class ProjectInvalid(Failure):
    """A project's files can't be read or aren't valid."""

    exit_code = 2


class SnapshotTable(msgspec.Struct, forbid_unknown_fields=True):
    """The table `snapshot` of function.toml, as in `snapshots.Initialisation`."""

    init: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    """Required, unless the module is made of a script."""
    renew: str = ""
    allow: list[str] = []


class FunctionFile(msgspec.Struct, forbid_unknown_fields=True):
    """The content of function.toml."""

    name: wire.Name
    module: str
    build: str = ""
    schema: str = ""
    script: str = ""
    snapshot: SnapshotTable | None = None
    manifest: dict[str, Any] = {}


def file_schema() -> dict[str, Any]:
    """Return the JSON Schema of function.toml, for editors, without rules that involve several fields."""
    _, kinds = msgspec.json.schema_components([FunctionFile, Manifest], ref_template="#/$defs/{name}")
    kinds["FunctionFile"]["properties"]["manifest"] = {"$ref": "#/$defs/Manifest"}
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"{FILE} of a Skerry function",
        "$ref": "#/$defs/FunctionFile",
        "$defs": kinds,
    }
    # Python's $ also matches before a line break; JSON Schema's doesn't.
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(whole).replace(rb"$(?!\\n)", b"$"))
    return found


class SeveralFile(msgspec.Struct, forbid_unknown_fields=True):
    """The content of skerry.toml."""

    name: wire.Name
    schema: str = ""


@dataclass(frozen=True)
class SchemaFile:
    """A schema change of the project: one of its NNNN_name.sql files."""

    number: int
    name: str
    sql: str
    path: Path


@dataclass(frozen=True)
class FunctionSource:
    """A function of a project, from its function.toml; the paths begin with the folder."""

    folder: Path
    name: str
    build: str
    module: Path
    """What is served and pushed: the snapshot, if there is one."""
    manifest: Json = field(default_factory=dict)
    built: Path = Path()
    """What the build makes, if `module` is its snapshot."""
    snapshot: Initialisation | None = None
    script: Path | None = None
    """What the build makes, if `module` is made of a script."""
    allow: tuple[str, ...] = ()
    """Names of secrets and variables whose values may be in the module of a script."""


@dataclass(frozen=True)
class Project:
    """Functions and the schema that they share; the paths begin with the folder."""

    folder: Path
    name: str
    functions: tuple[FunctionSource, ...]
    """At least one, by name."""
    schema: Path | None

    def folders(self) -> list[Path]:
        """Return the folders that contain the project: the schema may be outside its own folder."""
        schema = self.schema
        outside = schema is not None and not schema.resolve().is_relative_to(self.folder.resolve())
        return [self.folder, schema] if schema is not None and outside else [self.folder]

    def concerned(self, paths: Iterable[Path]) -> list[FunctionSource]:
        """Return the functions that must be rebuilt after these files have changed.

        A file in a function's folder concerns that function. Any other file may be shared by all of them, unless it
        belongs to the schema or to the tests.
        """
        own = {source.folder for source in self.functions} - {self.folder}
        found: set[str] = set()
        for path in paths:
            if self.schema in path.parents or path.parent.name == TESTS:
                continue
            within = [source for source in self.functions if source.folder in own & set(path.parents)]
            found |= {source.name for source in within or self.functions}
        return [source for source in self.functions if source.name in found]

    def changes(self) -> list[SchemaFile]:
        """Return the schema's files by number; [] if the project has none.

        Raises: ProjectInvalid, when a file has no number, can't be read, or a number is missing.
        """
        if self.schema is None:
            return []
        found = []
        try:
            for file in self.schema.iterdir():
                if match := SCHEMA.fullmatch(file.name):
                    found.append(SchemaFile(int(match[1]), match[2], file.read_text("utf-8"), file))
                elif file.suffix == ".sql":
                    raise ProjectInvalid(f"{file} isn't named NNNN_name.sql, as in 0001_notes.sql")
        except (OSError, UnicodeDecodeError) as error:
            raise ProjectInvalid(f"the schema in {self.schema} can't be read: {error}") from None
        found.sort(key=lambda change: change.number)
        numbers = [change.number for change in found]
        if numbers != list(range(1, len(found) + 1)):
            raise ProjectInvalid(
                f"the files in {self.schema} must be numbered from 1 on without a gap, and are {numbers}"
            )
        return found


def read(folder: Path) -> Project:
    """Read the project in a folder: one function (possibly part of a larger project), or several.

    Raises: ProjectInvalid, when there is none or one of its files isn't valid.
    """
    if (folder / SEVERAL).is_file():
        return _several(folder)
    source, schema = _function(folder)
    above = Path(os.path.abspath(folder)).parent  # the parent of `..` isn't the one in its text
    if not schema and (above / SEVERAL).is_file():
        # One function of several: the schema is the project's.
        whole = read_several(above)
        return Project(folder, whole.name, (source,), above / whole.schema if whole.schema else None)
    return Project(folder, source.name, (source,), folder / schema if schema else None)


def read_several(folder: Path) -> SeveralFile:
    """Read the skerry.toml in a folder. Raises: ProjectInvalid, when there is none, or it isn't valid."""
    return _content(folder / SEVERAL, SeveralFile)


def _several(folder: Path) -> Project:
    file = folder / SEVERAL
    whole = read_several(folder)
    if (folder / FILE).exists():
        raise ProjectInvalid(f"{folder} has {SEVERAL} and {FILE}: move the function into a folder of its own in it")
    functions: dict[str, FunctionSource] = {}
    for inner in sorted(each.parent for each in folder.glob(f"*/{FILE}")):
        source, schema = _function(inner)
        if schema:
            raise ProjectInvalid(
                f"{inner / FILE} names a schema, and the functions of a project share that of {file}: move its files "
                "there, with the next numbers, and take the line out"
            )
        if source.name in functions:
            raise ProjectInvalid(f"{inner} and {functions[source.name].folder} are both the function {source.name}")
        functions[source.name] = source
    if not functions:
        raise ProjectInvalid(
            f"the project {folder} has no function yet",
            cure=f"`skerry function new NAME --lang LANGUAGE --project {folder}` writes one",
        )
    routes = {name: given.route for name, given in _manifests(functions).items() if given.route is not None}
    if conflict := manifest_rules.conflict(routes):
        raise ProjectInvalid(f"in {folder}, {conflict}: give one of them another route")
    in_order = tuple(functions[name] for name in sorted(functions))
    return Project(folder, whole.name, in_order, folder / whole.schema if whole.schema else None)


def _manifests(functions: dict[str, FunctionSource]) -> dict[str, Manifest]:
    return {name: msgspec.convert(source.manifest, Manifest) for name, source in functions.items()}


def _function(folder: Path) -> tuple[FunctionSource, str]:
    """Return the function in a folder, and the folder of its schema; '' if it names none."""
    file = folder / FILE
    settings = _content(file, FunctionFile)
    try:
        manifest_rules.check(msgspec.convert(settings.manifest, Manifest))
    except msgspec.ValidationError as error:
        raise ProjectInvalid(f"{file} isn't valid: {unfit(error, Manifest)}", cure=CURE) from None
    except manifest_rules.ManifestUnfit as error:
        raise ProjectInvalid(f"{file} isn't valid: {error}", cure=CURE) from None
    module = folder / settings.module
    source = FunctionSource(folder, settings.name, settings.build, module, manifest=settings.manifest)
    table = settings.snapshot
    if settings.script:
        if table is not None and (table.init or table.renew):
            raise ProjectInvalid(f"{file} names a script, whose module is a snapshot already: only `allow` can be said")
        source = replace(source, script=folder / settings.script, allow=tuple(table.allow) if table else ())
    elif table is not None:
        if table.init is None:
            raise ProjectInvalid(f"{file} isn't valid: its snapshot names no `init`", cure=CURE)
        how = Initialisation(table.init, table.renew, table.allow)
        source = replace(source, module=module.with_suffix(SNAPSHOT), built=module, snapshot=how)
    return source, settings.schema


def _content(file: Path, kind: type[Content]) -> Content:
    try:
        return msgspec.convert(tomllib.loads(file.read_text("utf-8")), kind)
    except FileNotFoundError:
        raise ProjectInvalid(
            f"{file.parent} is no function's project: it has no {FILE}, and no {SEVERAL}", cure=CURE
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ProjectInvalid(f"{file} can't be read: {error}", cure=CURE) from None
    except msgspec.ValidationError as error:
        raise ProjectInvalid(f"{file} isn't valid: {unfit(error, kind)}", cure=CURE) from None
