"""How long does the first answer of a function take that was never called on this node?

Two cases. `ready`: its code is compiled; 20 functions of one release, the example `hello` each with a text of its own,
called once each: 5 ms at p50. `compiling`: a new function of some 700 KB, whose compilation takes seconds, called as
soon as its release serves, which is on the interpreter: 50 ms at p50. The ratio is the limit over what was measured,
the worse of both.
"""

import time
from statistics import median

import orjson
import uvloop

from bench import result
from bench.converge import HELLO, NAMED
from bench.parts import cpu
from bench.parts.servers import Edge, Site, edge, folder, site
from tests.guests.build import wat

BAR = 1
READY_LIMIT = 0.005
COMPILING_LIMIT = 0.050
READY = 20
COMPILING = 10
FILLERS = 6000
"""Functions in a large module."""


async def main() -> None:
    machine = cpu.machine()
    cores = cpu.all_cores()
    async with folder() as where, site(where, cores) as control, edge(control, cores) as node:
        await control.call(
            "POST", "/v1/schema-changes", {"name": "greetings", "sql": (HELLO / "schema.sql").read_text()}
        )
        ready = await _ready(control, node)
        compiling = await _compiling(control, node)
    details = {
        "ready_p50_ms": round(median(ready) * 1000, 2),
        "ready_worst_ms": round(max(ready) * 1000, 2),
        "compiling_p50_ms": round(median(compiling) * 1000, 2),
        "compiling_worst_ms": round(max(compiling) * 1000, 2),
        "machine": machine,
    }
    result.write("cold", min(READY_LIMIT / median(ready), COMPILING_LIMIT / median(compiling)), BAR, details)


async def _ready(control: Site, node: Edge) -> list[float]:
    manifest = orjson.loads((HELLO / "manifest.json").read_bytes())
    wasm = (HELLO / "hello.wasm").read_bytes()
    versions = {
        f"hello-{number}": await control.push(
            f"hello-{number}", wasm.replace(NAMED, b'{"mess%03d":%%s' % number), manifest
        )
        for number in range(READY)
    }
    await control.call("POST", "/v1/releases", {"functions": versions})
    await node.at_release(1, best=True)
    await node.status()  # the connection is open
    return [await _first(node, name, b'{"mess') for name in versions]


async def _compiling(control: Site, node: Edge) -> list[float]:
    times = []
    remove = [f"hello-{number}" for number in range(READY)]
    for number in range(COMPILING):
        name = f"large-{number}"
        version = await control.push(name, _large(number), {})
        release = {"functions": {name: version}, "remove": remove}
        await control.call("POST", "/v1/releases", release)
        await node.at_release(number + 2)
        times.append(await _first(node, name, b"answer %d" % number))
        status = await node.status()
        assert not status["functions"][0]["compiled"], "it was compiled meanwhile: make the module larger"
        remove = [name]
    return times


async def _first(node: Edge, name: str, begins: bytes) -> float:
    """Return the seconds until the function's first answer."""
    started = time.perf_counter()
    async with node.http.get(f"/functions/{name}") as answer:
        body = await answer.read()
    took = time.perf_counter() - started
    assert answer.status == 200, body
    assert body.startswith(begins), body
    return took


def _large(number: int) -> bytes:
    """Return a module of many functions, one of which answers."""
    text = f"Content-Type: text/plain\n\nanswer {number}"
    step = "(i32.mul (i32.add (local.get 0) (i32.const {0})) (i32.rotl (local.get 0) (i32.const {1})))"
    steps = "".join(f"(local.set 0 {step})" for _ in range(12))
    fillers = "\n".join(
        f"(func (param i32) (result i32) {steps.format(at * 31 + number, at % 32)} (local.get 0))"
        for at in range(FILLERS)
    )
    return wat(f"""
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\\10\\00\\00\\00\\{len(text):02x}\\00\\00\\00")
  (data (i32.const 16) "{text.replace(chr(10), chr(92) + "n")}")
  (func (export "_start") (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
  {fillers})""")


if __name__ == "__main__":
    uvloop.run(main())
