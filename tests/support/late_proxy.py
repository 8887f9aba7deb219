"""A process that stands before a server, whose answers come late at times.

`python -m tests.support.late_proxy URL SEED` prints the URL that leads through it, and ends when its input does.
"""

import asyncio
import contextlib
import random
import sys

from tests.support.store_proxy import store_proxy

LONGEST = 0.4
"""Seconds by which a piece of an answer is late."""


async def serve(url: str, seed: str) -> None:
    """Stand before the server until the input ends."""
    chance = random.Random(f"{seed} {url.partition(':')[0]}")
    async with store_proxy(url) as proxy:
        print(proxy.url, flush=True)
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while True:
            proxy.requests.clear()
            proxy.delay = LONGEST * chance.random() ** 2 if chance.random() < 0.1 else 0.0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(chance.uniform(0.05, 0.3)):
                    await reader.read()
                    return


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(*sys.argv[1:]))
