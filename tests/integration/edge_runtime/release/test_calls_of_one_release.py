"""Calls of every kind beside many changes of release: each sees one release alone."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from tests.guests.build import guest
from tests.guests.version import version
from tests.integration.edge_runtime.release.test_release_change import (
    DONE,
    FIRST,
    NUMBER,
    PATIENT,
    READ,
    functions,
    lines,
    numbers,
    schema,
)
from tests.support.deadlines import deadline
from tests.support.edge import node
from tests.support.gate import http_server

pytestmark = pytest.mark.never_retry


async def test_no_call_mixes_releases(tmp_path: Path) -> None:
    """Each release moves the number to another table, and drops the last one. Calls of every kind go on meanwhile: none
    fails, each sees one release alone, and what was acknowledged is there once."""
    chance = random.Random(27)
    releases = 6
    acknowledged: dict[str, int] = {}
    seen: Counter[str] = Counter()

    async def wait(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(int(request.query["ms"]) / 1000)
        return web.Response(text="done")

    def made(number: int, url: str) -> dict[str, Any]:
        moved = version(number, f"SELECT number FROM at_{number}")
        return {**functions(number, url), "version": (moved, READ), "slow": (guest("slow"), READ)}

    def moves(number: int) -> list[str]:
        return [
            *schema(number),
            f"CREATE TABLE at_{number} (number INTEGER)",
            f"INSERT INTO at_{number} VALUES ({number})",
            f"DROP TABLE IF EXISTS at_{number - 1}",
        ]

    settings = {**PATIENT, "workers": 6, "concurrency": 3, "flip_limit": 30.0}
    async with http_server("/", wait) as url, node(tmp_path / "state", **settings) as edge:
        await edge.release(made(1, url), [*FIRST, *moves(1)])
        stop = asyncio.Event()

        def http(method: str) -> str:
            return orjson.dumps({"url": f"{url}?ms={chance.randrange(150)}", "method": method}).decode()

        async def small() -> None:
            assert len(set(await numbers(edge))) == 1

        async def slow() -> None:
            status, headers, body = await edge.call(f"slow?ms={chance.randrange(400)}")
            assert status == 200, body
            answer = orjson.loads(body)
            assert {answer["first"], answer["second"]} == {int(headers["skerry-release"])}

        async def late() -> None:
            release, answers = await lines(edge, "reads", http(chance.choice(("GET", "POST"))), NUMBER)
            assert answers[1]["rows"] == [[release]]

        async def write() -> None:
            name = f"w{seen['write']}"
            insert = f"""SQL {{"sql":"INSERT INTO done SELECT '{name} ' || number FROM generation"}}"""
            before = [http(chance.choice(("GET", "POST")))] if chance.random() < 0.5 else []
            release, answers = await lines(edge, "writes", *before, insert)
            assert answers[-1]["changes"] == 1
            acknowledged[name] = release

        async def client(kind: Callable[[], Awaitable[None]]) -> None:
            while not stop.is_set():
                seen[kind.__name__] += 1
                await kind()
                await asyncio.sleep(0.002)

        async with deadline(180), asyncio.TaskGroup() as group:
            for kind in (small, small, small, slow, late, late, write, write, write):
                group.create_task(client(kind))
            number = 1
            # At least so many, and as many as come while each kind is called three times.
            while number < releases or min(seen.values()) < 4:
                number += 1
                await edge.release(made(number, url), moves(number))
                assert await numbers(edge) == (number, number, number)
            stop.set()
        rows = (await lines(edge, "reads", DONE))[1][0]["rows"]
        assert sorted(row[0] for row in rows) == sorted(f"{name} {release}" for name, release in acknowledged.items())
