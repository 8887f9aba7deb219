"""Spans as OTLP has them, by its official protobuf. It is imported where spans are sent alone."""

from collections.abc import Mapping, Sequence

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2

from edge_runtime.telemetry.spans import TraceSpan

_SCOPE = InstrumentationScope(name="skerry.edge")


def encode(resource: Mapping[str, str], spans: Sequence[TraceSpan]) -> bytes:
    """Return the body of `POST /v1/traces`. `resource` says whose spans they are."""
    made = trace_pb2.ScopeSpans(scope=_SCOPE, spans=[_span(span) for span in spans])
    of = trace_pb2.ResourceSpans(resource=Resource(attributes=_pairs(resource)), scope_spans=[made])
    body: bytes = ExportTraceServiceRequest(resource_spans=[of]).SerializeToString()
    return body


def _span(span: TraceSpan) -> trace_pb2.Span:
    failed = trace_pb2.Status(code=trace_pb2.Status.STATUS_CODE_ERROR, message=span.error) if span.error else None
    return trace_pb2.Span(
        trace_id=span.at.trace,
        span_id=span.at.span,
        parent_span_id=span.parent,
        name=span.name,
        kind=trace_pb2.Span.SpanKind.ValueType(span.kind),
        start_time_unix_nano=span.start,
        end_time_unix_nano=max(span.start, span.end),
        attributes=_pairs({**span.attributes, "error.type": span.error} if span.error else span.attributes),
        status=failed,
    )


def _pairs(values: Mapping[str, str | int]) -> list[KeyValue]:
    return [
        KeyValue(key=key, value=AnyValue(string_value=value) if isinstance(value, str) else AnyValue(int_value=value))
        for key, value in values.items()
    ]
