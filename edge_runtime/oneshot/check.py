"""`python -m edge_runtime.oneshot.check`: would a node accept this module or schema change? Run it as a child process,
because its input is hostile.

    module FILE [--size-limit BYTES] [--memory-pages PAGES]
    schema                                                 (see check_schema.py)
    engines                                                (see check_engines.py)
    probes                                                 (see check_probes.py)
    restored                                               (see check_restored.py)

It prints one JSON object, `{"ok": true, …}` or `{"ok": false, "code": …, "message": …}`, and exits with status 0 for
both; `unfenced` in the object lists the parts of the fence that this machine lacks. Status 2 is a wrong command line;
any other status means that the check itself crashed on its input.
"""

import argparse
import hashlib
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict, TypeVar

import msgspec
import orjson

from edge_runtime.guests.abi.detect import PAGES_LIMIT, SIZE_LIMIT, Detected, ModuleRefused, detect
from edge_runtime.sandbox import fence

R = TypeVar("R")

CPU_SECONDS = 60
ENGINE_CPU_SECONDS = 3600
"""The same for the engines of snapshots, which are compiled at the best level."""
FILE_BYTES = 256 * 1024 * 1024
DATA_BYTES = 4 * 1024 * 1024 * 1024


class CheckedModule(TypedDict):
    """What a node needs to know about a module that it can run: its size in bytes, its digest, and the fields of
    `Detected`."""

    size: int
    sha256: str
    abi: str
    memory_pages: int
    memory_maximum: int | None
    sql: bool
    start: bool


def check_module(wasm: bytes, *, size_limit: int = SIZE_LIMIT, pages_limit: int = PAGES_LIMIT) -> CheckedModule:
    """Return what a node needs to know about a module, as the answer's fields.

    Raises: ModuleRefused, when no node can run the module.
    """
    detected = detect(wasm, size_limit=size_limit, pages_limit=pages_limit)
    _validate(wasm, detected)
    return CheckedModule(
        size=len(wasm),
        sha256=hashlib.sha256(wasm).hexdigest(),
        abi=detected.abi,
        memory_pages=detected.memory_pages,
        memory_maximum=detected.memory_maximum,
        sql=detected.sql,
        start=detected.start,
    )


def _validate(wasm: bytes, detected: Detected) -> None:
    """Have WasmEdge validate the module, function bodies included.

    Raises: ModuleRefused, when WasmEdge finds the module invalid.
    """
    from edge_runtime.guests import function_code
    from edge_runtime.wasmedge import LoadError

    try:
        function_code.check(wasm, detected.abi, detected.memory_pages)
    except LoadError as error:
        raise ModuleRefused("module_invalid", f"WasmEdge finds it invalid: {error}.") from None


def limit(cpu_seconds: int = CPU_SECONDS) -> None:
    """Limit what this process can use, and each of its children. The address space stays unlimited, which WasmEdge
    needs (see wasmedge/memory.py)."""
    for kind, most in (
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_DATA, DATA_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        fence.lower_limit(kind, most)


def main(argv: Sequence[str]) -> int:
    limit(ENGINE_CPU_SECONDS if argv[:1] == ["engines"] else CPU_SECONDS)
    if argv[:1] == ["engines"]:
        from edge_runtime.oneshot import check_engines

        return _check_request(argv, check_engines.EnginesRequest, check_engines.answer)
    if argv[:1] == ["schema"]:
        from edge_runtime.oneshot import check_schema

        return _check_request(argv, check_schema.SchemaCheckRequest, check_schema.answer)
    if argv[:1] == ["probes"]:
        from edge_runtime.oneshot import check_probes

        return _check_request(argv, check_probes.ProbesCheckRequest, check_probes.answer)
    if argv[:1] == ["restored"]:
        from edge_runtime.oneshot import check_restored

        return _check_request(argv, check_restored.RestoredCheckRequest, check_restored.answer)
    parser = argparse.ArgumentParser(prog="python -m edge_runtime.oneshot.check")
    module = parser.add_subparsers(required=True).add_parser("module", help="a module that a node can run?")
    module.add_argument("file", type=Path)
    module.add_argument("--size-limit", type=int, default=SIZE_LIMIT, help="bytes (%(default)s)")
    module.add_argument("--memory-pages", type=int, default=PAGES_LIMIT, help="of 64 KiB, at the start (%(default)s)")
    options = parser.parse_args(argv)
    with options.file.open("rb") as file:
        wasm = file.read(options.size_limit + 1)
    # Imported before the fence is up: after that, no library can be loaded and no file read.
    from edge_runtime.guests import function_code  # noqa: F401

    lacking = fence.lacking()
    fence.enclose()
    fence.seal("check")
    try:
        answer = {"ok": True, **check_module(wasm, size_limit=options.size_limit, pages_limit=options.memory_pages)}
    except ModuleRefused as refused:
        answer = {"ok": False, "code": refused.code, "message": str(refused)}
    sys.stdout.buffer.write(orjson.dumps(answer | ({"unfenced": lacking} if lacking else {})) + b"\n")
    return 0


def _check_request(argv: Sequence[str], kind: type[R], answer: Callable[[R], bytes]) -> int:
    """Pass the request on stdin (JSON of this type) to the check that `argv` names, and print its answer; return the
    exit status."""
    if argv[1:]:
        sys.stderr.write(f"usage: python -m edge_runtime.oneshot.check {argv[0]} < JSON\n")
        return 2
    try:
        request = msgspec.json.decode(sys.stdin.buffer.read(), type=kind)
    except msgspec.MsgspecError as error:
        sys.stderr.write(f"check {argv[0]}: stdin has no valid request: {error}\n")
        return 2
    # The bytes are passed on as the check wrote them: the process that started it parses them.
    sys.stdout.buffer.write(answer(request) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
