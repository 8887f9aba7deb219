"""How long do those wait who ask control while the artifact store stands?

A proxy in front of the store takes requests and answers nothing. Measured then: each answer of /readyz, the answer to a
deletion, an upload that control has begun to store until it is refused, and the time from the moment in which the store
is well again until control is ready, after 22 clients have left their uploads. The ratio is the smallest of what each
may take over what it took.
"""

import asyncio
import hashlib
import io
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import uvloop

from bench import result
from bench.parts import cpu
from bench.parts.servers import Site, folder, site
from tests.support.control import module
from tests.support.store_proxy import StoreProxy, always, never, store_proxy

BAR = 1.0
READY, DELETED, REFUSED, AGAIN = 3.0, 1.0, 75.0, 5.0
"""Seconds that each may take: /readyz, a deletion, an upload's refusal (its limit is 60), readiness after it all."""
UPLOADS = 22
SIZE = 1_000_000


async def main() -> None:
    load_core, server_core = cpu.cores()
    machine = cpu.machine()
    found: list[StoreProxy] = []

    @asynccontextmanager
    async def before(url: str) -> AsyncIterator[str]:
        async with store_proxy(url) as proxy:
            found.append(proxy)
            yield proxy.url

    async with folder() as where, site(where, server_core, before) as control:
        [proxy] = found
        with cpu.pinned(load_core):
            await control.push("f", module("f"), {})
            await _until_ready(control)
            proxy.silent = always
            deleted = await _timed(control.call("DELETE", "/v1/functions/f"))
            ready = 0.0
            for _ in range(20):
                ready = max(ready, await _timed(_ready(control)))
                await asyncio.sleep(0.3)
            proxy.silent = _object
            await _until_ready(control)
            refused = await _timed(_upload(control, "refused", 503))
            leaving = [asyncio.create_task(_upload(control, f"leaves {n}", 503)) for n in range(UPLOADS)]
            await asyncio.sleep(3)
            for upload in leaving:
                upload.cancel()
            await asyncio.gather(*leaving, return_exceptions=True)
            proxy.silent = never
            again = await _timed(_until_ready(control))
            again += await _timed(_upload(control, "again", 201))
    seen = {"readyz": (READY, ready), "deletion": (DELETED, deleted), "refusal": (REFUSED, refused)}
    seen["ready_again"] = (AGAIN, again)
    details: dict[str, Any] = {f"{name}_s": round(took, 3) for name, (_, took) in seen.items()}
    print(details)
    result.write("store", min(may / took for may, took in seen.values()), BAR, {**details, "machine": machine})


def _object(line: str) -> bool:
    """Whether a request with this first line stores an artifact."""
    return line.startswith("PUT") and "owner.json" not in line


async def _timed(work: Any) -> float:
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def _ready(control: Site) -> bool:
    async with control.api.get("/readyz") as answer:
        return answer.status == 200


async def _until_ready(control: Site) -> None:
    async with asyncio.timeout(60):
        while not await _ready(control):
            await asyncio.sleep(0.05)


async def _upload(control: Site, text: str, status: int) -> None:
    wasm = module(text + "x" * SIZE)
    path = f"/v1/artifacts/{hashlib.sha256(wasm).hexdigest()}"
    limit = aiohttp.ClientTimeout(total=180)
    async with control.api.put(path, data=io.BytesIO(wasm), timeout=limit) as answer:
        assert answer.status == status, await answer.text()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
