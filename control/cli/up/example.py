"""The examples that `skerry up` deploys, from modules in the tree: hello, in C, with a schema change; and with --demo
then greetings, in TypeScript, which reads the same table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from control.cli.functions import check_manifest, read_manifest, upload
from control.cli.project import project_files
from control.cli.project.authoring import examples
from control.cli.support.client import Client, Failure, Json, path
from control.protocol.manifest import Manifest, manifest_digest

GROUP = "default"
"""The group that the examples are released to, which every control has."""


@dataclass(frozen=True)
class Example:
    """A function in a folder of its name, and a call of it."""

    function: str
    request: str
    """What follows the function's name in the URL."""
    answer: str
    arrival_limit: float
    """Seconds within which the edge must run its release."""
    note: str = ""
    """What to say while that is waited for."""
    change: str = ""
    """The schema change that it needs, from `schema.sql` in its folder, if it needs one of its own."""

    @property
    def folder(self) -> Path:
        """The example's folder: in the package if installed from a wheel, else beside it in the checkout."""
        return examples() / self.function

    @property
    def manifest(self) -> dict[str, Any]:
        """What it may do. Raises: ProjectInvalid, Failure, when its file can't be read."""
        file = self.folder / "manifest.json"
        return read_manifest(file) if file.exists() else project_files.read(self.folder).functions[0].manifest


HELLO = Example(
    "hello",
    "?name=Ada&language=ja",
    '{"message":"こんにちは, Ada!","language":"ja"}',
    arrival_limit=60.0,
    change="greetings",
)
GREETINGS = Example(
    "greetings",
    "",
    '{"de":"Hallo","en":"Hello","fr":"Bonjour","gd":"Halò","ja":"こんにちは"}',
    # A minute on two cores, several where others work there, too.
    arrival_limit=600.0,
    note="the node compiles JavaScript's engine, once for all functions: that takes a minute or more",
)


async def schema_change(client: Client, example: Example) -> Json:
    """Return the example's schema change; register it if control doesn't have it yet."""
    for change in await client.items(path("schema-changes")):
        if change["name"] == example.change:
            return change
    sql = (example.folder / "schema.sql").read_text("utf-8")
    return await client.post(path("schema-changes"), {"name": example.change, "sql": sql})


async def function_version(client: Client, example: Example) -> Json:
    """Return the version of the function with the folder's module and manifest; upload it if it is missing."""
    file = example.folder / f"{example.function}.wasm"
    if not file.is_file():
        raise Failure(f"{file} isn't there", cure="`just guests`, in a checkout, builds it")
    manifest = example.manifest
    check_manifest(manifest)
    sha256 = await upload(client, file, quiet=True)
    digest = manifest_digest(msgspec.convert(manifest, Manifest))
    functions = [item["name"] for item in await client.items(path("functions"))]
    if example.function in functions:
        for version in await client.items(path("functions", example.function, "versions")):
            there = manifest_digest(msgspec.convert(version["manifest"], Manifest))
            if version["sha256"] == sha256 and there == digest:
                return version
    return await client.post(path("functions", example.function, "versions"), {"sha256": sha256, "manifest": manifest})


async def release(client: Client, version: Json, change: Json | None) -> Json:
    """Return the group's newest release if it has this version and change, else make one that has them."""
    for newest in await client.items(path("releases"), most=1, group=GROUP):
        has = {(item["name"], item["version"]) for item in newest["functions"]}
        floor = change["number"] if change else 0
        if (version["name"], version["version"]) in has and newest["schema_floor"] >= floor:
            return newest
    # A rehearsal would find nothing in an empty database, and take its time.
    body = {"group": GROUP, "functions": {version["name"]: version["version"]}, "now": True}
    return await client.post(path("releases"), {**body, "reason": "the example of skerry up"})
