"""The head of a call's frame: what goes in comes out, a guest of `direct` finds the same, and nothing else passes."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.guests import invocation
from edge_runtime.guests.abi import direct
from edge_runtime.guests.invocation import Request
from edge_runtime.ipc import request_head
from edge_runtime.ipc.request_head import PLAIN, SECURE, RequestTexts, RequestUnfit, Via

TEXT = st.text(st.characters(max_codepoint=255), max_size=20)
QUERY = st.binary(max_size=20)
NAME = st.from_regex(rb"[a-z0-9!#$%&'*+.^_`|~-]{1,12}", fullmatch=True)
VALUE = st.binary(max_size=30).map(lambda value: value.replace(b"\n", b": "))
HEADERS = st.lists(st.tuples(NAME, VALUE), max_size=12)
PARAMS = st.lists(st.tuples(st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True), TEXT), max_size=4)
REQUEST = st.builds(
    Request,
    method=TEXT,
    path=TEXT,
    query=TEXT,
    headers=HEADERS.map(lambda headers: [(name.decode(), value.decode("latin-1")) for name, value in headers]),
    body=st.binary(max_size=9),
    remote_address=TEXT,
    scheme=st.sampled_from(["http", "https"]),
    script=TEXT,
    route=TEXT,
    params=PARAMS,
    caller=st.text(max_size=9),
    auth_type=st.text(max_size=9),
)
VIA = st.builds(Via, st.sampled_from(["http", "https"]), st.text(max_size=30), st.text(max_size=20))
HEAD = st.fixed_dictionaries(
    {
        **{"serial": st.integers(0, 2**32 - 1), "function": st.integers(0, 2**16 - 1), "via": VIA},
        **dict.fromkeys(["method", "path", "script", "route", "client"], TEXT),
        **{"query": QUERY, "headers": HEADERS, "params": PARAMS},
    }
)
"""Arguments of `encode_head`."""


def encoded(request: Request, serial: int = 1, function: int = 2) -> bytes:
    """The head that the front sends for a request."""
    via = Via(request.scheme, request.caller, request.auth_type)
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in request.headers]
    texts = request.script, request.route, request.params, request.remote_address
    query = request.query.encode("latin-1")
    return request_head.encode_head(serial, function, via, request.method, request.path, query, headers, *texts)


@given(HEAD)
def test_a_call_comes_out_as_it_went_in(call: dict[str, Any]) -> None:
    encoded_ = request_head.encode_head(**call)
    head = request_head.decode_head(encoded_)
    assert (head.serial, head.function) == request_head.target(encoded_) == (call["serial"], call["function"])
    assert (head.via, head.method) == (call["via"], call["method"])
    texts = {name: call[name] for name in request_head.TEXTS}
    texts["query"] = call["query"].decode("latin-1")
    texts["headers"] = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in call["headers"]]
    assert request_head.decode_block(head.block) == RequestTexts(**texts)


def test_the_bytes_are_these() -> None:
    """What a loop in C reads."""
    texts = [b"POST", b"/a%20b", b"x=1", b"host: h\nx: \n", b"/functions/f", b"", b"", b"192.0.2.7"]
    block = struct.pack("<8I", *map(len, texts)) + b"".join(text + b"\0" for text in texts)
    request = Request(
        "POST", "/a%20b", "x=1", [("host", "h"), ("x", "")], b"", "192.0.2.7", script="/functions/f", caller=""
    )
    assert encoded(request, 5, 3) == struct.pack("<IHBBHH", 5, 3, 0, 0, 0, 0) + block
    by = Request(**{name: getattr(request, name) for name in request.__struct_fields__} | {"scheme": "https"})
    assert encoded(by, 5, 3)[:12] == struct.pack("<IHBBHH", 5, 3, 1, 0, 0, 0)
    head = request_head.encode_head(5, 3, Via("http", "è", "Bearer"), "POST", "", b"", [], "", "", [], "")
    assert head[:20] == struct.pack("<IHBBHH", 5, 3, 0, 6, 2, 0) + "è".encode() + b"Bearer"
    assert head[20:] == struct.pack("<8I", 4, 0, 0, 0, 0, 0, 0, 0) + b"POST" + bytes(8)


@given(REQUEST)
def test_a_worker_makes_the_same_request_of_it(request_: Request) -> None:
    head = request_head.decode_head(encoded(request_))
    assert invocation.request_of(head, "wagi", request_.body) == request_
    told = invocation.request_of(head, "direct", request_.body)
    assert (told.method, told.body, told.caller, told.auth_type) == (
        request_.method,
        request_.body,
        request_.caller,
        request_.auth_type,
    )
    if request_.script:
        # What calls without a node give a guest is the same.
        assert told.block == direct.encode(request_, "f")


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"headers": [("x", "a\nhost: b")]}, "a header has a line break"),
        ({"headers": [("x\n", "a")]}, "a header has a line break"),
        ({"path": "/あ"}, "characters that no request can have"),
        ({"params": [("id", "あ")]}, "characters that no request can have"),
        ({"remote_address": "あ"}, "characters that no request can have"),
    ],
)
def test_what_no_head_can_have_is_refused(more: dict[str, object], why: str) -> None:
    with pytest.raises(RequestUnfit, match=why):
        encoded(Request("GET", **more))  # type: ignore[arg-type]


WHOLE = request_head.encode_head(
    1, 2, Via("https", "shop", "Bearer"), "GET", "/7", b"a=1", [(b"host", b"h")], "/x", "/x/{id}", [("id", "7")], "::1"
)


def test_a_head_that_ends_too_early_is_an_error() -> None:
    for size in range(len(WHOLE)):
        with pytest.raises(ValueError, match=rf"a call's head of {size} bytes"):
            request_head.decode_head(WHOLE[:size])
        assert request_head.target(WHOLE[:size]) == (None if size < 6 else (1, 2)), size


def test_a_head_whose_lengths_do_not_add_up_is_an_error() -> None:
    """Each byte of the lengths, of the scheme and of the zero. (Between them are the names, which may be any.)"""
    for at in (*range(6, 12), *range(22, 22 + 32)):
        for change in range(2 if at == 6 else 1, 256):
            changed = bytearray(WHOLE)
            changed[at] ^= change
            with pytest.raises(ValueError, match="a call's head of"):
                request_head.decode_head(bytes(changed))


@pytest.mark.parametrize("more", [b"\0", b"x" * 100])
def test_a_head_with_more_behind_it_is_an_error(more: bytes) -> None:
    with pytest.raises(ValueError, match=f"says that it has {len(WHOLE)}"):
        request_head.decode_head(WHOLE + more)


@pytest.mark.parametrize(
    ("was", "now"), [(b"host: h\n", b"host:hh\n"), (b"host: h\n", b"host: hh"), (b"id=7", b"id77")]
)
def test_a_block_without_values_is_an_error(was: bytes, now: bytes) -> None:
    assert WHOLE.count(was) == 1
    with pytest.raises(ValueError, match="a call's head has"):
        request_head.decode_block(request_head.decode_head(WHOLE.replace(was, now)).block)


@given(st.binary(max_size=120))
def test_any_bytes_are_a_head_or_an_error(head: bytes) -> None:
    try:
        found = request_head.decode_head(head)
    except ValueError:
        return
    assert head.endswith(found.block)


def test_most_calls_share_how_they_came() -> None:
    for via in (PLAIN, SECURE):
        head = request_head.encode_head(1, 2, via, "GET", "", b"", [], "/functions/f", "", [], "::1")
        assert request_head.decode_head(head).via is via
        assert len(head) == 12 + 32 + 8 + len("GET/functions/f::1")
