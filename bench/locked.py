"""How long does who waits, while somebody's transaction keeps a row of the metadata database locked?

For each kind of row: it is locked for some seconds. Meanwhile nodes that have a sync to do poll, and an operator lists
nodes, makes join tokens and releases. The longest wait of those that are served is compared with 1 s, the longest of
those that are refused, since they need the row, with 5 s. The ratio is the smaller of the two, limit over wait. The
details have the same without a locked row.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import asyncpg
import uvloop

from bench import result
from bench.parts import cpu
from bench.parts.servers import Site, folder, site
from control import wire

BAR = 1.0
OTHERS, CONCERNED = 1.0, 5.0
"""Seconds within which others must be answered, and who is concerned."""
SECONDS = 6.0
"""Seconds for which each row stays locked."""
NODES = 20
PERIOD = 0.1
EMPTY = bytes.fromhex(
    "0061736d01000000010401600000030201000503010001071302066d656d6f72790200065f737461727400000a040102000b"
)
LOCKS = {
    "nothing": "SELECT 1",
    "epochs": "UPDATE epochs SET epoch = epoch",
    "a group": "UPDATE groups SET epoch = epoch WHERE name = 'default'",
    "a node": "SELECT id FROM nodes WHERE name = 'node-0' FOR UPDATE",
    "an open sync": "UPDATE syncs SET step = step FROM nodes AS n WHERE n.id = syncs.node_id AND n.name = 'node-0'",
}


@dataclass
class Waits:
    """Seconds that each answer took."""

    others: list[float] = field(default_factory=list)
    concerned: list[float] = field(default_factory=list)
    """Seconds that each refused request took."""


async def main() -> None:
    load_core, server_core = cpu.cores()
    machine = cpu.machine()
    details: dict[str, Any] = {}
    ratios = []
    async with folder() as where, site(where, server_core) as control:
        with cpu.pinned(load_core):
            nodes = [await _node(control, number) for number in range(NODES)]
            version = await control.push("hello", EMPTY, {})
            await control.call("POST", "/v1/releases", {"functions": {"hello": version}})
            for name, statement in LOCKS.items():
                waits = await _while_locked(control, nodes, statement)
                details[name] = {
                    "answers_to_others": len(waits.others),
                    "longest_of_others_ms": round(max(waits.others) * 1000),
                    "refused": len(waits.concerned),
                    "longest_refusal_ms": round(max(waits.concerned, default=0) * 1000),
                }
                print(name, details[name], flush=True)
                if name == "nothing":
                    continue
                ratios.append(OTHERS / max(waits.others))
                if waits.concerned:
                    ratios.append(CONCERNED / max(waits.concerned))
    result.write("locked", min(ratios), BAR, {**details, "machine": machine})


async def _while_locked(control: Site, nodes: list[tuple[bytes, str]], statement: str) -> Waits:
    waits = Waits()
    connection = await asyncpg.connect(control.services.metadata_url)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(statement)
    asks: list[Callable[[], Awaitable[int]]] = [
        lambda: _send(control, "GET", "/v1/nodes"),
        lambda: _send(control, "POST", "/v1/join-tokens", b"{}"),
        lambda: _send(control, "POST", "/v1/releases", b'{"functions": {"hello": 1}}'),
        *(lambda poll=poll, token=token: _send(control, "POST", "/v1/poll", poll, token) for poll, token in nodes),
    ]
    end = time.perf_counter() + SECONDS
    try:
        await asyncio.gather(*(_again(ask, end, waits) for ask in asks))
    finally:
        connection.terminate()
    return waits


async def _again(ask: Callable[[], Awaitable[int]], end: float, waits: Waits) -> None:
    while time.perf_counter() < end:
        began = time.perf_counter()
        status = await ask()
        (waits.concerned if status == 503 else waits.others).append(time.perf_counter() - began)
        await asyncio.sleep(PERIOD)


async def _send(control: Site, method: str, path: str, body: bytes | None = None, token: str = "") -> int:
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
    async with control.api.request(method, path, data=body, headers=headers) as answer:
        text = await answer.text()
        assert answer.status in (200, 201) or (answer.status == 503 and "database_locked" in text), text
        return answer.status


async def _node(control: Site, number: int) -> tuple[bytes, str]:
    """Return a new node's poll, with its inventory, and its credential."""
    token = (await control.call("POST", "/v1/join-tokens", {}))["token"]
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    body = wire.canonical(wire.Join(f"node-{number}", str(uuid4())))
    async with control.api.post("/v1/nodes", data=body, headers=headers) as answer:
        credential = (await answer.json())["credential"]
    inventory = wire.Inventory(database_id=str(uuid4()))
    poll = wire.Poll(generation=0, digest=wire.digest(inventory), wait=0.0, inventory=inventory)
    return wire.canonical(poll), credential


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
