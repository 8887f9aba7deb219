"""A collector of OpenTelemetry's, as far as tests need one: it takes OTLP over HTTP, read by the official protobuf."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.deadlines import scaled


class Collector:
    """What came to it."""

    def __init__(self) -> None:
        self.url = ""
        self.status = 200
        """What it answers."""
        self.headers: list[dict[str, str]] = []
        """The headers of each request."""
        self.resources: list[dict[str, Any]] = []
        self._spans: list[Span] = []
        self._came = threading.Condition()

    def take(self, headers: dict[str, str], body: bytes) -> None:
        """Take a request."""
        with self._came:
            self.headers.append(headers)
            if self.status == 200:
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    self.resources.append(attributes(resource.resource))
                    for scope in resource.scope_spans:
                        self._spans.extend(scope.spans)
            self._came.notify_all()

    def spans(self, name: str = "") -> list[Span]:
        """Return the spans that came, those of a name where it is given."""
        with self._came:
            return [span for span in self._spans if name in ("", span.name)]

    def wait(self, name: str, count: int = 1) -> list[Span]:
        """Wait until so many spans of a name have come, for half a minute of a quiet machine's."""
        began = time.monotonic()
        with self._came:
            while len(found := [span for span in self._spans if span.name == name]) < count:
                left = began + scaled(30) - time.monotonic()
                assert left > 0, f"{len(found)} spans {name}, of {sorted({span.name for span in self._spans})}"
                self._came.wait(left)
        return found


def attributes(of: Any) -> dict[str, Any]:
    """Return the attributes of a span or a resource."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in of.attributes}


@contextmanager
def collector() -> Iterator[Collector]:
    """Run a collector on a free port of 127.0.0.1."""
    made = Collector()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            assert self.path == "/v1/traces", self.path
            assert self.headers["content-type"] == "application/x-protobuf"
            made.take(
                {name.lower(): value for name, value in self.headers.items()},
                self.rfile.read(int(self.headers["content-length"])),
            )
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(made.status)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
