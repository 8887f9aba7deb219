"""Requests out of bytes: the same however they are cut, nothing that HTTP doesn't allow, nothing without bound."""

import itertools
from typing import NamedTuple

import pytest
from httptools import HttpParserCallbackError
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.dispatch.outcomes import Refusal
from edge_runtime.web.connection_memory import BodyMemory
from edge_runtime.web.parser import HEAD_BYTES, PIECE, PIPELINED, Exchange, Requests

HOST = b"host: localhost\r\n"
CHUNKED = b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n"


class Asked(NamedTuple):
    method: str
    path: bytes
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


def reader(limit: int = 1 << 30, body_limit: int = 1 << 20, refusal: Refusal | None = None) -> Requests:
    return Requests(BodyMemory(limit, body_limit), lambda asked, _: refusal)


def body(asked: Exchange) -> bytes:
    return b"".join(asked.pieces)


def read(*pieces: bytes) -> tuple[list[Asked], Requests]:
    """The whole requests of these bytes, each taken when it is whole, and the reader."""
    requests = reader()
    found = []
    for piece in pieces:
        if requests.broken is None:
            requests.feed(piece)
        while requests.exchanges and requests.exchanges[0].whole:
            asked = requests.exchanges.popleft()
            found.append(Asked(asked.method, asked.path, asked.query, asked.headers, body(asked)))
    return found, requests


@pytest.mark.parametrize(
    "data",
    [
        b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 3, 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\n" + HOST + b"content-length: +3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\n" + HOST + b"content-length : 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 99999999999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.0\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        CHUNKED + b"3\nabc\r\n0\r\n\r\n",
        CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n",
        CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
        CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n",
        CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n",
        CHUNKED + b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\n" + HOST + b"\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx: 1\r\n 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx: 1\x002\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx: 1\r2\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx y: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\n: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/0.9\r\n" + HOST + b"\r\n",
        b"GET / HTTP/2.0\r\n" + HOST + b"\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /a#b HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /\xe9 HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET http://user@evil.example/ HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET http:///path HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET ftp://localhost/ HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET http://localhost:99999/ HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET *x HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET / HTTP/1.1\r\nhost: local host\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost:80:80\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: user@localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost/path\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost, localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_others_may_read_otherwise_is_refused(data: bytes) -> None:
    for pieces in ((data,), tuple(data[k : k + 1] for k in range(len(data)))):
        found, requests = read(*pieces, b"GET /next HTTP/1.1\r\n" + HOST + b"\r\n")
        assert found == []
        assert requests.broken is not None
        assert requests.broken.status == 400


def test_a_request_that_names_a_host_in_its_line_is_for_that_host() -> None:
    requests = reader()
    requests.feed(b"GET http://evil.example:81/a/b?c HTTP/1.1\r\n" + HOST + b"\r\n")
    requests.feed(b"GET http://[::1] HTTP/1.1\r\n" + HOST + b"\r\n")
    requests.feed(b"GET HTTPS://localhost?q HTTP/1.0\r\nx: y\r\n\r\n")
    assert [(e.host, e.path, e.query) for e in requests.exchanges] == [
        (b"evil.example:81", b"/a/b", b"c"),
        (b"[::1]", b"/", b""),
        (b"localhost", b"/", b"q"),
    ]
    # The function, too, is told that one alone.
    for asked in requests.exchanges:
        assert [value for name, value in asked.headers if name == b"host"] == [asked.host]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"FETCH / HTTP/1.1\r\n\r\n", "method"),
        (b"GET / HTTP/1.1\r\n\r\n", "it has 0 Host headers"),
        (b"GET / HTTP/1.1\r\nhost: a b\r\n\r\n", "its Host is no host and port"),
        (b"GET ftp://a/ HTTP/1.1\r\n" + HOST + b"\r\n", "its line has no path and no http URL"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"origin: http://a\r\nOrigin: http://b\r\n\r\n", "two Origin headers"),
        (
            b"GET / HTTP/1.1\r\n" + HOST + b"sec-fetch-site: cross-site\r\nSEC-FETCH-SITE: none\r\n\r\n",
            "two Sec-Fetch-Site headers",
        ),
        (
            b"GET / HTTP/1.1\r\n" + HOST + b"authorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n",
            "two Authorization headers",
        ),
        (b"GET http://a:99999/ HTTP/1.1\r\n" + HOST + b"\r\n", "its line has no path and no http URL"),
        (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", "HTTP/2.0"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 1\r\ncontent-length: 1\r\n\r\n", "Content-Length"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, told: str) -> None:
    _, requests = read(data)
    assert requests.broken is not None
    assert requests.broken.message.startswith("This is no HTTP/1.1 request: ")
    assert told in requests.broken.message


def test_white_space_around_a_value_is_none_of_it() -> None:
    head = b"POST / HTTP/1.1\r\nhost:\t localhost \t\r\nx: a  b \r\ncontent-length: 3 \r\n\r\nabc"
    found, _ = read(head, CHUNKED.replace(b"chunked", b"Chunked ") + b"0\r\n\r\n")
    assert found[0].headers == [(b"host", b"localhost"), (b"x", b"a  b"), (b"content-length", b"3")]
    assert found[0].body == b"abc"
    assert len(found) == 2


@pytest.mark.parametrize(
    "name", ["Skerry-Event", "skerry_event", "SKERRY-CRON", "Skerry-Scheduled_At", "skerry_scheduled_at"]
)
def test_no_client_says_that_the_node_makes_its_call(name: str) -> None:
    head = b"GET / HTTP/1.1\r\n%b%b: schedule\r\nskerry-other: x\r\n\r\n" % (HOST, name.encode())
    found, _ = read(head)
    assert found[0].headers == [(b"host", b"localhost"), (b"skerry-other", b"x")]


@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_a_head_behind_another_request_has_the_same_limit(pieces: int) -> None:
    small = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
    large = b"GET / HTTP/1.1\r\n" + HOST + b"x: %b\r\n\r\n"
    for size, refused in ((HEAD_BYTES - 100, False), (HEAD_BYTES, True)):
        data = small + large % (b"y" * size)
        step = len(data) // pieces + 1
        found, requests = read(*(data[k : k + step] for k in range(0, len(data), step)))
        assert len(found) == 2 - refused
        assert (requests.broken is not None) == refused
        assert not refused or requests.broken.code == "head_too_large"


def test_the_body_behind_a_wish_for_another_protocol_is_the_requests() -> None:
    head = b"POST /a HTTP/1.1\r\n" + HOST + b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n"
    data = (
        (head + b"content-length: 3\r\n\r\nabc") * 2 + head + b"transfer-encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n"
    )
    whole, requests = read(data, b"GET /next HTTP/1.1\r\n" + HOST + b"\r\n")
    assert [asked.body for asked in whole] == [b"abc", b"abc", b"de", b""]
    assert whole[3].path == b"/next"
    assert requests.broken is None
    assert read(*(data[k : k + 1] for k in range(len(data))))[0] == whole[:3]


def test_what_is_wrong_behind_a_wish_for_another_protocol_is_refused_too() -> None:
    wish = b"GET /a HTTP/1.1\r\n" + HOST + b"connection: upgrade\r\nupgrade: h2c\r\n\r\n"
    for wrong in (b"GET /b HTTP/1.1\r\n" + HOST + HOST + b"\r\n", b"GET /b HTTP/1.1\r\n\r\n", b"nonsense\r\n\r\n"):
        whole, requests = read(wish + wrong + wish)
        assert [asked.path for asked in whole] == [b"/a"]
        assert requests.broken is not None
    both = wish.replace(HOST, HOST + HOST)
    whole, requests = read(both + wish)
    assert whole == []
    assert requests.broken is not None
    requests = reader()
    requests.feed(wish * (PIPELINED + 1))
    assert len(requests.exchanges) == PIPELINED
    assert requests.broken is not None


def test_trailers_are_nobodys() -> None:
    found, _ = read(CHUNKED + b"3\r\nabc\r\n0\r\nauthorization: x\r\n\r\n")
    # Nor is the coding, once the body is out of it.
    assert found == [Asked("POST", b"/", b"", [(b"host", b"localhost")], b"abc")]


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (CHUNKED + b"1;", b"x" * 1000),
        (CHUNKED + b"1\r\na\r\n0\r\n", b"x-trailer: y\r\n" * 100),
        (CHUNKED + b"1\r\na\r\n0\r\nx", b"x" * 1000),
        (b"GET / HTTP/1.1\r\nx: ", b"y" * 1000),
        (b"GET /", b"y" * 1000),
        (b"GET / HTTP/1.1\r\n", b"x: y\r\n" * 100),
    ],
)
def test_what_has_no_end_is_given_up(start: bytes, more: bytes) -> None:
    requests = reader()
    requests.feed(start)
    fed = 0
    while requests.broken is None:
        requests.feed(more)
        fed += len(more)
        assert fed < 4 * HEAD_BYTES
    assert requests.broken.status in (400, 431)


def test_small_chunks_are_put_together_and_large_ones_are_not_copied() -> None:
    requests = reader()
    requests.feed(CHUNKED)
    for _ in range(50):
        requests.feed(b"1\r\nx\r\n" * 4000)
    asked = requests.exchanges[0]
    assert requests.broken is None
    assert asked.size == 200_000
    assert len(asked.pieces) < 200_000 / PIECE * 2 + 2
    requests.feed(b"%x\r\n" % PIECE + b"y" * PIECE + b"\r\n0\r\n\r\n")
    assert asked.whole
    assert isinstance(asked.pieces[-1], bytes)
    assert body(asked) == b"x" * 200_000 + b"y" * PIECE


def test_bodies_are_counted_one_by_one_and_together() -> None:
    memory = BodyMemory(1000, 600)
    first, second, third = (Requests(memory, lambda asked, _: None) for _ in range(3))
    first.feed(CHUNKED + b"258\r\n" + b"x" * 600)
    assert memory.held == 600
    second.feed(b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 500\r\n\r\n" + b"x" * 300)
    assert memory.held == 900
    second.feed(b"x" * 200)
    third.feed(CHUNKED + b"12c\r\n" + b"x" * 300)
    refusals = [r.exchanges[0].refusal for r in (first, second, third)]
    assert [refusal and refusal.code for refusal in refusals] == [None, "body_memory", None]
    assert memory.held == 900
    first.feed(b"\r\n1\r\nx")
    refusal = first.exchanges[0].refusal
    assert refusal is not None
    assert (refusal.status, refusal.code) == (413, "body_too_large")
    third.drop(third.exchanges[0])
    assert memory.held == 0


def test_the_body_of_a_refused_request_is_not_kept() -> None:
    requests = reader(refusal=Refusal(403, "host_refused", "No."))
    requests.feed(b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 3\r\n\r\nabc")
    (asked,) = requests.exchanges
    assert (asked.whole, asked.size, asked.pieces) == (True, 0, [])


def test_a_fault_of_ours_is_no_request_that_is_refused() -> None:
    def fail(asked: Exchange, _: bytes | None) -> None:
        raise KeyError(asked.path)

    requests = Requests(BodyMemory(1 << 30, 1 << 20), fail)
    with pytest.raises(HttpParserCallbackError) as caught:
        requests.feed(b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n")
    assert isinstance(caught.value.__context__, KeyError)


def test_requests_that_come_at_once_are_so_many_at_most() -> None:
    requests = reader()
    requests.feed((b"GET / HTTP/1.1\r\n" + HOST + b"\r\n") * 1000)
    assert len(requests.exchanges) == PIPELINED
    assert requests.broken is not None


# However they are cut

TOKEN = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12).map(lambda t: b"x-" + t.encode())
VALUE = st.binary(max_size=30).map(lambda b: bytes(c for c in b if c > 0x20 and c != 0x7F))
REQUEST = st.tuples(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]),
    st.text("abc/%2", max_size=20).map(lambda t: b"/" + t.encode()),
    st.text("ab=&?%", max_size=20).map(str.encode),
    st.lists(st.tuples(TOKEN, VALUE), max_size=6),
    st.lists(st.binary(min_size=1, max_size=400), max_size=3),
    st.booleans(),
)


def encoded(asked: tuple[str, bytes, bytes, list[tuple[bytes, bytes]], list[bytes], bool]) -> tuple[bytes, Asked]:
    method, path, query, headers, pieces, chunked = asked
    headers = [(b"host", b"localhost"), *headers]
    coding = b""
    if chunked:
        coding = b"transfer-encoding: chunked\r\n"
        content = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"
    else:
        content = b"".join(pieces)
        headers.append((b"content-length", b"%d" % len(content)))
    url = path + b"?" + query if query else path
    head = b"".join(b"%b: %b\r\n" % header for header in headers) + coding
    data = b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method.encode(), url, head, content)
    return data, Asked(method, path, query, headers, b"".join(pieces))


@given(st.lists(REQUEST, min_size=1, max_size=5), st.lists(st.integers(0, 5000), max_size=12))
def test_requests_are_the_same_however_they_are_cut(asked: list, cuts: list[int]) -> None:
    made = [encoded(one) for one in asked]
    data = b"".join(piece for piece, _ in made)
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    found, requests = read(*(data[a:b] for a, b in itertools.pairwise(places)))
    assert found == [expected for _, expected in made]
    assert requests.broken is None
    assert not requests.heading
    assert requests._memory.held == sum(len(f.body) for f in found)


@given(REQUEST, st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_requests_are_requests_or_refused(asked: tuple, damage: list[tuple[int, int]]) -> None:
    data = bytearray(encoded(asked)[0] * 2)
    for place, byte in damage:
        data[place % len(data)] = byte
    found, requests = read(bytes(data))
    for one in found:
        assert one.path.isascii()
        assert all(name == name.lower() and b"\n" not in name + value for name, value in one.headers)
    assert requests.broken is None or requests.broken.status == 400
