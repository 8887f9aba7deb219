"""How long do an operator and a node's poll wait beside joins with made-up tokens?

1,500 connections are opened at once, each with another made-up token, and then 40 with bodies of 4 MB. Beside them an
operator lists the nodes and a node polls, ten times a second each. Control is pinned to one core, all clients to the
other. The ratio is half a second over the longest wait.
"""

import asyncio
import sys
import time
from typing import Any
from uuid import uuid4

import uvloop

from bench import result
from bench.parts import cpu
from bench.parts.servers import Site, folder, site
from control import wire
from control.local.process import ending_with_us

BAR = 1.0
WANTED = 0.5
"""Seconds."""
ATTACKS = {"made_up_tokens": (1500, 0), "large_bodies": (40, 4_000_000)}
"""The attack's connections, and the bytes of labels in each body."""
PERIOD = 0.1


async def main() -> None:
    load_core, server_core = cpu.cores()
    machine = cpu.machine()
    worst, details = 0.0, {}
    async with folder() as where, site(where, server_core) as control:
        poll, credential = await _node(control)
        with cpu.pinned(load_core):
            for name, (count, size) in {"nothing": (0, 0), **ATTACKS}.items():
                told = (str(control.control.port), str(control.keys.ca), str(count), str(size))
                attack = await asyncio.create_subprocess_exec(
                    *ending_with_us([sys.executable, "-m", "bench.parts.strangers", *told]),
                    stdout=asyncio.subprocess.PIPE,
                )
                ended = asyncio.create_task(attack.communicate())
                began = time.perf_counter()
                lists, polls = await asyncio.gather(
                    _watch(ended, lambda: control.call("GET", "/v1/nodes")),
                    _watch(ended, lambda: _poll(control, poll, credential)),
                )
                seconds = time.perf_counter() - began
                output, _ = await ended
                details[name] = {
                    "connections": count,
                    "answers": output.decode().strip(),
                    "seconds": round(seconds, 1),
                    "longest_list_ms": round(max(lists) * 1000),
                    "longest_poll_ms": round(max(polls) * 1000),
                }
                print(name, details[name])
                if name in ATTACKS:
                    worst = max(worst, *lists, *polls)
    result.write("joins", WANTED / worst, BAR, {**details, "machine": machine})


async def _watch(ended: "asyncio.Task[Any]", ask: Any) -> list[float]:
    """Return the seconds that each answer took until the attack had ended, and of one more."""
    found = []
    while True:
        last = ended.done()
        began = time.perf_counter()
        await ask()
        found.append(time.perf_counter() - began)
        if last:
            return found
        await asyncio.sleep(PERIOD)


async def _node(control: Site) -> tuple[bytes, str]:
    """Return the poll of a new node that has nothing to do, and its credential."""
    token = (await control.call("POST", "/v1/join-tokens", {}))["token"]
    inventory = wire.Inventory(database_id=str(uuid4()))
    joined = await _post(control, "/v1/nodes", wire.canonical(wire.Join("node", str(uuid4()))), token)
    poll = wire.Poll(generation=0, digest=wire.digest(inventory), boot_id=str(uuid4()), wait=0.0)
    first = wire.Poll(generation=0, digest=poll.digest, boot_id=poll.boot_id, wait=0.0, inventory=inventory)
    await _post(control, "/v1/poll", wire.canonical(first), joined["credential"])
    return wire.canonical(poll), joined["credential"]


async def _poll(control: Site, poll: bytes, credential: str) -> None:
    assert await _post(control, "/v1/poll", poll, credential) is None


async def _post(control: Site, path: str, body: bytes, token: str) -> Any:
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    async with control.api.post(path, data=body, headers=headers) as answer:
        assert answer.status in (201, 204), await answer.text()
        return await answer.json() if answer.status == 201 else None


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
