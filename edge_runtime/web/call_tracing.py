"""A call's place in a trace: what its request says of it, and what is told when it has ended."""

import time

from control.protocol import trace_context
from edge_runtime.dispatch.call import Call
from edge_runtime.dispatch.outcomes import Outcome, Refusal
from edge_runtime.telemetry.call_traces import CallTracer, Passed
from edge_runtime.web.parser import Exchange

TRACEPARENT = b"traceparent"


def join(tracer: CallTracer | None, exchange: Exchange, call: Call) -> None:
    """Give a call its place in its caller's trace, or in one of its own; `tracer` is None where no traces are sent."""
    drawn = tracer is not None and tracer.draw()
    if not drawn and not exchange.traced:
        return
    caller = None
    if exchange.traced:
        given = [value for name, value in exchange.headers if name == TRACEPARENT]
        caller = trace_context.parse(given[0]) if len(given) == 1 else None
    began = time.monotonic()
    trace = tracer.begin(caller, began, drawn=drawn) if tracer is not None else None
    if tracer is None or trace is None:
        call.traced = Passed(caller) if caller is not None else None
        return
    start, done, used = time.time_ns(), call.done, tracer
    call.traced, call.timed = trace, True

    def ended(outcome: Outcome) -> None:
        attributes: dict[str, str | int] = {
            "http.request.method": call.method,
            "http.response.status_code": outcome.status,
            "skerry.function": call.name,
            "skerry.release": exchange.release,
            "skerry.request_id": call.request_id.decode(),
        }
        if call.route:
            attributes["http.route"] = call.route
        error = outcome.code if isinstance(outcome, Refusal) else str(outcome.status) if outcome.status >= 500 else ""
        end = start + int((time.monotonic() - began) * 1e9)
        used.end(trace, f"{call.method} {call.route or call.script}", attributes, error, (start, end), call.times)
        done(outcome)

    call.done = ended
