"""Which schema files of a project control has already: they are registered as `PROJECT/NNNN_name`, or were by hand."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from control.cli.project.project_files import Project, SchemaFile
from control.cli.support.client import Client, Failure, Json, path
from control.protocol import wire

NAME_LIMIT = 200
"""Characters that the name of a schema change may have."""


class SchemaFileChanged(Failure):
    """A schema file of the project isn't what was registered of it."""

    exit_code = 2


def name_of(found: Project, file: SchemaFile) -> str:
    """Return the name by which a schema file is registered."""
    return f"{found.name}/{file.path.stem}"[:NAME_LIMIT]


class ProjectSchema(NamedTuple):
    """What control has of a project's schema."""

    lacking: list[SchemaFile]
    """The files that it hasn't, in their order."""
    known: int = 0
    """The number of the newest schema change that is one of its files; 0 for none."""


async def compared(control: Client, found: Project) -> ProjectSchema:
    """Return which schema files control hasn't, and up to which change it has them.

    Raises: SchemaFileChanged, when a file that was registered has another text now; else as `Client.items` does.
    """
    files = found.changes()
    if not files:
        return ProjectSchema([])
    registered = [change for change in await control.items(path("schema-changes")) if not change.get("withdrawn")]
    own = _own(found.name, registered)
    # What `schema add` has registered, by the text: each counts once, since a text may be there twice.
    by_hand = [change for change in registered if "/" not in change["name"]]
    lacking, known = [], 0
    for file in files:
        checksum = wire.schema_checksum(file.sql)
        change = own.get(file.number)
        if change is not None:
            if change["checksum"] != checksum and not await _had(control, change, checksum):
                raise _changed(file, change)
            known = max(known, change["number"])
            continue
        same = next((change for change in by_hand if change["checksum"] == checksum), None)
        if same is None:
            lacking.append(file)
        else:
            by_hand.remove(same)
            known = max(known, same["number"])
    return ProjectSchema(lacking, known)


def _own(project: str, registered: Iterable[Json]) -> dict[int, Json]:
    """The changes that are this project's, by the numbers of its files."""
    pattern = re.compile(rf"{re.escape(project)}/(\d+)_.*")
    return {int(match[1]): change for change in registered if (match := pattern.fullmatch(change["name"]))}


async def _had(control: Client, change: Json, checksum: str) -> bool:
    """Tell whether a change had a text before it was amended."""
    if change["revision"] == 1:
        return False
    found = await control.get(path("schema-changes", change["number"]))
    return any(revision["checksum"] == checksum for revision in found["revisions"])


def _changed(file: SchemaFile, change: Json) -> SchemaFileChanged:
    return SchemaFileChanged(
        f"{file.path} is schema change {change['number']} ({change['name']}) at control, and its text is another one "
        "now: nodes may have applied what was registered",
        cure="put what is to change into a new file, with the next number; where nodes fail on the change, "
        f"`skerry schema amend {change['number']} {file.path}` gives them this text",
    )
