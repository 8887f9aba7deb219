"""Sends spans with OpenTelemetry's SDK.

Its imports take 0.3 s and some memory, so this module is imported only where spans are sent.
"""

import logging
import threading
from collections.abc import Sequence
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from control.log_throttle import Outage

ANSWER_LIMIT: Final = 5.0
"""Seconds within which the collector must answer."""

log = logging.getLogger("skerry.traces")


class SpanIds(RandomIdGenerator):
    """Random ids; if `next_span` is set, the next span gets it."""

    def __init__(self) -> None:
        self.next_span = 0

    def generate_span_id(self) -> int:
        """Return the id of the next span."""
        span, self.next_span = self.next_span, 0
        return span or super().generate_span_id()


class _Sender(OTLPSpanExporter):
    """Sends spans, and notes when that works."""

    def __init__(self, endpoint: str, certificate_file: str | None, headers: dict[str, str], outage: Outage) -> None:
        super().__init__(endpoint, certificate_file, headers=headers, timeout=ANSWER_LIMIT)
        self._outage = outage

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = super().export(spans)
        if result is SpanExportResult.SUCCESS:
            self._outage.worked()
        return result


class _SdkLog(logging.Handler):
    """Takes what the SDK logs: several lines for each attempt while the collector is unreachable."""

    def __init__(self, outage: Outage) -> None:
        super().__init__(logging.WARNING)
        self._outage = outage

    def emit(self, record: logging.LogRecord) -> None:
        self._outage.failed(record.getMessage())


class Spans:
    """Makes spans and sends them in its own thread. At most 2048 spans wait; more are dropped."""

    def __init__(self, url: str, certificate: str | None, headers: dict[str, str], instance: str) -> None:
        """Send to the collector at `url`; `certificate` is its CA's file, and `instance` tells replicas apart."""
        outage = Outage(log, "traces can't be sent, and are dropped")
        sdk = logging.getLogger("opentelemetry")
        sdk.handlers, sdk.propagate = [_SdkLog(outage)], False
        self._sender = _Sender(url.rstrip("/") + "/v1/traces", certificate, headers, outage)
        self.ids = SpanIds()
        resource = Resource.create({"service.name": "skerry-control", "service.instance.id": instance})
        # What is traced is decided before a span is made.
        self._provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False, id_generator=self.ids)
        self._provider.add_span_processor(BatchSpanProcessor(self._sender))
        self.tracer = self._provider.get_tracer("skerry.control")

    def close(self, seconds: float) -> None:
        """Send the remaining spans, for at most `seconds`."""
        # The SDK would wait half a minute for a collector that doesn't answer.
        sending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        sending.start()
        sending.join(seconds)
        if sending.is_alive():
            self._sender.shutdown()  # type: ignore[no-untyped-call]  # it has no types
