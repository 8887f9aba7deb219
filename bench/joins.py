"""How long do an operator and a node's poll wait during joins with made-up tokens, and what does such a join cost?

1,500 connections are opened at once, each with a different made-up token, and then 40 with bodies of 4 MB. Meanwhile an
operator lists the nodes and a node polls, ten times a second each. Control is pinned to one core, all clients to the
other. The floor is control's own server class without control's application, which gets the same requests and refuses
each join unread; both are attacked in turn. The ratio is the CPU of the floor's process for both attacks over that of
control's. The longest waits are reported but not judged: the longest of some hundred reflects whatever else the machine
did. `test_anonymous_joins.py` shows that a made-up token waits for nothing that others need.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any
from uuid import uuid4

import aiohttp
import uvloop

from bench import result
from bench.parts import cpu
from bench.parts.servers import Process, bare_control, folder, site
from bench.poll import ask
from control.local.process import ending_with_us
from control.protocol import wire

BAR = 0.45
ATTACKS = {"made_up_tokens": (1500, 0), "large_bodies": (40, 4_000_000)}
"""The attack's connections, and the bytes of labels in each body."""
ROUNDS = 2
PERIOD = 0.1


@dataclass
class Attacked:
    """A server, the requests of an operator and a node to it meanwhile, and the measurements."""

    process: Process
    asks: list[Callable[[], Awaitable[None]]]
    cpu: list[float] = field(default_factory=list)
    """Its CPU seconds in each round."""
    longest: list[float] = field(default_factory=list)
    """The longest wait in seconds in each round."""


async def main() -> None:
    load_core, server_core = cpu.cores()
    machine = cpu.machine()
    answers: dict[str, str] = {}
    async with folder() as where, site(where, server_core) as control:
        poll, credential = await _node(control)
        connector = aiohttp.TCPConnector(ssl=control.tls)
        async with (
            bare_control(control, server_core) as bare,
            aiohttp.ClientSession(f"https://127.0.0.1:{bare.port}", connector=connector) as floor,
        ):
            sides = {
                "control": Attacked(control.control, _asks(control.api, poll, credential)),
                "floor": Attacked(bare, _asks(floor, poll, credential)),
            }
            with cpu.pinned(load_core):
                for _ in range(ROUNDS):
                    for name, side in sides.items():
                        answers[name] = await _attack(side, str(control.keys.ca))
    ours, least = sides["control"], sides["floor"]
    ratio = median(bare / own for own, bare in zip(ours.cpu, least.cpu, strict=True))
    details: dict[str, Any] = {
        **{f"{name}_cpu_s": [round(used, 2) for used in side.cpu] for name, side in sides.items()},
        **{f"{name}_longest_ms": [round(wait * 1000) for wait in side.longest] for name, side in sides.items()},
        "answers": answers,
        "machine": machine,
    }
    result.write("joins", ratio, BAR, details)


async def _attack(side: Attacked, ca: str) -> str:
    """Attack this server in both ways, and note its CPU and waits; return how the joins were answered."""
    waits, outputs = [], []
    before = cpu.seconds([side.process.pid])
    for count, size in ATTACKS.values():
        told = (str(side.process.port), ca, str(count), str(size))
        attack = await asyncio.create_subprocess_exec(
            *ending_with_us([sys.executable, "-m", "bench.parts.strangers", *told]), stdout=asyncio.subprocess.PIPE
        )
        ended = asyncio.create_task(attack.communicate())
        for found in await asyncio.gather(*(_watch(ended, one) for one in side.asks)):
            waits += found
        outputs.append((await ended)[0].decode().strip())
    side.cpu.append(cpu.seconds([side.process.pid]) - before)
    side.longest.append(max(waits))
    return " ".join(outputs)


async def _watch(ended: "asyncio.Task[Any]", ask_once: Callable[[], Awaitable[None]]) -> list[float]:
    """Return the seconds that each answer took until the attack ended, and those of one more."""
    found = []
    while True:
        last = ended.done()
        began = time.perf_counter()
        await ask_once()
        found.append(time.perf_counter() - began)
        if last:
            return found
        await asyncio.sleep(PERIOD)


async def _node(control: Any) -> tuple[bytes, str]:
    """Return the poll of a new node that has nothing to do, and its credential."""
    token = (await control.call("POST", "/v1/join-tokens", {}))["token"]
    inventory = wire.Inventory(database_id=str(uuid4()))
    joined = await ask(control, "/v1/nodes", wire.Join("node", str(uuid4())), token)
    poll = wire.Poll(generation=0, digest=wire.digest(inventory), boot_id=str(uuid4()), wait=0.0)
    first = wire.Poll(generation=0, digest=poll.digest, boot_id=poll.boot_id, wait=0.0, inventory=inventory)
    await ask(control, "/v1/poll", first, joined["credential"])
    return wire.canonical(poll), joined["credential"]


def _asks(api: aiohttp.ClientSession, poll: bytes, credential: str) -> list[Callable[[], Awaitable[None]]]:
    headers = {"authorization": f"Bearer {credential}", "content-type": "application/json"}

    async def nodes() -> None:
        async with api.get("/v1/nodes") as answer:
            assert answer.status == 200, await answer.text()

    async def node() -> None:
        async with api.post("/v1/poll", data=poll, headers=headers) as answer:
            assert answer.status in (200, 204), await answer.text()

    return [nodes, node]


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
