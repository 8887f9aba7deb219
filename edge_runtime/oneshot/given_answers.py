"""The answers that a test case gives to its function's HTTP requests: no request leaves the process. Pure."""

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from control.protocol.manifest import HttpGrant
from edge_runtime.egress import grants
from edge_runtime.guests import http_json
from edge_runtime.ipc import http_messages
from edge_runtime.ipc.http_messages import NotFetched

NONE: Final = "No request was made: `skerry dev` makes them."


class GivenAnswer(Struct):
    """An answer to one request."""

    url: str
    status: int
    method: str = ""
    """The method of the request that it answers; '' for any."""
    headers: list[tuple[str, str]] = []
    body: bytes = b""


class GivenAnswers:
    """The HTTP of a call: each answer is for the first request that fits and comes after the answers before it that fit
    too. A request must be one that a node would make."""

    def __init__(self, grant: HttpGrant, given: Iterable[GivenAnswer]) -> None:
        """Raises: NotFetched, when the URL of an answer is none."""
        self._grant = grant
        self._left = [(_shown(grants.split(each.url)), each) for each in given]
        self._some = bool(self._left)

    def fetch(self, request: bytes) -> bytes:
        """Answer a function's request, both as JSON of `guests.http_json`."""
        try:
            return http_json.to_guest(self._answer(request))
        except NotFetched as why:
            return http_messages.refused(why.code, why.message)

    def _answer(self, request: bytes) -> bytes:
        asked = grants.read(http_json.to_front(request)[2], self._grant)
        url = _shown((asked.scheme, asked.host, asked.port, asked.target))
        for at, (theirs, given) in enumerate(self._left):
            if theirs == url and given.method in ("", asked.method):
                del self._left[at]
                headers = ((name.encode(), value.encode()) for name, value in given.headers)
                return http_messages.answer(given.status, headers, given.body)
        why = f"No request was made: the case's `http` has no answer left for {asked.method} {url}."
        raise NotFetched("http_failed", why if self._some else NONE)

    def left(self) -> list[str]:
        """The method and the URL of each answer that no request took."""
        return [f"{given.method} {url}".strip() for url, given in self._left]


def _shown(place: tuple[str, str, int, str]) -> str:
    scheme, host, port, target = place
    return f"{grants.shown(scheme, host, port)}{target}"
