"""The example that `skerry up` deploys: a schema change and a function, in examples/hello."""

from pathlib import Path

import msgspec

from control.cli.functions import check_manifest, read_manifest, upload
from control.cli.project.authoring import examples
from control.cli.support.client import Client, Failure, Json, path
from control.protocol.manifest import Manifest, manifest_digest

FUNCTION = "hello"
CHANGE = "greetings"
GROUP = "default"
"""The group that the example is released to, which every control has."""
REQUEST = "?name=Ada&language=ja"
ANSWER = '{"message":"こんにちは, Ada!","language":"ja"}'


def folder() -> Path:
    """Return the example's folder: in the package if installed from a wheel, else beside it in the checkout."""
    return examples() / FUNCTION


async def schema_change(client: Client) -> Json:
    """Return the example's schema change; register it if control doesn't have it yet."""
    for change in await client.items(path("schema-changes")):
        if change["name"] == CHANGE:
            return change
    sql = (folder() / "schema.sql").read_text("utf-8")
    return await client.post(path("schema-changes"), {"name": CHANGE, "sql": sql})


async def function_version(client: Client) -> Json:
    """Return the version of the function with the folder's module and manifest; upload it if it is missing."""
    file = folder() / f"{FUNCTION}.wasm"
    if not file.is_file():
        raise Failure(f"{file} isn't there", cure="see examples/hello: how to build it is in docs/functions.md")
    manifest = read_manifest(folder() / "manifest.json")
    check_manifest(manifest)
    sha256 = await upload(client, file, quiet=True)
    digest = manifest_digest(msgspec.convert(manifest, Manifest))
    functions = [item["name"] for item in await client.items(path("functions"))]
    if FUNCTION in functions:
        for version in await client.items(path("functions", FUNCTION, "versions")):
            there = manifest_digest(msgspec.convert(version["manifest"], Manifest))
            if version["sha256"] == sha256 and there == digest:
                return version
    return await client.post(path("functions", FUNCTION, "versions"), {"sha256": sha256, "manifest": manifest})


async def release(client: Client, version: Json, change: Json) -> Json:
    """Return the group's newest release if it has this version and change, else make one that has them."""
    for newest in await client.items(path("releases"), most=1, group=GROUP):
        has = {(item["name"], item["version"]) for item in newest["functions"]}
        if (FUNCTION, version["version"]) in has and newest["schema_floor"] >= change["number"]:
            return newest
    # A rehearsal would find nothing in an empty database, and take its time.
    body = {"group": GROUP, "functions": {FUNCTION: version["version"]}, "now": True}
    return await client.post(path("releases"), {**body, "reason": "the example of skerry up"})
