"""Joins of strangers: a made-up token costs no transaction, and nothing of its body is read."""

import asyncio
import ssl
import time
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from control import tokens
from control.problems import ProblemError
from control.protocol import wire
from control.storage import batched_lookups
from control.storage.batched_lookups import Lookups
from tests.support.replica import Replica, Site

SOON = 20.0


async def raw(replica: Replica, token: str, length: int) -> bytes:
    """Send the head of a join whose body would have `length` bytes, and nothing of it; what is answered."""
    parts = urlsplit(replica.url)
    tls = ssl.create_default_context(cafile=str(replica.ca))
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=tls)
    try:
        writer.write(
            f"POST /v1/nodes HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n".encode()
        )
        return await reader.read()
    finally:
        writer.transport.abort()


async def test_a_strangers_body_is_not_waited_for(control_site: Site) -> None:
    async with control_site.running() as replica, asyncio.timeout(SOON):
        for token in (tokens.new_token("join").text, tokens.new_token("operator").text, "nonsense"):
            answer = await raw(replica, token, 4_000_000)
            assert answer.startswith(b"HTTP/1.1 401 "), answer
            assert b"connection: close" in answer


async def test_made_up_tokens_take_no_connection_of_joins(control_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async with control_site.running() as replica:
        services = replica.services
        looked_up = transactions = 0
        find, real = services.join_tokens.lookups._find, services.databases.joins.transaction

        async def counted(ids: list[str]) -> Any:
            nonlocal looked_up
            looked_up += 1
            return await find(ids)

        async def joined(work: Any) -> Any:
            nonlocal transactions
            transactions += 1
            return await real(work)

        monkeypatch.setattr(services.join_tokens.lookups, "_find", counted)
        monkeypatch.setattr(services.databases.joins, "transaction", joined)
        token = (await replica.call("POST", "/v1/join-tokens", {})).json()["token"]
        made_up = [tokens.new_token("join").text for _ in range(200)]
        made_up.append(token.rpartition("_")[0] + "_" + "A" * 43)  # a real one's id
        bodies = [wire.Join(f"node-{number}", str(uuid4())) for number in range(len(made_up) + 1)]
        began = time.monotonic()
        answers = await asyncio.gather(
            *(
                replica.call("POST", "/v1/nodes", body, token=given)
                for body, given in zip(bodies, [*made_up, token], strict=True)
            )
        )
        assert [answer.status for answer in answers] == [401] * 201 + [201]
        assert transactions == 1
        # However long it took, no more than so many in a second.
        assert looked_up <= 2 + (time.monotonic() - began) / batched_lookups.PAUSE


async def test_lookups_are_shared_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    free = asyncio.Event()

    async def find(ids: list[str]) -> dict[str, str]:
        asked.append(sorted(ids))
        await free.wait()
        return {id: id.upper() for id in ids if id != "nobody"}

    monkeypatch.setattr("control.storage.batched_lookups.WAITING", 3)
    lookups = Lookups("ids", find)
    first = asyncio.create_task(lookups.find("a"))
    while not asked:
        await asyncio.sleep(0)
    others = [asyncio.create_task(lookups.find(id)) for id in ("b", "c", "nobody", "c")]
    await asyncio.sleep(0)
    with pytest.raises(ProblemError) as refused:
        await lookups.find("d")
    assert refused.value.code == "database_busy"
    others.pop(0).cancel()  # who goes away takes nothing from the others
    free.set()
    assert await first == "A"
    assert await asyncio.gather(*others) == ["C", None, "C"]
    assert asked == [["a"], ["b", "c", "nobody"]]
    await lookups.stop()


async def test_a_lookup_that_fails_is_told_to_who_waits() -> None:
    async def find(ids: list[str]) -> dict[str, str]:
        raise ValueError("a mistake of ours")

    lookups = Lookups("ids", find)
    with pytest.raises(ValueError, match="a mistake"):
        await lookups.find("a")
    with pytest.raises(ValueError, match="a mistake"):
        await lookups.find("b")
    await lookups.stop()
