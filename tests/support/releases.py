"""Releases for the nodes of tests.support.agents: each version of one function answers its own number."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

from tests.guests.version import version
from tests.support.agents import Control, Edge
from tests.support.deadlines import deadline

SCHEMA = "CREATE TABLE generation (number INTEGER NOT NULL); INSERT INTO generation VALUES (1);"
READ = {"sql": "read"}


async def first_release(control: Control) -> None:
    """Make the first release of the function, for nodes of `tests.support.agents`."""
    await control.call("POST", "schema-changes", {"name": "first", "sql": SCHEMA})
    await control.release(functions={"hello": await control.push("hello", version(1), READ)})


async def push(control: Control, number: int, manifest: dict[str, Any] | None = None) -> Any:
    """Push the version of this number and release it; return the release."""
    return await control.release(functions={"hello": await control.push("hello", version(number), manifest or READ)})


async def answers(node: Edge, number: int) -> None:
    """Wait until the node's function answers this number."""
    async with deadline(60):
        while True:
            status, body = await node.call("hello")
            if status == 200 and f'"version":{number},'.encode() in body:
                return
            await asyncio.sleep(0.02)


def artifacts(state: Path) -> set[str]:
    """The digests of what the node has on its disk."""
    return {file.name[:64] for file in (state / "artifacts").iterdir()}


def sha(number: int) -> str:
    """The digest of a version."""
    return hashlib.sha256(version(number)).hexdigest()
