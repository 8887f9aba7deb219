"""Programs of either version, told apart by the Python that has the version, and what is done with them."""

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tests.guests.version import version
from tests.support import deploy
from tests.support.deadlines import deadline
from tests.support.environment import without_settings
from tests.support.live import viewing
from tests.support.programs import DEADLINE, EdgeProgram, until
from tests.support.replica import Replica

NEW = sys.executable
"""The Python of this version."""
CHANGES = "CREATE TABLE generation (number INTEGER NOT NULL); INSERT INTO generation VALUES (1)"


async def ran(python: str, module: str, *arguments: str | Path, **environment: str) -> bytes:
    """What a command of a version prints; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        *(python, "-m", module, *map(str, arguments)),
        env={**without_settings(), **environment},
        # What `-m` finds in the present folder would come before the version's own.
        cwd="/",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with deadline(DEADLINE):
        out, errors = await process.communicate()
    assert process.returncode == 0, (arguments, errors.decode())
    return out


async def migrated(python: str, url: str) -> tuple[list[str], str]:
    """Run a version's `skerry migrate`: the files that it has applied, and the token of the admin if it made one."""
    told = orjson.loads(await ran(python, "control.cli", "migrate", "--json", SKERRY_METADATA_URL=url))
    return told["applied"], told["token"] or ""


async def join(python: str, to: Replica, state: Path, name: str, url: str = "") -> None:
    """Join a node with a version's command, at control's own URL or another one."""
    token = (await deploy.ok(to, "POST", "/v1/join-tokens", {"group": "default"}))["token"]
    where = ("join", "--state", state, "--control", url or to.url, "--name", name)
    await ran(python, "edge_runtime.cli.main", *where, SKERRY_JOIN_TOKEN=token)


@dataclass
class Releases:
    """Release N has version N of the function `version`, which answers N twice: as its own number and the schema's."""

    number: int = 0

    async def make(self, to: Replica) -> int:
        """Make the next one, with a schema change."""
        number = self.number + 1
        sql = CHANGES if number == 1 else f"UPDATE generation SET number = {number}"
        await deploy.schema(to, sql, f"change-{number}")
        # Where a worker stands still for a while, its call takes as long.
        made = await deploy.push(to, "version", version(number), sql="read", time_limit_ms=60_000)
        assert made["version"] == number
        body: dict[str, Any] = {"functions": {"version": number}}
        # To all nodes at once, where control knows another way.
        answer = await to.call("POST", "/v1/releases", body | {"now": True})
        if answer.status == 422 and answer.json()["field"] == "now":
            answer = await to.call("POST", "/v1/releases", body)
        assert answer.status == 201, answer
        made = answer.json()
        assert made["number"] == number
        self.number = number
        return number

    async def served_by(self, node: EdgeProgram) -> None:
        """Wait until a node serves the newest one, and see that it does."""
        await node.at_release(self.number)
        status, body = await node.call("version", "POST")
        assert status == 200, body
        answer = orjson.loads(body)
        assert (answer["version"], answer["schema"]["rows"]) == (self.number, [[self.number]])

    async def reached(self, to: Replica, name: str) -> Any:
        """Wait until control says that a node is at the newest one; the node as control sees it."""

        async def there() -> Any:
            node = await to.node(name)
            return node if node["at_target"] and node["schema_version"] == self.number else None

        return await until(there, f"{name} is at release {self.number}")


async def told_of_functions(to: Replica, node: str) -> None:
    """Wait until a node tells a replica of control that it has counted calls of the function."""

    async def there() -> bool:
        async with viewing(to, kind="functions", node=node) as view:
            lines = await view.rest()
        calls = [line["calls"] for line in lines if line["kind"] == "function" and line["function"] == "version"]
        return sum(calls) >= 1

    # A busy node may answer too late for one view.
    await until(there, f"{node} tells what it has counted")


async def told_of_calls(to: Replica, node: str) -> None:
    """Wait until what a node has recorded of its slowest calls can be read at a replica of control."""

    async def there() -> bool:
        async with viewing(to, kind="calls", node=node) as view:
            lines = await view.rest()
        return any(line["kind"] == "call" and line["function"] == "version" for line in lines)

    # A node makes its records some time after the calls.
    await until(there, f"{node} tells of its slowest calls")
