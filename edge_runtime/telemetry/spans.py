"""The node's spans, as they are kept until they are sent."""

from typing import Final, NamedTuple

from control.protocol.trace_context import Place

SERVER: Final = 2
"""The kind of a span that answers a request; as OTLP numbers them."""
CLIENT: Final = 3
"""The kind of a span that asks something else, such as a database."""
INTERNAL: Final = 1
"""The kind of all other spans."""


class TraceSpan(NamedTuple):
    """A piece of work, with its start and end in nanoseconds since 1970."""

    at: Place
    """Its own place."""
    parent: bytes
    """Id of the span above; empty where there is none."""
    name: str
    start: int
    end: int
    kind: int = INTERNAL
    attributes: dict[str, str | int] = {}  # noqa: RUF012  # nobody changes it
    error: str = ""
    """Code of what went wrong; empty where nothing did."""
