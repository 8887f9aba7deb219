"""``python -m bench.parts.strangers PORT CA COUNT BYTES``: joins with made-up tokens, each on a separate connection.

All connections are opened at once. Each body has about BYTES bytes of labels.
"""

import asyncio
import ssl
import sys
from collections import Counter
from uuid import uuid4

import uvloop

LIMIT = 120.0
"""Seconds for one join."""


async def main() -> None:
    port, ca, count, size = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    tls = ssl.create_default_context(cafile=ca)
    labels = ", ".join(f'"label-{number}": "x"' for number in range(size // 20))
    body = f'{{"name": "one", "attempt": "{uuid4()}", "labels": {{{labels}}}}}'.encode()

    async def join() -> str:
        token = f"skj_{uuid4()}_{'A' * 43}"
        head = (
            f"POST /v1/nodes HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            async with asyncio.timeout(LIMIT):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
                writer.write(head.encode() + body)
                line = await reader.readline()
                writer.transport.abort()
                return line.split()[1].decode() if line else "closed"
        except (OSError, TimeoutError) as error:
            return type(error).__name__

    print(dict(Counter(await asyncio.gather(*(join() for _ in range(count))))), flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
