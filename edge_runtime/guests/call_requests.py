"""What a guest's request is, by the head of the call's frame. Pure."""

from typing import Any

from edge_runtime.guests.invocation import Request
from edge_runtime.ipc.call_head import CallHead, decode_block


def request_fields(head: CallHead, abi: str, key: bytes = b"") -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return the fields of a `Request` that come before its body, and those that come after it. `key` is the request's.

    Raises: ValueError, when the head isn't as a front makes it.
    """
    scheme, caller, auth_type = head.via
    if abi == "direct":
        # The guest gets the block as it is: nothing of it is needed as text but the method.
        return (head.method, "", "", ()), ("", scheme, "", "", (), key, caller, auth_type, head.block)
    texts = decode_block(head.block)
    return (
        (texts.method, texts.path, texts.query, texts.headers),
        (texts.client, scheme, texts.script, texts.route, texts.params, key, caller, auth_type),
    )


def made(head: CallHead, abi: str, body: bytes) -> Request:
    """Return the request of a call that is made once. Raises: as `request_fields`."""
    before, after = request_fields(head, abi)
    return Request(*(*before, body, *after))
