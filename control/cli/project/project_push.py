"""What a push makes: the schema changes of a project that control doesn't have, and a version of each function.

One release has them all. Plans find what control would refuse before anything is made, as far as they can.
"""

import copy
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from control.cli.project.project_files import Project, SchemaFile
from control.cli.support import output, releasing
from control.cli.support.client import Client, Failure, Json, RequestRefused, path
from control.protocol import wire

STEPS = "-- skerry:"
"""Marks a schema change in steps, which can't be tried together with others."""
NAME_LIMIT = 200
"""Maximum characters of the name of a schema change."""


class SchemaFileChanged(Failure):
    """A schema file of the project differs from what was registered."""

    exit_code = 2


def name_of(found: Project, file: SchemaFile) -> str:
    """Return the name under which a schema file is registered."""
    return f"{found.name}/{file.path.stem}"[:NAME_LIMIT]


class ProjectSchema(NamedTuple):
    """What control has of a project's schema."""

    lacking: list[SchemaFile]
    """The files that control doesn't have, in order."""
    known: int = 0
    """The number of the newest schema change that is one of its files; 0 for none."""


async def compared(control: Client, found: Project) -> ProjectSchema:
    """Return which schema files control lacks, and up to which change it has them.

    Raises: SchemaFileChanged, when the text of a registered file has changed; otherwise what `Client.items` raises.
    """
    files = found.changes()
    if not files:
        return ProjectSchema([])
    registered = [change for change in await control.items(path("schema-changes")) if not change.get("withdrawn")]
    own = _own(found.name, registered)
    # Match what `schema add` has registered by its text: each counts once, since a text may occur twice.
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
    """Return this project's changes, by the numbers of its files."""
    pattern = re.compile(rf"{re.escape(project)}/(\d+)_.*")
    return {int(match[1]): change for change in registered if (match := pattern.fullmatch(change["name"]))}


async def _had(control: Client, change: Json, checksum: str) -> bool:
    """Return whether a change had this text before it was amended."""
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


class Uploaded(NamedTuple):
    """A module in the store, and the data for the version to make of it."""

    name: str
    sha256: str
    manifest: Json

    @property
    def where(self) -> str:
        return path("functions", self.name, "versions")

    @property
    def body(self) -> Json:
        return {"sha256": self.sha256, "manifest": self.manifest}


class PushPlan(NamedTuple):
    """What a push would make."""

    changes: list[Json]
    versions: list[Json]
    """Control's answers: each has `version`, and `release` if one would follow."""
    release: Json | None
    schema: int | None = None
    """The floor that the release must name, if control would choose one below the project's own schema."""

    def document(self) -> Json:
        """Return the plan for a script; for a single function, control's own answer."""
        if len(self.versions) == 1 and not self.changes:
            return self.versions[0]
        versions = [planned["version"] for planned in self.versions]
        return {"schema_changes": self.changes, "versions": versions, "release": self.release}

    def refuse(self, allowed: Json) -> None:
        """Check that control would make the release; planning it refuses nothing.

        Without this check, a push of several things would make the first ones before control refuses the release.

        Raises: RequestRefused, when control would refuse it.
        """
        release = self.release or {}
        # An older control reports none.
        found = [refusal for refusal in release.get("refusals", []) if refusal["field"] not in allowed]
        if found:
            text = "; ".join(refusal["detail"] for refusal in found)
            raise RequestRefused(f"nothing was made: {text}", code=found[0]["code"], field=found[0]["field"])

    def show(self) -> None:
        """Print the plan."""
        for change in self.changes:
            output.say(f"{releasing.named_change(change)} would be registered")
            releasing.show_findings(change)
        for planned in self.versions:
            version = planned["version"]
            output.say(f"{version['name']}@{version['version']} would be made")
        if self.release is not None:
            releasing.show(self.release, planned=True)


class ProjectPush:
    """The push of one function, or of a project."""

    def __init__(
        self, control: Client, found: Project | None, schema: ProjectSchema, uploaded: Sequence[Uploaded]
    ) -> None:
        """`schema`: what control has of the project's schema."""
        self._control = control
        self._found = found
        self._files, self._known = schema
        self._uploaded = uploaded
        self.made: dict[str, int] = {}
        """The versions that were made, by function."""

    @property
    def has_several(self) -> bool:
        """Whether several things are to be made, so that control could accept one and refuse another."""
        return len(self._files) + len(self._uploaded) > 1

    async def plan(self, group: str | None, schema: int | None, rollout: Json) -> PushPlan:
        """Have control plan what it would make, and a release of the group with it, which goes out by `rollout`.

        Raises: RequestRefused, when control would refuse something.
        """
        releases, changes = [], []
        if self._files:
            tried = await self._try_files(group, rollout)
            releases.append(tried.get("release"))
            changes = self._planned_changes(tried["change"])
        versions = []
        for each in self._uploaded:
            planned = await releasing.plan(self._control, each.where, each.body, group, rollout, schema=schema)
            versions.append(planned)
            releases.append(planned.get("release"))
        there = [release for release in releases if release is not None]
        whole = _together(there, changes) if there else None
        if whole is not None and schema is None and whole["schema_floor"] < self._known:
            # Somebody has lowered the group's floor: it stays low for what doesn't need more.
            return await self.plan(group, self._known, rollout)
        return PushPlan(changes, versions, whole, schema)

    async def _try_files(self, group: str | None, rollout: Json) -> Json:
        """Plan the files in one text, or only the first of them if one has steps."""
        assert self._found is not None  # noqa: S101
        texts = [file.sql for file in self._files]
        tried = texts if not any(STEPS in text for text in texts) else texts[:1]
        # A text may end with a comment, or without its last semicolon.
        body = {"name": name_of(self._found, self._files[0]), "sql": "\n;\n".join(tried)}
        try:
            return await releasing.plan(self._control, path("schema-changes"), body, group, rollout)
        except RequestRefused as refused:
            raise _of_files(self._files[: len(tried)], refused) from None

    def _planned_changes(self, tried: Json) -> list[Json]:
        """Return a change for each file, from the one planned for all; the first has the findings of the check."""
        assert self._found is not None  # noqa: S101
        names = [name_of(self._found, file) for file in self._files]
        nothing: Json = {"warnings": [], "losses": [], "stalls": []}
        return [
            {**tried, "number": tried["number"] + place, "name": name, **(nothing if place else {})}
            for place, name in enumerate(names)
        ]

    async def make(self, following: Json | None, *, quiet: bool) -> Json:
        """Register the files and make the versions; return the document for a script.

        The last version is made together with a release of everything, described by `following`; None: no release.

        Raises: RequestRefused, when control refuses one of them or the release; what was made earlier stays.
        """
        changes, versions = [], []
        release: Json | None = None
        for file in self._files:
            assert self._found is not None  # noqa: S101
            body = {"name": name_of(self._found, file), "sql": file.sql}
            try:
                change = await self._control.post(path("schema-changes"), body)
            except RequestRefused as refused:
                raise _of_files([file], refused) from None
            changes.append(change)
            if following is not None:
                following = {**following, "schema": change["number"]}
            if not quiet:
                output.say(f"{releasing.named_change(change)} is registered")
                releasing.show_findings(change)
        for each in self._uploaded:
            pushed = each.body
            if following is not None and each is self._uploaded[-1]:
                pushed["release"] = {**following, **({"functions": dict(self.made)} if self.made else {})}
            version = await self._control.post(each.where, pushed)
            release = version.pop("release", None)
            versions.append(version)
            self.made[each.name] = version["version"]
            if not quiet:
                size = output.size(version["size"])
                output.say(f"{each.name}@{version['version']} is uploaded ({size}, {each.sha256[:12]})")
        told: Json = {"version": versions[0]} if len(versions) == 1 else {"versions": versions}
        return {**told, "schema_changes": changes, "release": release}


def _of_files(files: Sequence[SchemaFile], refused: RequestRefused) -> RequestRefused:
    """Return control's refusal with the names of the files that it refers to."""
    names = ", ".join(str(file.path) for file in files)
    cure = refused.cure
    if not cure and refused.code == "schema_refused" and "already exists" in str(refused):
        cure = (
            "all functions of a node share one database, and an earlier schema change made it (`skerry schema list`): "
            "give yours another name"
        )
    return RequestRefused(f"{names}: {refused}", code=refused.code, field=refused.field, cure=cure)


def _together(releases: list[Json], changes: list[Json]) -> Json:
    """Merge separately planned releases, each with its own part of what is new, into one."""
    whole = copy.deepcopy(releases[0])
    if len(releases) > 1:
        # It is the digest of only a part.
        whole.pop("plan_digest", None)
    functions = {item["name"]: item for item in whole["functions"]}
    for other in releases[1:]:
        new = {item["name"] for kind in ("add", "change") for item in other["changes"][kind]}
        functions |= {item["name"]: item for item in other["functions"] if item["name"] in new}
        for kind in ("add", "change", "grants"):
            whole["changes"][kind] += [item for item in other["changes"][kind] if item not in whole["changes"][kind]]
        if other["unfit"]["count"] > whole["unfit"]["count"]:
            whole["unfit"] = other["unfit"]
        refusals = whole.setdefault("refusals", [])
        refusals += [refusal for refusal in other.get("refusals", []) if refusal not in refusals]
    whole["functions"] = [functions[name] for name in sorted(functions)]
    if changes:
        numbers = {change["number"] for change in changes}
        earlier = [item for item in whole["changes"]["schema"] if item["number"] not in numbers]
        named = [{"number": change["number"], "name": change["name"]} for change in changes]
        whole["changes"]["schema"] = [*earlier, *named]
        whole["schema_floor"] = max(whole["schema_floor"], changes[-1]["number"])
        whole["held_below"] = None
    return whole
