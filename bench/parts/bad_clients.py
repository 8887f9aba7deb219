"""``python -m bench.parts.bad_clients PORT``: a client for each bad neighbour of `bench.neighbours`.

It makes calls one at a time until it is stopped, and obeys Retry-After. On SIGTERM it prints how often each function
was answered, by status.
"""

import asyncio
import json
import signal
import sys
from collections import Counter

import uvloop

BODY_BYTES = 8_000_000
READ_MS = 900
PIECE = 1 << 18
REQUESTS = {
    "loops": ("/functions/loops", b""),
    "floods": ("/functions/floods", b""),
    "reads": (f"/functions/reads?ms={READ_MS}&busy=1", b""),
    "large": ("/functions/large", b"x" * BODY_BYTES),
}


async def call(port: int, name: str, counts: Counter[str]) -> None:
    path, body = REQUESTS[name]
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    while True:
        writer.writelines((head, body))
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines[1:] if line)
        left = int(fields.get("content-length", "0"))
        while left:
            # Like a client that passes it on: keeping the whole body would cost this machine more than the node's work
            # for it.
            left -= len(await reader.read(min(left, PIECE)))
        counts[lines[0].split()[1]] += 1
        if wait := int(fields.get("retry-after", "0")):
            await asyncio.sleep(wait)


async def main() -> None:
    port = int(sys.argv[1])
    counts: dict[str, Counter[str]] = {name: Counter() for name in REQUESTS}
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    calls = [asyncio.create_task(call(port, name, counts[name])) for name in REQUESTS]
    ended = asyncio.create_task(over.wait())
    done, _ = await asyncio.wait({ended, *calls}, return_when=asyncio.FIRST_COMPLETED)
    for one in done:
        one.result()
    print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
