"""The node's spans, in the form in which they wait to be sent."""

from typing import Final, NamedTuple

from control.protocol.trace_context import Place

SERVER: Final = 2
"""The kind of a span that answers a request, as numbered by OTLP."""
CLIENT: Final = 3
"""The kind of a span that calls something else, such as a database."""
INTERNAL: Final = 1
"""The kind of all other spans."""


class TraceSpan(NamedTuple):
    """A piece of work, with its start and end in nanoseconds since 1970."""

    at: Place
    """The place of the span itself."""
    parent: bytes
    """The id of the parent span; empty if there is none."""
    name: str
    start: int
    end: int
    kind: int = INTERNAL
    attributes: dict[str, str | int] = {}  # noqa: RUF012  # nobody changes it
    error: str = ""
    """The code of what went wrong; empty if nothing did."""
