"""`python -m edge_runtime.oneshot.check`: would a node accept this? Run in a child process: its input is hostile.

    module FILE [--size-limit BYTES] [--memory-pages PAGES]
    schema …                                               (check_schema.py)

Prints one JSON object, `{"ok": true, …}` or `{"ok": false, "code": …, "message": …}`, and exits 0 for both; `unfenced`
in it names the pieces of its fence that this machine lacks. 2 is a wrong call; anything else means that the check
itself crashed on what it was given.
"""

import argparse
import dataclasses
import hashlib
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from edge_runtime.guests.abi.detect import PAGES_LIMIT, SIZE_LIMIT, Detected, ModuleRefused, detect
from edge_runtime.sandbox import fence

CPU_SECONDS = 60
FILE_BYTES = 256 * 1024 * 1024
DATA_BYTES = 4 * 1024 * 1024 * 1024


def check_module(wasm: bytes, *, size_limit: int = SIZE_LIMIT, pages_limit: int = PAGES_LIMIT) -> dict[str, Any]:
    """What a node needs to know of a module. Error: ModuleRefused."""
    found = detect(wasm, size_limit=size_limit, pages_limit=pages_limit)
    _validate(wasm, found)
    return {"size": len(wasm), "sha256": hashlib.sha256(wasm).hexdigest(), **dataclasses.asdict(found)}


def _validate(wasm: bytes, found: Detected) -> None:
    """WasmEdge's own verdict, function bodies included."""
    from edge_runtime.guests import function_code
    from edge_runtime.wasmedge import LoadError

    try:
        function_code.check(wasm, found.abi, found.memory_pages)
    except LoadError as error:
        raise ModuleRefused("module_invalid", f"WasmEdge finds it invalid: {error}.") from None


def limit() -> None:
    """Bound what this process can use; not its address space (facts of WasmEdge: see wasmedge/memory.py)."""
    for kind, most in (
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_DATA, DATA_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        fence.lower(kind, most)


def main(argv: Sequence[str]) -> int:
    limit()
    if argv[:1] == ["schema"]:
        from edge_runtime.oneshot.check_schema import main as check_schema

        return check_schema(argv[1:])
    parser = argparse.ArgumentParser(prog="python -m edge_runtime.oneshot.check")
    module = parser.add_subparsers(required=True).add_parser("module", help="a module that a node can run?")
    module.add_argument("file", type=Path)
    module.add_argument("--size-limit", type=int, default=SIZE_LIMIT, help="bytes (%(default)s)")
    module.add_argument("--memory-pages", type=int, default=PAGES_LIMIT, help="of 64 KiB, at the start (%(default)s)")
    asked = parser.parse_args(argv)
    with asked.file.open("rb") as file:
        wasm = file.read(asked.size_limit + 1)
    # It loads a library and reads a file: not possible any more behind the fence.
    from edge_runtime.guests import function_code  # noqa: F401

    lacking = fence.lacking()
    fence.enclose()
    fence.seal("check")
    try:
        answer = {"ok": True, **check_module(wasm, size_limit=asked.size_limit, pages_limit=asked.memory_pages)}
    except ModuleRefused as refused:
        answer = {"ok": False, "code": refused.code, "message": str(refused)}
    sys.stdout.buffer.write(orjson.dumps(answer | ({"unfenced": lacking} if lacking else {})) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
