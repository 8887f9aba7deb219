"""Requests to CGI environments and CGI output to responses (RFC 3875)."""

import time
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.guests.abi import wagi
from edge_runtime.guests.abi.wagi import parse_response
from edge_runtime.guests.invocation import Request
from edge_runtime.ipc.answer_head import BODILESS, ResponseInvalid
from edge_runtime.ipc.request_head import RequestUnfit


def environment(request, config=None):
    strings = wagi.environment(request, "f", config or {})
    found = dict(text.split("=", 1) for text in strings)
    assert len(found) == len(strings), "a variable is there twice"
    return found


def test_the_environment_of_a_request():
    request = Request(
        "POST",
        "/a%20b/%E3%81%82",
        "x=1&y=%20",
        [
            ("Host", "edge.example:8087"),
            ("content-type", "text/plain"),
            ("Content-Length", "5"),
            ("X-Thing", "one"),
            ("x-thing", "two"),
            ("Cookie", "a=1"),
            ("Cookie", "b=2"),
        ],
        b"hello",
        "192.0.2.7",
    )
    found = environment(request)
    assert wagi.arguments(request, "f") == ["/functions/f/a%20b/%E3%81%82", "x=1", "y=%20"]
    assert found == {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_SOFTWARE": "skerry",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "edge.example",
        "SERVER_PORT": "8087",
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "/functions/f",
        "PATH_INFO": "/a b/あ".encode().decode("latin-1"),
        "PATH_TRANSLATED": "/a b/あ".encode().decode("latin-1"),
        "AUTH_TYPE": "",
        "REMOTE_USER": "",
        "QUERY_STRING": "x=1&y=%20",
        "REMOTE_ADDR": "192.0.2.7",
        "REMOTE_HOST": "192.0.2.7",
        "SKERRY_FUNCTION": "f",
        "X_MATCHED_ROUTE": "/functions/f/...",
        "X_RAW_PATH_INFO": "/a%20b/%E3%81%82",
        "X_FULL_URL": "http://edge.example:8087/functions/f/a%20b/%E3%81%82?x=1&y=%20",
        "CONTENT_TYPE": "text/plain",
        "CONTENT_LENGTH": "5",
        "HTTP_HOST": "edge.example:8087",
        "HTTP_X_THING": "one, two",
        "HTTP_COOKIE": "a=1; b=2",
    }


def test_which_variables_a_request_may_have():
    """A function whose settings replace one of them has its calls run by Python."""
    headers = [("host", "a"), ("content-type", "a/b"), ("x-y", "1")]
    found = environment(Request("GET", headers=headers, body=b"x", scheme="https", params=[("id", "7")]))
    assert set(found) - {"HTTP_HOST", "HTTP_X_Y", "PATH_PARAM_ID"} == wagi.REQUEST_VARIABLES
    assert all(map(wagi.is_of_request, found))
    assert not any(map(wagi.is_of_request, ["GREETING", "HTTPX", "PATH_PARAM", "https"]))


@pytest.mark.parametrize(
    ("request_", "length"),
    [
        (Request("GET"), None),
        (Request("POST", body=b"abc"), "3"),
        (Request("POST", headers=[("Content-Length", "0")]), "0"),
        # What was sent is not believed: a body is as long as it is.
        (Request("POST", headers=[("Content-Length", "99")], body=b"abc"), "3"),
    ],
)
def test_content_length_is_there_with_a_body_alone(request_, length):
    assert environment(request_).get("CONTENT_LENGTH") == length


@pytest.mark.parametrize("name", ["Proxy", "PROXY", "X_Forged", "Transfer-Encoding", "Connection", "", "a b", "Ä"])
def test_headers_that_no_variable_may_come_from(name):
    assert set(environment(Request("GET", headers=[(name, "evil")]))) == set(environment(Request("GET")))


def test_a_header_can_not_pass_for_another_variable():
    found = environment(Request("GET", headers=[("Remote-Addr", "evil"), ("Https", "on")]))
    assert found["REMOTE_ADDR"] == "127.0.0.1"
    assert "HTTPS" not in found


def test_no_header_changes_what_the_manifest_configures():
    found = environment(Request("GET", headers=[("Mode", "evil")]), {"HTTP_MODE": "good", "GREETING": "ä"})
    assert found["HTTP_MODE"] == "good"
    assert found["GREETING"].encode("latin-1") == "ä".encode()


@pytest.mark.parametrize("request_", [Request("GET", "/%00"), Request("GET", "/", "a\0b")])
def test_a_nul_is_refused(request_):
    with pytest.raises(RequestUnfit, match=r"PATH_INFO|QUERY_STRING"):
        environment(request_)


@given(st.text(st.characters(max_codepoint=127)), st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8))))
def test_any_request_gives_an_environment_or_is_refused(path, headers):
    try:
        strings = wagi.environment(Request("GET", path, "", headers), "f", {})
    except RequestUnfit:
        return
    names = [text.partition("=")[0] for text in strings]
    assert len(set(names)) == len(names)
    assert all("\0" not in text for text in strings)


# Responses


class Answer(NamedTuple):
    status: int
    head: bytes
    body: bytes


def test_a_response():
    output = b"Content-Type: text/plain\nSet-Cookie: a=1\r\nset-cookie:  b=2 \nStatus: 404 Not Found\n\nno\n\nsuch"
    response = Answer(*parse_response(output, "GET"))
    assert response.status == 404
    assert response.head == b"Content-Type: text/plain\r\nSet-Cookie: a=1\r\nset-cookie:  b=2 \r\n"
    assert response.body == b"no\n\nsuch"


@pytest.mark.parametrize(
    ("output", "status", "body"),
    [
        (b"Content-Type: a/b\r\n\r\n\r\nx", 200, b"\r\nx"),
        (b"Content-Type: a/b\n\r\nx", 200, b"x"),
        (b"Content-Type: a/b\r\n\nx", 200, b"x"),
        (b"content-type:a/b\n\n", 200, b""),
        (b"Location: /elsewhere\n\n", 302, b""),
        (b"Location: /new\nStatus: 201 Created\n\n", 201, b""),
        (b"Status: 204\n\n", 204, b""),
        (b"Content-Type: a/b\nContent-Length: 2\n\nxy", 200, b"xy"),
        (b"Content-Type: a/b\n\n\0\xff\x80", 200, b"\0\xff\x80"),
    ],
)
def test_good_responses(output, status, body):
    response = Answer(*parse_response(output, "GET"))
    assert (response.status, response.body) == (status, body)
    assert b"content-length" not in response.head.lower()
    assert b"status" not in response.head.lower()


def test_a_head_may_name_the_length_of_a_get():
    output = b"Content-Type: a/b\nContent-Length: 5\n\n"
    assert parse_response(output, "HEAD")[2] == b""
    with pytest.raises(ResponseInvalid, match="Content-Length: 5 and a body of 0 bytes"):
        parse_response(output, "GET")


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (b"", "nothing to stdout"),
        (b"hello", "5 bytes without the blank line.*b'hello'"),
        (b"Content-Type: a/b", "without the blank line"),
        (b"\nhello", "a blank line first"),
        (b"\r\nhello", "a blank line first"),
        (b"hello\n\nworld", "'hello', which has no colon"),
        (b"Content-Type: a/b\nX Y: z\n\n", "name 'X Y'"),
        (b": z\n\n", "name ''"),
        (b"Content-Type : a/b\n\n", "name 'Content-Type '"),
        (b"Content-Type: a/b\n folded\n\n", "' folded', which has no colon"),
        (b"Content-Type: a\0b\n\n", "control character in the value of Content-Type"),
        (b"Content-Type: a/b\nX: a\rSet-Cookie: b\n\n", "control character in the value of X"),
        ("X-Å: z\n\n".encode("latin-1"), "header name"),
        (b"X-Only: z\n\n", "none of Content-Type, Location and Status"),
        (b"Status: 200 OK\n\nbody", "a body without a Content-Type"),
        (b"Status: 200 OK\nContent-Type:\n\nbody", "a body without a Content-Type"),
        (b"Location: \n\n", "none of Content-Type, Location and Status"),
        (b"Status: 204\nContent-Type: a/b\n\nbody", "a body of 4 bytes with the status 204"),
        (b"Status: 304\n\nbody", "a body of 4 bytes with the status 304"),
        (b"Status: 99\n\n", "Status: '99'"),
        (b"Status: 101 Switching\n\n", "Status: '101 Switching'"),
        (b"Status: 600\n\n", "Status: '600'"),
        (b"Status: OK\n\n", "Status: 'OK'"),
        (b"Status:\n\n", "Status: ''"),
        (b"Status: 200\nstatus: 404\n\n", "status twice"),
        (b"Content-Type: a/b\nContent-Type: c/d\n\n", "Content-Type twice"),
        (b"Content-Type: a/b\nContent-Length: 9\n\nxy", "Content-Length: 9 and a body of 2 bytes"),
        (b"Content-Type: a/b\nContent-Length: -2\n\nxy", "Content-Length: '-2'"),
        (b"Content-Type: a/b\nTransfer-Encoding: chunked\n\nxy", "Transfer-Encoding, which is for the server"),
        (b"Content-Type: a/b\nConnection: close\n\nxy", "Connection, which is for the server"),
        (b"Content-Type: a/b\n" + b"X: y\n" * 200 + b"\n", "201 header lines"),
        (b"Content-Type: " + b"x" * 70_000 + b"\n\n", "without a blank line in the first 65000"),
    ],
)
def test_what_is_wrong_is_said(output, message):
    with pytest.raises(ResponseInvalid, match=message):
        parse_response(output, "GET")


def test_white_space_in_a_value_is_read_in_one_go():
    """A function may answer with what a caller sent: time that grows with its square would be the caller's to take."""
    spaces = b" \t" * 30_000
    began = time.process_time()
    response = Answer(*parse_response(b"Content-Type: a/b\nStatus: \t 201 " + spaces + b"b \t \n\n", "GET"))
    assert response.status == 201
    assert time.process_time() - began < 5


@given(st.binary(max_size=300))
def test_any_output_is_a_response_or_refused(output):
    try:
        response = Answer(*parse_response(output, "GET"))
    except ResponseInvalid:
        return
    assert 200 <= response.status < 600
    assert output.endswith(response.body)


TOKEN = "!#$%&'*+.^_`|~0123456789ABCXYZabcxyz-"
OWN = {"status", "location", "content-type", "content-length", "connection", "te", "trailer", "upgrade"}
names = st.text(TOKEN, min_size=1, max_size=12).filter(lambda name: name.lower() not in OWN)
values = st.text(st.sampled_from([chr(c) for c in [9, *range(32, 127), *range(128, 256)]]), max_size=20)


@given(st.lists(st.tuples(names, values), max_size=20), st.binary(max_size=100), st.booleans(), st.integers(200, 599))
def test_what_a_guest_writes_well_arrives_whole(headers, body, crlf, status):
    end = b"\r\n" if crlf else b"\n"
    lines = [f"{name}: {value}" for name, value in [*headers, ("Content-Type", "a/b"), ("Status", str(status))]]
    output = b"".join([line.encode("latin-1") + end for line in lines]) + end + body
    if body and status in BODILESS:
        body, output = b"", output[: len(output) - len(body)]
    response = Answer(*parse_response(output, "GET"))
    lines = [f"{name}: {value}\r\n" for name, value in [*headers, ("Content-Type", "a/b")]]
    assert response.head == "".join(lines).encode("latin-1")
    assert (response.status, response.body) == (status, body)
