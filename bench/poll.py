"""How much does control's own work add to a poll? Polls at target (wait 0) compared with a raw echo on the same server.

Both are asked with the same bytes over TLS on 64 kept-alive connections, each for a different node; both are pinned to
one core, and the load to the other. Ours does what every request needs (request id, timing, metrics), the node's
authentication, and the comparison of the poll with the state; the echo does nothing. Each node sends the same bytes
over and over, as one at target does: control reads them once. The ratio is the CPU of an echo over that of a poll,
round against round. Requests a second are reported but not judged: with neighbours on either core the rounds of one run
ranged from 0.55 to 1.02, since they depend on who had the processor; a process's CPU time doesn't include waiting for
it.
"""

import asyncio
from statistics import median
from typing import Any
from uuid import uuid4

import uvloop

from bench import result
from bench.parts import cpu
from bench.parts.load import Client, Expected, Round, request
from bench.parts.servers import Site, bare_control, folder, site
from control.protocol import wire

BAR = 0.65
NODES = 64
ROUNDS = 10
SECONDS = 0.7


async def main() -> None:
    load_core, server_core = cpu.cores()
    machine = cpu.machine()
    async with folder() as where, site(where, server_core) as control:
        await control.release()
        polls = await asyncio.gather(*[node_at_target(control, number) for number in range(NODES)])
        async with bare_control(control, server_core) as echo:
            nothing = Expected(204, b"")
            ours = Client(control.control.port, [(poll, nothing) for poll in polls], control.tls)
            echoed = [(poll, Expected(200, poll.partition(b"\r\n\r\n")[2])) for poll in polls]
            bare = Client(echo.port, echoed, control.tls)
            with cpu.pinned(load_core):
                async with ours, bare:
                    rounds = [(await _round(ours, control.control.pid), await _round(bare, echo.pid))]
                    rounds = [
                        (await _round(ours, control.control.pid), await _round(bare, echo.pid)) for _ in range(ROUNDS)
                    ]
    ratios = [echoed / used for (_, used), (_, echoed) in rounds]
    details = {
        "polls_a_second": round(median(a.rate for (a, _), _ in rounds)),
        "echoes_a_second": round(median(b.rate for _, (b, _) in rounds)),
        "cpu_us_a_poll": round(median(used for (_, used), _ in rounds), 1),
        "cpu_us_an_echo": round(median(used for _, (_, used) in rounds), 1),
        "poll_p50_ms": round(median(a.percentile(0.5) for (a, _), _ in rounds) * 1000, 2),
        "poll_p99_ms": round(median(a.percentile(0.99) for (a, _), _ in rounds) * 1000, 2),
        "ratios": [round(each, 3) for each in ratios],
        "rate_ratio": round(median(a.rate / b.rate for (a, _), (b, _) in rounds), 3),
        "machine": machine,
    }
    result.write("poll", median(ratios), BAR, details)


async def node_at_target(control: Site, number: int) -> bytes:
    """Return the poll of a new node that has nothing to do, as bytes."""
    token = (await control.call("POST", "/v1/join-tokens", {}))["token"]
    inventory = wire.Inventory(database_id=str(uuid4()))
    joined = await ask(control, "/v1/nodes", wire.Join(f"node-{number}", str(uuid4())), token)
    credential = joined["credential"]
    poll = wire.Poll(generation=0, digest=wire.digest(inventory), boot_id=str(uuid4()), wait=0.0)
    first = wire.Poll(generation=0, digest=poll.digest, boot_id=poll.boot_id, wait=0.0, inventory=inventory)
    assert await ask(control, "/v1/poll", first, credential) is None
    headers = [("Authorization", f"Bearer {credential}"), ("Content-Type", "application/json")]
    return request("/v1/poll", wire.canonical(poll), headers)


async def ask(control: Site, path: str, message: Any, token: str) -> Any:
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    async with control.api.post(path, data=wire.canonical(message), headers=headers) as answer:
        assert answer.status in (201, 204), await answer.text()
        return await answer.json() if answer.status == 201 else None


async def _round(client: Client, pid: int) -> tuple[Round, float]:
    """Return the load's result, and the CPU microseconds that the server spent on a request."""
    before = cpu.seconds([pid])
    done = await client.run(SECONDS)
    return done, (cpu.seconds([pid]) - before) / done.answers * 1e6


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
