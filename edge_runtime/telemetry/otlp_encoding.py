"""Encodes spans as OTLP, with its official protobuf. Only code that sends spans imports it.

Messages are filled in place: making one first and then adding it to another copies it, which takes four times as long.
"""

from collections.abc import Mapping, Sequence

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2

from edge_runtime.telemetry.spans import TraceSpan


def encode(resource: Mapping[str, str], spans: Sequence[TraceSpan]) -> bytes:
    """Return the body of `POST /v1/traces`. `resource` says whose spans they are."""
    request = ExportTraceServiceRequest()
    of = request.resource_spans.add()
    _set_attributes(of.resource, resource)
    scope = of.scope_spans.add()
    scope.scope.name = "skerry.edge"
    for span in spans:
        _set(scope.spans.add(), span)
    body: bytes = request.SerializeToString()
    return body


def _set(made: trace_pb2.Span, span: TraceSpan) -> None:
    at = span.at
    made.trace_id = at.trace
    made.span_id = at.span
    made.parent_span_id = span.parent
    made.name = span.name
    made.kind = trace_pb2.Span.SpanKind.ValueType(span.kind)
    made.start_time_unix_nano = span.start
    made.end_time_unix_nano = max(span.start, span.end)
    if span.attributes:
        _set_attributes(made, span.attributes)
    if span.error:
        _set_attributes(made, {"error.type": span.error})
        made.status.code = trace_pb2.Status.STATUS_CODE_ERROR
        made.status.message = span.error


def _set_attributes(of: trace_pb2.Span | Resource, values: Mapping[str, str | int]) -> None:
    for key, value in values.items():
        pair = of.attributes.add()
        pair.key = key
        if isinstance(value, str):
            pair.value.string_value = value
        else:
            pair.value.int_value = value
