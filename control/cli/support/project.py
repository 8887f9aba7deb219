"""A function's project: a folder with its source and `function.toml`, which says how it is built and what it may do.

name = "orders"                     the function's name
build = "{zig} cc … main.c"         the command that makes the module, run in the folder; without it nothing is built
module = "function.wasm"            the module that the build makes
schema = "schema"                   optional: a folder of NNNN_name.sql files, for `skerry dev`
[manifest]                          what the function may do and how it is called: docs/functions.md
"""

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from control import manifests, wire
from control.cli.support.client import Failure, Json
from control.manifest_fields import Manifest, unfit

FILE = "function.toml"
SCHEMA = re.compile(r"(\d{1,9})_([^/]+)\.sql")
CURE = f"`skerry function new NAME --lang LANGUAGE` writes a project; its {FILE} is described in docs/functions.md"


class ProjectInvalid(Failure):
    """A project's function.toml or schema can't be read or isn't valid."""

    exit_code = 2


class ProjectFile(msgspec.Struct, forbid_unknown_fields=True):
    """The content of function.toml."""

    name: wire.Name
    module: str
    build: str = ""
    schema: str = ""
    manifest: dict[str, Any] = {}


@dataclass(frozen=True)
class SchemaFile:
    """A schema change of the project: one of its NNNN_name.sql files."""

    number: int
    name: str
    sql: str


@dataclass(frozen=True)
class Project:
    """A function's project, as its function.toml says; the paths begin with the folder."""

    folder: Path
    name: str
    build: str
    module: Path
    schema: Path | None
    manifest: Json = field(default_factory=dict)

    def changes(self) -> list[SchemaFile]:
        """Return the schema's files by their numbers; [] where the project has none.

        Raises: ProjectInvalid, when a file has no number, can't be read, or a number is missing.
        """
        if self.schema is None:
            return []
        found = []
        try:
            for file in self.schema.iterdir():
                if match := SCHEMA.fullmatch(file.name):
                    found.append(SchemaFile(int(match[1]), match[2], file.read_text("utf-8")))
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
    """Read the project in a folder.

    Raises: ProjectInvalid, when there is none, or its function.toml isn't valid.
    """
    file = folder / FILE
    try:
        settings = msgspec.convert(tomllib.loads(file.read_text("utf-8")), ProjectFile)
        manifests.check(msgspec.convert(settings.manifest, Manifest))
    except FileNotFoundError:
        raise ProjectInvalid(f"{folder} is no function's project: it has no {FILE}", cure=CURE) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ProjectInvalid(f"{file} can't be read: {error}", cure=CURE) from None
    except msgspec.ValidationError as error:
        raise ProjectInvalid(f"{file} isn't valid: {unfit(error)}", cure=CURE) from None
    except manifests.ManifestUnfit as error:
        raise ProjectInvalid(f"{file} isn't valid: {error}", cure=CURE) from None
    return Project(
        folder,
        settings.name,
        settings.build,
        folder / settings.module,
        folder / settings.schema if settings.schema else None,
        settings.manifest,
    )
