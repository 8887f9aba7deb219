"""`python -m edge_runtime.once`: one call of one module, without a server, in a process of its own, since a guest can
crash or hang it. For `skerry-edge call`.

Reads `Asked` on stdin. Prints a line `{"running": true}` when the guest begins, then a line of `Told`.
"""

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import libsql_experimental as libsql
import msgspec
from msgspec import Struct

from control import wire

from . import frames, guest
from .abi.detect import Refused
from .check import check_module
from .code import compile_artifact
from .database import BUSY_MS, HEAP_BYTES, Database, WriterLock
from .invocation import Told
from .session import Session
from .sql import ProbeSql
from .wasmedge import QUICK, WasmEdgeError, find

NO_HTTP: Final = b'{"error":{"code":"http_failed","message":"`skerry-edge call` makes no requests; `skerry dev` does"}}'
RUNNING: Final = b'{"running":true}\n'


class Asked(Struct):
    file: str
    manifest: wire.Manifest
    request: guest.Request
    cache: str
    """The folder of AOT files; empty: the module runs on the interpreter."""
    database: str = ""
    """Path of the libsql file that SQL goes to."""
    secrets: dict[str, str] = {}


class NoHttp:
    def fetch(self, request: bytes) -> bytes:
        return NO_HTTP


def main() -> int:
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=Asked)
    try:
        told = run(asked)
    except Refused as refused:
        told = Told(0, code=refused.code, message=str(refused))
    except (WasmEdgeError, OSError) as error:
        told = Told(0, code="function_unloadable", message=f"{asked.file} can't be loaded: {error}.")
    sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
    return 0


def run(asked: Asked) -> Told:
    """Make the call. Errors: Refused, WasmEdgeError, OSError, SqlUnfit."""
    guest.prepare()
    function = guest.Function.load(_local(asked), asked.secrets)
    http = NoHttp() if asked.manifest.http is not None else None
    with _database(asked) as opened:
        sql = None if opened is None else ProbeSql(Session(opened), asked.manifest.sql, 0)
        sys.stdout.buffer.write(RUNNING)
        sys.stdout.buffer.flush()
        began = time.monotonic()
        try:
            answer = function.call(asked.request, guest.Services(sql, http))
        except guest.GuestFault as fault:
            code = (sql.limit_code if sql is not None else "") or fault.code
            return Told(fault.status, log=fault.log, code=code, message=str(fault), seconds=time.monotonic() - began)
        if opened is not None and opened.in_transaction and answer.status < 500:
            opened.rows("COMMIT")
        return Told(answer.status, answer.head, answer.body, answer.log, time.monotonic() - began)


def _local(asked: Asked) -> frames.LocalFunction:
    path = Path(asked.file).absolute()
    wasm = path.read_bytes()
    sha256 = hashlib.sha256(wasm).hexdigest()
    found = check_module(wasm, pages_limit=asked.manifest.memory_pages)
    if asked.manifest.abi not in ("", found["abi"]):
        raise Refused("module_refused", f"The module speaks {found['abi']}, the manifest says {asked.manifest.abi}.")
    manifest = msgspec.structs.replace(asked.manifest, abi=found["abi"])
    local = frames.LocalFunction(path.stem, 1, sha256, manifest, wire.manifest_digest(manifest), wasm=str(path))
    if not asked.cache:
        return local
    folder = Path(asked.cache)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = find(folder, sha256, QUICK) or compile_artifact(wasm, folder, QUICK)
    return msgspec.structs.replace(local, aot=str(made.path), aot_digest=made.digest)


@contextmanager
def _database(asked: Asked) -> Iterator[Database | None]:
    """The file as it is, with nothing of the runtime's put in, in a transaction that ends undone unless committed."""
    if not asked.database:
        yield None
        return
    lock = WriterLock(os.memfd_create("writer.lock"))
    try:
        with Database(libsql.connect(asked.database, isolation_level=None), lock) as opened:
            opened.rows(f"PRAGMA busy_timeout = {BUSY_MS}")
            opened.rows(f"PRAGMA hard_heap_limit = {HEAP_BYTES}")
            opened.rows("PRAGMA foreign_keys = ON")
            opened.set_query_only(asked.manifest.sql == "read")
            opened.rows("BEGIN IMMEDIATE" if asked.manifest.sql == "write" else "BEGIN")
            yield opened
            opened.rollback()
    except ValueError as error:
        raise OSError(f"{asked.database}: {error}") from None


if __name__ == "__main__":
    sys.exit(main())
