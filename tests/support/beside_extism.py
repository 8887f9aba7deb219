"""Plug-ins on a node's runtime beside Extism's own host: the same calls, and the sites that they ask."""

import base64
import hashlib
import http.client
import struct
from collections.abc import Sequence
from concurrent.futures import Executor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import urlsplit

import orjson

from control.protocol.manifest import Manifest
from edge_runtime.guests import http_json
from edge_runtime.guests.guest import CallServices, LoadedFunction
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.ipc.http_messages import NotFetched
from tests.guests.build import guest, wat
from tests.support import by_extism
from tests.support.by_extism import Call, End, alike, by_node
from tests.support.functions import compiled, local
from tests.support.kernel_scripts import CONFIG, Op, Place, Step, encoded


def function(wasm: bytes, folder: Path, way: str) -> LoadedFunction:
    manifest = {"abi": "extism", "config": CONFIG, "entry": ""}
    if way == "compiled":
        return LoadedFunction.load(local(compiled(wasm, folder), **manifest))
    path = folder / "module.wasm"
    path.write_bytes(wasm)
    digest = hashlib.sha256(wasm).hexdigest()
    return LoadedFunction.load(LocalFunction("f", 1, digest, Manifest(**manifest), "", wasm=str(path)))


def by_reference(pool: Executor, calls: Sequence[Call], wasm: bytes | None = None) -> list[End]:
    return pool.submit(by_extism.calls, wasm or guest("kernel_calls"), calls, CONFIG).result()


IMPORTS = """
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "store_u8" (func $store (param i64 i32)))
  (import "extism:host/env" "output_set" (func $output (param i64 i64)))
  (import "extism:host/env" "error_set" (func $error (param i64)))
  (import "extism:host/env" "input_length" (func $size (result i64)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (global $begun (mut i32) (i32.const 65))
  (func $begin (global.set $begun (i32.add (global.get $begun) (i32.const 1))))
  (func $say (local $at i64) (local.set $at (call $alloc (i64.const 1)))
    (call $store (local.get $at) (global.get $begun)) (call $output (local.get $at) (i64.const 1)))
  (func $complain (local $at i64) (local.set $at (call $alloc (i64.const 1)))
    (call $store (local.get $at) (i32.const 66)) (call $error (local.get $at)))
"""
RUN = '(func (export "run") (result i32) (call $say) (i32.const 0))'


def module(*fields: str) -> bytes:
    return wat(f"(module {IMPORTS} {' '.join(fields)})")


class Site(BaseHTTPRequestHandler):
    """Answers what it was asked, or as its path says; with no header of its own."""

    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        sent = self.rfile.read(int(self.headers.get("content-length", 0)))
        own = sorted((name.lower(), value) for name, value in self.headers.items() if name.lower().startswith("x-"))
        body = orjson.dumps({"method": self.command, "path": self.path, "headers": own, "body": sent.hex()})
        headers = [("X-Z", "last"), ("Content-Type", "text/plain"), ("X-A", "1")]
        status = 200
        match self.path:
            case "/missing":
                status = 404
            case "/moved":
                status, headers = 302, [("Location", "/elsewhere")]
            case "/empty":
                body = b""
            case "/bytes":
                body = bytes(range(256))
            case "/twice":
                headers, body = [("X-A", "1"), ("x-a", "2")], b""
            case "/latin":
                headers, body = [("X-A", "\xe4")], b""
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _answer

    def log_message(self, *_: object) -> None:
        pass


class Fetching:
    """The requests of a call, made as a node makes them: no redirect is followed."""

    def fetch(self, request: bytes) -> bytes:
        try:
            http_json.to_front(request)
        except NotFetched as error:
            return orjson.dumps({"error": {"code": error.code, "message": str(error)}})
        asked = orjson.loads(request)
        url = urlsplit(asked["url"])
        if url.hostname != "127.0.0.1":
            return orjson.dumps({"error": {"code": "not_granted", "message": "no such host"}})
        connection = http.client.HTTPConnection(url.hostname, url.port)
        body = base64.b64decode(asked["body"]["$blob"]) if "body" in asked else None
        connection.request(asked["method"], url.path, body, dict(asked["headers"]))
        answer = connection.getresponse()
        content = {"$blob": base64.b64encode(answer.read()).decode()}
        connection.close()
        headers = [[name.lower(), value] for name, value in answer.getheaders()]
        return orjson.dumps({"status": answer.status, "headers": headers, "body": content})


def requesting(request: bytes, body: bytes | None = None) -> list[Step]:
    """Make a request, and answer its body; the trace has its status and its headers too."""
    return [
        (Op.TEXT, request),
        (Op.TEXT, body or b""),
        (Op.HTTP_REQUEST, Place(0), Place(1)),
        (Op.HTTP_STATUS_CODE,),
        (Op.HTTP_HEADERS,),
        (Op.LENGTH, Place(0)),
        (Op.LENGTH, Place(1)),
        (Op.OUTPUT_SET, Place(2), 1),
    ]


def requested(ours: LoadedFunction, reference: Executor, site: str, steps: list[Step]) -> tuple[list[End], list[End]]:
    calls = [Call(name, encoded(steps)) for name in ("traced", "plain")]
    theirs = reference.submit(by_extism.calls, guest("kernel_calls"), calls, CONFIG, ["127.0.0.1"])
    return [by_node(ours, call, CallServices(http=Fetching())) for call in calls], [alike(e) for e in theirs.result()]


def numbers(end: End) -> list[int]:
    """The trace."""
    assert end.how == "answer", end
    return list(struct.unpack(f"<{len(end.data) // 8}Q", end.data))
