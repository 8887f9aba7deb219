"""Requests by HTTP of plug-ins, on a node and by Extism's own host."""

from concurrent.futures import Executor

import pytest

from edge_runtime.guests.guest import LoadedFunction
from tests.support.beside_extism import requested, requesting
from tests.support.kernel_scripts import Op, Place, Step

REQUESTS: dict[str, tuple[bytes, bytes | None]] = {
    "get": (b'{"url": "SITE/a"}', None),
    "post": (b'{"url": "SITE/a", "method": "POST"}', b"a body"),
    "post without a body": (b'{"url": "SITE/a", "method": "POST"}', None),
    "method in lower case": (b'{"url": "SITE/a", "method": "put"}', b"\0\xff"),
    "delete": (b'{"url": "SITE/a", "method": "DELETE"}', None),
    "head": (b'{"url": "SITE/a", "method": "HEAD"}', None),
    "headers": (b'{"url": "SITE/a", "headers": {"X-One": "1", "x-two": "2"}}', None),
    "not found": (b'{"url": "SITE/missing"}', None),
    "nothing in the answer": (b'{"url": "SITE/empty"}', None),
    "any bytes": (b'{"url": "SITE/bytes"}', None),
    "another host": (b'{"url": "http://localhost/"}', None),
    "no url": (b'{"method": "GET"}', None),
    "a url that is none": (b'{"url": "nonsense"}', None),
    "no JSON": (b"{", None),
    "another JSON": (b"[]", None),
    "nothing asked": (b"", None),
    "a header that is no text": (b'{"url": "SITE/a", "headers": {"X-One": 1}}', None),
    "a method that is no text": (b'{"url": "SITE/a", "method": 1}', None),
    "a method that is none": (b'{"url": "SITE/a", "method": null}', None),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_requests_by_http_are_answered_alike(ours: LoadedFunction, reference: Executor, site: str, case: str) -> None:
    request, body = REQUESTS[case]
    mine, theirs = requested(ours, reference, site, requesting(request.replace(b"SITE", site.encode()), body))
    assert mine == theirs


@pytest.mark.parametrize("handles", [(Place(0), 1000), (Place(0, 1), 0), (1000, 0)])
def test_requests_by_http_with_wrong_handles(
    ours: LoadedFunction, reference: Executor, site: str, handles: tuple[Place | int, Place | int]
) -> None:
    text = b'{"url": "%s/a", "method": "POST"}' % site.encode()
    steps: list[Step] = [(Op.TEXT, text), (Op.HTTP_REQUEST, *handles), (Op.LENGTH, Place(0)), (Op.TEXT, b"more")]
    mine, theirs = requested(ours, reference, site, [*steps, (Op.ALLOC, 5), (Op.CONTENT, Place(3))])
    assert mine == theirs
