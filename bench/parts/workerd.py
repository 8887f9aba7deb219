"""Another runtime of functions beside ours: workerd, with a WASM echo of the same shape. Not installed by us."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from control.cli.local import OTHER_PORTS
from control.service import choose_port
from tests.guests.build import wat

from .servers import Process, running

KINDS = ("fresh", "reused")
"""An instance for each request, or one for all."""

_CONFIG = """
using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [(name = "main", worker = (
    modules = [
      (name = "main", esModule = embed "{kind}.js"),
      (name = "echo.wasm", wasm = embed "echo.wasm"),
    ],
    compatibilityDate = "2024-09-01",
  ))],
  sockets = [(name = "http", address = "127.0.0.1:{port}", http = (), service = "main")],
);
"""

_SCRIPT = """
import module from "./echo.wasm";
{shared}
export default {{
  async fetch(request) {{
    const body = new Uint8Array(await request.arrayBuffer());
    const {{ memory, echo }} = {instance};
    new Uint8Array(memory.buffer, 1024, body.length).set(body);
    const at = echo(1024, body.length);
    return new Response(memory.buffer.slice(at, at + body.length));
  }},
}};
"""
_NEW = "new WebAssembly.Instance(module, {}).exports"

_ECHO = """
(module
  (memory (export "memory") 2)
  (func (export "echo") (param $at i32) (param $size i32) (result i32)
    (memory.copy (i32.const 32768) (local.get $at) (local.get $size))
    (i32.const 32768)))
"""


@asynccontextmanager
async def serve(program: Path, folder: Path, kind: str) -> AsyncIterator[Process]:
    """workerd with the echo, until the block ends."""
    port = choose_port(None, OTHER_PORTS)
    shared, instance = (f"const shared = {_NEW};", "shared") if kind == "reused" else ("", _NEW)
    (folder / "echo.wasm").write_bytes(wat(_ECHO))
    (folder / f"{kind}.js").write_text(_SCRIPT.format(shared=shared, instance=instance))
    config = folder / f"{kind}.capnp"
    config.write_text(_CONFIG.format(kind=kind, port=port))
    log = folder / f"workerd-{kind}.log"
    with log.open("wb") as file:
        child = await asyncio.create_subprocess_exec(str(program), "serve", str(config), stdout=file, stderr=file)
    async with running(child, port, log) as made:
        yield made
