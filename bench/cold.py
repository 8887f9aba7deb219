"""How long does a function's first answer take if it was never called on this node?

Three cases. `ready`: its code is compiled; 20 functions of one release, each the example `hello` with a different text,
called once each. `compiling`: a new function of more than 1 MB, whose compilation takes seconds, called as soon as its
release serves, which is on the interpreter. The floor of each call, measured after it: WasmEdge just loading the same
file, plus the same function's next call; its ratio is the floor over the first call. `javascript`: functions in
JavaScript, of one release after another, once the node has compiled their engine, called as soon as each serves; its
ratio is a first call of `ready` over such a call. The ratio is the worst of the three, by medians, each over its bar.
"""

import hashlib
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import orjson
import uvloop

from bench import result
from bench.converge import HELLO, NAMED
from bench.parts import cpu, scripts
from bench.parts.servers import Edge, Site, edge, folder, site
from edge_runtime.aot_cache import BEST, locate
from edge_runtime.wasmedge import Config, Module
from tests.guests.build import wat

BAR = 1
READY_OVER, COMPILING_OVER, JAVASCRIPT_OVER = 0.4, 1.2, 0.2
"""The least permitted ratio in each case."""
READY = 16
COMPILING = 5
JAVASCRIPT = 8
PAGES = 256
"""Pages of memory that a module may have."""
FILLERS = 6000
"""Functions in a large module."""


async def main() -> None:
    machine = cpu.machine()
    cores = cpu.all_cores()
    async with folder() as where, site(where, cores) as control, edge(control, cores) as node:
        await control.change("greetings", (HELLO / "schema.sql").read_text())
        found = {
            "ready": await _ready(control, node, where / "edge" / "aot"),
            "compiling": await _compiling(control, node),
        }
        javascript = await _javascript(control, node)
    over = {
        name: median(least for _, least in calls) / median(took for took, _ in calls) for name, calls in found.items()
    }
    details: dict[str, Any] = {}
    for name, calls in found.items():
        took, least = zip(*calls, strict=True)
        details[name] = {
            "over": round(over[name], 3),
            "p50_ms": round(median(took) * 1000, 2),
            "worst_ms": round(max(took) * 1000, 2),
            "floor_p50_ms": round(median(least) * 1000, 2),
        }
    over["javascript"] = median(took for took, _ in found["ready"]) / median(javascript)
    details["javascript"] = {
        "over": round(over["javascript"], 3),
        "p50_ms": round(median(javascript) * 1000, 2),
        "worst_ms": round(max(javascript) * 1000, 2),
    }
    bars = {"ready": READY_OVER, "compiling": COMPILING_OVER, "javascript": JAVASCRIPT_OVER}
    ratio = min(over[name] / bar for name, bar in bars.items())
    result.write("cold", ratio, BAR, {**details, "machine": machine})


async def _ready(control: Site, node: Edge, aot: Path) -> list[tuple[float, float]]:
    manifest = orjson.loads((HELLO / "manifest.json").read_bytes())
    wasm = (HELLO / "hello.wasm").read_bytes()
    modules = {f"hello-{number}": wasm.replace(NAMED, b'{"mess%03d":%%s' % number) for number in range(READY)}
    versions = {name: await control.push(name, module, manifest) for name, module in modules.items()}
    sha256s = {name: hashlib.sha256(module).hexdigest() for name, module in modules.items()}
    await control.release(versions)
    await node.at_release(1, best=True)
    await node.status()  # the connection is open
    found = []
    for name in versions:
        took = await _call(node, name, b'{"mess')
        code = locate(aot, sha256s[name], BEST)
        assert code is not None
        found.append((took, _loaded(code.path) + await _call(node, name, b'{"mess')))
    return found


async def _compiling(control: Site, node: Edge) -> list[tuple[float, float]]:
    found = []
    remove = [f"hello-{number}" for number in range(READY)]
    for number in range(COMPILING):
        name = f"large-{number}"
        module = _large(number)
        version = await control.push(name, module, {})
        await control.release({name: version}, remove=remove)
        await node.at_release(number + 2)
        took = await _call(node, name, b"answer %d" % number)
        status = await node.status()
        assert not status["functions"][0]["compiled"], "it was compiled meanwhile: make the module larger"
        with tempfile.NamedTemporaryFile(suffix=".wasm") as file:
            file.write(module)
            file.flush()
            least = _loaded(Path(file.name))
        found.append((took, least + await _call(node, name, b"answer %d" % number)))
        remove = [name]
    return found


async def _javascript(control: Site, node: Edge) -> list[float]:
    """Return the seconds of the first calls of functions, without that of the first function."""
    found = []
    remove = [f"large-{COMPILING - 1}"]
    for number in range(JAVASCRIPT + 1):
        name = f"script-{number}"
        module = await scripts.module(f"export default {{ fetch: () => new Response('answer {number}') }};")
        version = await control.push(name, module, {})
        await control.release({name: version}, remove=remove)
        await node.at_release(COMPILING + 2 + number)
        status = await node.status()
        assert status["functions"][0]["best"], "it doesn't begin with its best code"
        took = await _call(node, name, b"answer %d" % number)
        if number:
            found.append(took)
        remove = [name]
    return found


def _loaded(path: Path) -> float:
    """Return the seconds that WasmEdge takes to load a module, or its compiled code."""
    with Config(memory_pages=PAGES) as config:
        started = time.perf_counter()
        module = Module.from_file(path, config)
        took = time.perf_counter() - started
        module.close()
    return took


async def _call(node: Edge, name: str, begins: bytes) -> float:
    """Return the seconds until the function's answer."""
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
