"""The ABI `direct`: how a request lies in memory, and what an answer may look like there."""

import struct
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.guests.abi import direct
from edge_runtime.guests.invocation import Request
from edge_runtime.ipc import request_head
from edge_runtime.ipc.answer_head import BODILESS, LIMIT, ResponseInvalid
from edge_runtime.ipc.request_head import RequestUnfit

latin = st.text(st.characters(max_codepoint=255, exclude_characters="\0\n"), max_size=20)
pairs = st.lists(st.tuples(st.from_regex(r"[a-z][a-z-]{0,9}", fullmatch=True), latin), max_size=5)


def read(piece):
    """As a guest reads it: texts by their lengths, each with a NUL behind it, and then nothing."""
    lengths = struct.unpack_from("<8I", piece)
    at, texts = 32, []
    for length in lengths:
        texts.append(piece[at : at + length])
        assert piece[at + length] == 0
        at += length + 1
    assert at == len(piece)
    return dict(zip(request_head.TEXTS, texts, strict=True))


@given(latin, latin, latin, pairs, latin, latin, pairs, latin)
def test_a_guest_finds_what_was_sent(method, path, query, headers, script, route, params, client):
    request = Request(
        method, path, query, headers, remote_address=client, script=script, route=route, params=params, body=b"body"
    )
    found = read(direct.encode(request, "f"))
    texts = {"method": method, "path": path, "query": query, "route": route, "client": client}
    texts["script"] = script if route else script or "/functions/f"
    assert {name: found[name].decode("latin-1") for name in texts} == texts
    lines = found["headers"].decode("latin-1").split("\n")
    assert lines.pop() == ""
    assert [tuple(line.split(": ", 1)) for line in lines] == headers
    assert parse_qsl(found["params"].decode(), keep_blank_values=True, encoding="latin-1") == params


@pytest.mark.parametrize(
    "request_",
    [Request("GET", headers=[("X", "a\nB: c")]), Request("GET", "/あ"), Request("GET", headers=[("X", "あ")])],
)
def test_a_request_that_no_piece_can_hold(request_):
    with pytest.raises(RequestUnfit):
        direct.encode(request_, "f")


def answer(status, lines, body=b"", length=None):
    return struct.pack("<II", status, len(lines) if length is None else length) + lines + body


def decode(piece, before=b"", after=b"", method="GET"):
    return direct.decode(before + piece + after, len(before), len(piece), method)


@given(st.integers(200, 599), st.binary(max_size=99), st.binary(max_size=20), st.booleans(), st.binary(max_size=50))
def test_an_answer_comes_out_as_it_is_wherever_it_lies(status, body, around, crlf, value):
    value = bytes(byte for byte in value if byte >= 32 and byte != 127)
    lines = b"Content-Type: a/b\nX-Y: " + value + b"\n"
    given_ = lines.replace(b"\n", b"\r\n") if crlf else lines
    body = b"" if status in BODILESS else body
    found = decode(answer(status, given_, body), around, around)
    assert found == (status, lines.replace(b"\n", b"\r\n"), body)


def test_lengths_and_heads():
    assert decode(answer(200, b"")) == (200, b"", b"")
    assert decode(answer(200, b"Content-Type: a\ncontent-length: 2\n", b"xy"))[1] == b"Content-Type: a\r\n"
    assert decode(answer(200, b"Content-Length: 9\n"), method="HEAD")[2] == b""


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (b"", "answered 0 bytes; an answer begins with 8"),
        (b"\xc8\0\0\0\0\0\0", "answered 7 bytes"),
        (answer(199, b""), "status 199"),
        (answer(600, b""), "status 600"),
        (answer(0xFFFFFFFF, b""), "status 4294967295"),
        (answer(200, b"", length=1), "answered 8 bytes with 1 of header lines; at most 0 are possible"),
        (answer(200, b"X: y\n", length=0xFFFFFFFF), "with 4294967295 of header lines; at most 5 are possible"),
        (answer(200, b"X: " + b"y" * LIMIT + b"\n"), "at most 65000 are possible"),
        (answer(200, b"X: y"), "its last header line has no end: b'X: y'"),
        (answer(200, b"X: y\n\n"), "the header line '', which has no colon"),
        (answer(200, b"X Y: z\n"), "name 'X Y'"),
        (answer(200, b"X: \0\n"), "control character in the value of X"),
        (answer(200, b"X: a\rY: b\n"), "control character in the value of X"),
        (answer(200, b"Status: 200\n"), "the header Status; the status is the answer's first number"),
        (answer(200, b"Connection: close\n"), "Connection, which is for the server"),
        (answer(200, b"transfer-encoding: chunked\n"), "transfer-encoding, which is for the server"),
        (answer(200, b"", b"x"), "a body without a Content-Type"),
        (answer(204, b"Content-Type: a\n", b"x"), "a body of 1 bytes with the status 204"),
        (answer(200, b"Content-Type: a\nContent-Length: 3\n", b"xy"), "Content-Length: 3 and a body of 2 bytes"),
        (answer(200, b"X: y\n" * 129), "129 header lines; 128 are allowed"),
    ],
)
def test_what_is_wrong_is_said(piece, message):
    with pytest.raises(ResponseInvalid, match=message):
        decode(piece, b"before", b"after\n\n")


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_an_answer_or_refused(piece, likely):
    piece = struct.pack("<II", 200, len(piece) % 64) + piece if likely else piece
    try:
        status, head, body = decode(piece)
    except ResponseInvalid:
        return
    assert 200 <= status < 600
    assert piece.endswith(body)
    assert head.count(b"\n") == head.count(b"\r\n")
