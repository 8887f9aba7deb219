"""Sends spans to an OpenTelemetry collector, by OTLP over HTTP, in a separate thread."""

import logging
import ssl
import threading
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from control.protocol.counts import counted
from control.protocol.trace_context import collector_headers
from edge_runtime.settings import EdgeSettings, EdgeSettingsError
from edge_runtime.telemetry.spans import TraceSpan

log = logging.getLogger("skerry.traces")

MOST: Final = 4096
"""The most spans that may wait to be sent."""
AT_ONCE: Final = 512
"""The most spans in one request."""
PERIOD: Final = 1.0
"""Seconds during which spans are collected."""
ANSWER_LIMIT: Final = 5.0
"""Seconds within which the collector must answer."""
LAST_SEND: Final = 2.0
"""Seconds for sending the remaining spans when the process ends."""


class SpanSender:
    def __init__(self, url: str, resource: dict[str, str], headers: dict[str, str], ca: Path | None) -> None:
        """Send to the collector at `url`; `resource` says whose the spans are.

        `headers` go with each request; `ca` is the authority of its certificate, if the system doesn't know it.

        Raises: OSError or ValueError, when the CA's file can't be read.
        """
        self.dropped = 0
        """Spans that were dropped since the start: too many waited, or the collector didn't take them."""
        self._url = url.rstrip("/") + "/v1/traces"
        self._resource = resource
        self._headers = {**headers, "Content-Type": "application/x-protobuf", "User-Agent": "skerry-edge"}
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
        self._opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _NoRedirects())
        self._spans: deque[TraceSpan] = deque()
        self._fails = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)

    def start(self) -> None:
        """Start sending."""
        self._thread.start()

    def put(self, span: TraceSpan) -> None:
        """Queue a span to be sent. This never waits."""
        if len(self._spans) < MOST:
            self._spans.append(span)
        else:
            self.dropped += 1

    def refusal(self) -> str:
        """Send a request without spans and wait for its answer. Return why the collector refuses it, or ''."""
        try:
            self._send(b"")
        except Exception as error:
            return _cause(error)
        return ""

    def close(self) -> None:
        """Send the remaining spans, for at most `LAST_SEND` seconds."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(LAST_SEND)

    def _run(self) -> None:
        # Imported here, since it takes a while and 5 MB, which only a node that sends spans should need.
        from edge_runtime.telemetry.otlp_encoding import encode

        while not self._stopping.wait(PERIOD):
            self._send_all(encode)
        self._send_all(encode)

    def _send_all(self, encode: Callable[[dict[str, str], Sequence[TraceSpan]], bytes]) -> None:
        while self._spans:
            spans = [self._spans.popleft() for _ in range(min(AT_ONCE, len(self._spans)))]
            try:
                self._send(encode(self._resource, spans))
            except Exception as error:
                self.dropped += len(spans)
                if not self._fails:
                    log.warning("traces can't be sent to %s, and are dropped: %s", self._url, _cause(error))
                self._fails = True
                return
            if self._fails:
                dropped = counted(self.dropped, "span")
                log.info("traces can be sent again; dropped since the start: %s", dropped)
            self._fails = False

    def _send(self, body: bytes) -> None:
        request = urllib.request.Request(self._url, body, self._headers, method="POST")  # noqa: S310  # checked
        with self._opener.open(request, timeout=ANSWER_LIMIT) as answer:
            answer.read(4096)


def of_settings(settings: EdgeSettings, node: str) -> SpanSender:
    """Return the sender that the settings describe, for a node of this name.

    Raises: EdgeSettingsError, when one of their files is wrong.
    """
    return of_files(settings.otlp_url, settings.otlp_headers_file, settings.otlp_ca, node)


def of_files(url: str, headers_file: Path | None, ca: Path | None, node: str) -> SpanSender:
    """Return the sender for a collector. Raises: EdgeSettingsError, when one of the files is wrong."""
    headers: dict[str, str] = {}
    try:
        if headers_file is not None:
            headers = collector_headers(headers_file.read_text())
    except OSError as error:
        raise EdgeSettingsError(f"otlp_headers_file can't be read: {error}") from None
    except ValueError as error:
        shown = "it isn't text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise EdgeSettingsError(f"otlp_headers_file {headers_file}: {shown}") from None
    resource = {"service.name": "skerry-edge", **({"service.instance.id": node} if node else {})}
    try:
        return SpanSender(url, resource, headers, ca)
    except (OSError, ValueError) as error:
        raise EdgeSettingsError(f"otlp_ca {ca} can't be used: {error}") from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: the headers may contain a token, which is only for this collector."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _cause(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"it answered {error.code}"
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return str(error) or type(error).__name__
