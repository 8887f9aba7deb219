"""The floor: a raw ASGI application that sends a request's body back, and refuses joins without reading theirs.

`python -m bench.parts.echo PORT` serves it on plain uvicorn; with a certificate and its key after the port, on
control's own server class with TLS, without control's application.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvicorn
import uvloop

from control.access.certificates import ControlCertificates
from control.clock import SystemClock
from control.settings import ControlSettings
from control.web.server import ControlServer

JOINS = "/v1/nodes"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == JOINS and scope["method"] == "POST":
        refused = [(b"content-length", b"0"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 401, "headers": refused})
        await send({"type": "http.response.body", "body": b""})
        return
    body = b""
    more = True
    while more:
        message = await receive()
        body += message["body"]
        more = message.get("more_body", False)
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class BareServer(ControlServer):
    """Control's server with the echo in place of its application."""

    def __init__(self, settings: ControlSettings) -> None:
        super().__init__(settings, tame=True)
        certificates = ControlCertificates(settings, SystemClock())
        certificates.start()
        # What the server needs from an application besides handling requests.
        services = SimpleNamespace(certificates=certificates)
        self.app = SimpleNamespace(lifespan=_nothing, close=lambda: None, services=services)  # type: ignore[assignment]
        self.config.app = echo


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield


def main(port: str, *pair: str) -> None:
    if not pair:
        uvicorn.run(
            echo, port=int(port), loop="uvloop", http="httptools", access_log=False, log_level="error", lifespan="off"
        )
        return
    certificate, key = map(Path, pair)
    # It never connects to them.
    settings = ControlSettings(
        metadata_url="postgresql://127.0.0.1/none",
        artifacts_url="http://key:secret@127.0.0.1:1/none",
        port=int(port),
        tls_cert=certificate,
        tls_key=key,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(BareServer(settings).serve())


if __name__ == "__main__":
    main(*sys.argv[1:])
