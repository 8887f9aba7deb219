"""The runtime that ours is compared with: workerd, with an equal WASM echo, or with a SELECT by key."""

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.guests.build import wat

from . import cpu
from .servers import Process, free_port, program

ROOT = Path(__file__).parents[2]
MODULES = ROOT / "bench" / "npm" / "node_modules"

_CONFIG = """
using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [(name = "main", worker = (
    modules = [
      (name = "main", esModule = embed "main.js"),
      (name = "echo.wasm", wasm = embed "echo.wasm"),
    ],
    compatibilityDate = "2024-09-01",
    %s
  )), %s],
  sockets = [(name = "http", address = "127.0.0.1:%d", http = (), service = "main")],
);
"""
_OBJECTS = """
    durableObjectNamespaces = [(className = "Items", uniqueKey = "items", enableSql = true)],
    durableObjectStorage = (localDisk = "disk"),
    bindings = [(name = "items", durableObjectNamespace = "Items")],
"""
_DISK = '(name = "disk", disk = (path = "%s", writable = true))'

_ECHO_SCRIPT = """
import module from "./echo.wasm";
%s
export default {
  async fetch(request) {
    const body = new Uint8Array(await request.arrayBuffer());
    const { memory, echo } = %s;
    new Uint8Array(memory.buffer, 1024, body.length).set(body);
    const at = echo(1024, body.length);
    return new Response(memory.buffer.slice(at, at + body.length));
  },
};
"""
_NEW = "new WebAssembly.Instance(module, {}).exports"

_QUERY_SCRIPT = """
import { DurableObject } from "cloudflare:workers";
export class Items extends DurableObject {
  constructor(state, env) {
    super(state, env);
    this.sql = state.storage.sql;
    this.sql.exec("CREATE TABLE IF NOT EXISTS items (id INTEGER PRIMARY KEY, name TEXT, price REAL)");
    this.sql.exec(`WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %(rows)d)
      INSERT OR IGNORE INTO items SELECT i, 'item ' || i, i * 0.5 FROM n`);
  }
  async fetch(request) {
    await request.arrayBuffer();
    const id = Number(new URL(request.url).searchParams.get("id"));
    const rows = [...this.sql.exec("SELECT name, price FROM items WHERE id = ?", id).raw()];
    return Response.json(rows);
  }
}
export default {
  fetch(request, env) {
    return env.items.get(env.items.idFromName("all")).fetch(request);
  },
};
"""

_ECHO = """
(module
  (memory (export "memory") 2)
  (func (export "echo") (param $at i32) (param $size i32) (result i32)
    (memory.copy (i32.const 32768) (local.get $at) (local.get $size))
    (i32.const 32768)))
"""


def install() -> None:
    """Install wrk and workerd if they are missing."""
    subprocess.run([ROOT / "scripts" / "bench-tools"], check=True)


def fresh() -> str:
    """Return the script of an echo that makes an instance for each request."""
    return _ECHO_SCRIPT % ("", _NEW)


def reused() -> str:
    """Return the script of an echo whose one instance serves all requests."""
    return _ECHO_SCRIPT % (f"const shared = {_NEW};", "shared")


def query(rows: int) -> str:
    """Return a script that answers `?id=` with an item from a Durable Object's table with this many rows."""
    return _QUERY_SCRIPT % {"rows": rows}


@asynccontextmanager
async def serve(folder: Path, name: str, script: str) -> AsyncIterator[Process]:
    """Run workerd with a script until the block ends."""
    port = free_port()
    home = folder / f"workerd-{name}"
    disk = home / "disk"
    disk.mkdir(parents=True)
    (home / "echo.wasm").write_bytes(wat(_ECHO))
    (home / "main.js").write_text(script)
    objects = (_OBJECTS, _DISK % disk) if "DurableObject" in script else ("", "")
    config = home / "config.capnp"
    config.write_text(_CONFIG % (*objects, port))
    built = next(MODULES.glob("@cloudflare/workerd-*/bin/workerd"))
    command = [built, "serve", config, "--experimental"]
    async with program(folder, f"workerd-{name}", command, port, cpu.all_cores()) as made:
        yield made
