"""WAGI from end to end: what a client sends and what the guest sees, and the other way round (RFC 3875)."""

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest
import pytest_asyncio

from tests.guests.build import guest
from tests.support.deadlines import deadline
from tests.support.edge import Node
from tests.support.lent_node import NodeLender

LIMIT = 1_000_000
GOOD = b"Content-Type: text/plain\n\n"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def lender(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NodeLender]:
    functions = {
        "env": guest("env"),
        "raw": guest("raw"),
        "echo": (guest("echo"), {"response_limit": LIMIT}),
        "tight": (guest("echo"), {"response_limit": 1000}),
    }
    made = NodeLender(tmp_path_factory.mktemp("node"), functions, body_limit=LIMIT)
    yield made
    await made.end()


@pytest_asyncio.fixture(loop_scope="module")
async def edge(lender: NodeLender) -> AsyncIterator[Node]:
    async with lender.lent() as lent:
        yield lent


async def raw(edge: Node, request: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
    """Send bytes as they are; status, headers in their order, and all else until the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.front.port)
    async with deadline(60):
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        split = [line.partition(":") for line in head[1:] if line]
        headers = [(name.lower(), value.strip()) for name, _, value in split]
        assert len({name for name, _ in headers if name != "set-cookie"}) == len(
            [name for name, _ in headers if name != "set-cookie"]
        )
        length = int(dict(headers).get("content-length", "0"))
        bodiless = request.startswith(b"HEAD ") or head[0].split()[1] in ("204", "304")
        body = b"" if bodiless else await reader.readexactly(length)
        writer.close()
        await writer.wait_closed()
    return int(head[0].split()[1]), headers, body


async def seen(edge: Node, target: str, method: str = "GET", more: str = "") -> tuple[list[str], dict[str, str]]:
    """The arguments and the environment that a guest had of a request."""
    sent = f"{method} /functions/env{target} HTTP/1.1\r\nhost: localhost:1\r\n{more}\r\n"
    status, _, body = await raw(edge, sent.encode("latin-1"))
    assert status == 200, body
    lines = body.decode("latin-1").removesuffix("\n").split("\n")
    arguments = [line.partition(": ")[2] for line in lines if line.startswith("argument ")]
    return arguments, dict(line.split("=", 1) for line in lines[len(arguments) :])


@pytest.mark.parametrize(
    "method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "REPORT", "MERGE", "PURGE"]
)
async def test_any_method_reaches_the_function(edge: Node, method: str) -> None:
    _, variables = await seen(edge, "", method, "content-length: 0\r\n")
    assert variables["REQUEST_METHOD"] == method


async def test_a_head_has_the_head_of_its_get_and_no_body(edge: Node) -> None:
    status, headers, rest = await raw(edge, b"HEAD /functions/env HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert (status, dict(headers)["content-type"], rest) == (200, "text/plain", b"")
    assert int(dict(headers)["content-length"]) > 100


@pytest.mark.parametrize(("line", "length"), [(b"", None), (b"Content-Length: 500\n", "500")])
async def test_a_head_without_a_body_has_the_length_that_its_function_names(
    edge: Node, line: bytes, length: str | None
) -> None:
    status, headers, _ = await answer(edge, line + GOOD, b"HEAD")
    assert (status, dict(headers).get("content-length")) == (200, length)


async def test_a_request_for_a_host_in_its_line_is_told_so(edge: Node) -> None:
    sent = b"GET http://localhost:77/functions/env HTTP/1.1\r\nhost: other\r\n\r\n"
    _, _, body = await raw(edge, sent)
    assert b"\nHTTP_HOST=localhost:77\n" in body
    assert b"\nX_FULL_URL=http://localhost:77/functions/env\n" in body


@pytest.mark.parametrize(
    ("target", "decoded"),
    [
        ("", ""),
        ("/", "/"),
        ("//", "//"),
        ("/a//b/", "/a//b/"),
        ("/.", "/."),
        ("/../../etc/passwd", "/../../etc/passwd"),
        ("/%2e%2E/x", "/../x"),
        ("/a%2Fb", "/a/b"),
        ("/a%20b+c", "/a b+c"),
        ("/%E3%81%82", "/\xe3\x81\x82"),
        ("/%FF", "/\xff"),
        ("/100%", "/100%"),
        ("/%zz%4", "/%zz%4"),
        ("/a;b=1,c:d@e!$&'()*", "/a;b=1,c:d@e!$&'()*"),
        ("/%25", "/%"),
    ],
)
async def test_paths(edge: Node, target: str, decoded: str) -> None:
    arguments, variables = await seen(edge, target)
    assert variables["PATH_INFO"] == variables["PATH_TRANSLATED"] == decoded
    assert variables["X_RAW_PATH_INFO"] == target
    assert (variables["SCRIPT_NAME"], variables["QUERY_STRING"]) == ("/functions/env", "")
    assert variables["X_FULL_URL"] == f"http://localhost:1/functions/env{target}"
    assert arguments == [f"/functions/env{target}"]


@pytest.mark.parametrize(
    ("target", "query", "parts"),
    [
        ("?", "", []),
        ("?a=1&b=2", "a=1&b=2", ["a=1", "b=2"]),
        ("/x?a=%20&&+", "a=%20&&+", ["a=%20", "+"]),
        ("?a?b/c", "a?b/c", ["a?b/c"]),
        ("?-x", "-x", ["-x"]),
    ],
)
async def test_queries_come_as_they_were_sent(edge: Node, target: str, query: str, parts: list[str]) -> None:
    arguments, variables = await seen(edge, target)
    assert variables["QUERY_STRING"] == query
    assert arguments[1:] == parts


async def test_what_no_environment_can_hold_is_the_callers_fault(edge: Node) -> None:
    status, _, body = await raw(edge, b"GET /functions/env/a%00b HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert (status, orjson.loads(body)["code"]) == (400, "request_unfit")
    assert "PATH_INFO has a NUL" in orjson.loads(body)["detail"]


async def test_headers_of_a_request(edge: Node) -> None:
    more = (
        "X-One: 1\r\nx-one: 2\r\nCOOKIE: a=1\r\nCookie: b=2\r\nX_Forged: no\r\nProxy: http://evil\r\n"
        "Content-Type: text/x\r\nX-Empty:\r\nX-Latin: \xe9\r\nAuthorization: Basic abc\r\ncontent-length: 0\r\n"
    )
    _, variables = await seen(edge, "", "POST", more)
    assert variables["HTTP_X_ONE"] == "1, 2"
    assert variables["HTTP_COOKIE"] == "a=1; b=2"
    assert variables["CONTENT_TYPE"] == "text/x"
    assert variables["HTTP_X_EMPTY"] == ""
    assert variables["HTTP_X_LATIN"] == "\xe9"
    assert variables["HTTP_AUTHORIZATION"] == "Basic abc"
    assert not {"HTTP_X_FORGED", "HTTP_PROXY", "HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH"} & set(variables)


async def test_what_rfc_3875_says_that_there_must_be(edge: Node) -> None:
    _, variables = await seen(edge, "/x?y=1")
    assert {name: variables.get(name) for name in MUST} == MUST
    # "If and only if the request is accompanied by a message-body."
    assert "CONTENT_LENGTH" not in variables
    _, _, body = await edge.call("env", b"12345")
    assert b"\nCONTENT_LENGTH=5\n" in body


MUST = {
    "GATEWAY_INTERFACE": "CGI/1.1",
    "PATH_INFO": "/x",
    "QUERY_STRING": "y=1",
    "REMOTE_ADDR": "127.0.0.1",
    "REMOTE_HOST": "127.0.0.1",
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "/functions/env",
    "SERVER_NAME": "localhost",
    "SERVER_PORT": "1",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "SERVER_SOFTWARE": "skerry",
    "AUTH_TYPE": "",
    "REMOTE_USER": "",
}


async def test_a_body_in_chunks_has_its_length(edge: Node) -> None:
    sent = b"POST /functions/env HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    status, _, body = await raw(edge, sent + b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n")
    assert status == 200
    assert b"\nCONTENT_LENGTH=7\n" in body
    assert b"TRANSFER_ENCODING" not in body


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, LIMIT - 1, LIMIT])
async def test_binary_bodies_up_to_the_limit(edge: Node, size: int) -> None:
    body = (bytes(range(256)) * (size // 256 + 1))[:size]
    status, headers, answered = await edge.call("echo", body)
    assert (status, headers["content-length"], answered == body) == (200, str(size), True)


async def test_bodies_above_the_limits(edge: Node) -> None:
    assert (await edge.problem("echo", bytes(LIMIT + 1))) == (413, "body_too_large")
    assert (await edge.call("tight", bytes(1000)))[0] == 200
    assert (await edge.problem("tight", bytes(1001))) == (507, "response_too_large")


async def answer(edge: Node, output: bytes, method: bytes = b"POST") -> tuple[int, list[tuple[str, str]], bytes]:
    """The response to a request whose guest writes `output`."""
    head = b"%s /functions/raw HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % (method, len(output))
    return await raw(edge, head + output)


async def test_repeated_headers_stay_apart_and_in_their_order(edge: Node) -> None:
    output = b"Set-Cookie: a=1; Path=/\nX-A: 1\nSet-Cookie: b=2\nSet-Cookie:c=3\n" + GOOD + b"x"
    status, headers, body = await answer(edge, output)
    assert (status, body) == (200, b"x")
    assert [value for name, value in headers if name == "set-cookie"] == ["a=1; Path=/", "b=2", "c=3"]


@pytest.mark.parametrize(
    ("output", "status", "headers", "body"),
    [
        (b"Status: 201 Created\nLocation: /raw/7\n" + GOOD + b"made", 201, {"location": "/raw/7"}, b"made"),
        (b"Location: https://example.com/\n\n", 302, {"location": "https://example.com/"}, b""),
        (b"Location: /functions/env\n\n", 302, {"location": "/functions/env"}, b""),
        (b"Status: 303\nLocation: /x\n\n", 303, {"location": "/x"}, b""),
        (b"Status: 204\n\n", 204, {}, b""),
        (b"Status: 304 Not Modified\nETag: \"a\"\n\n", 304, {"etag": '"a"'}, b""),
        (b"Status: 404\r\nContent-Type: a/b\r\n\r\n\0\xff\r\n\r\n", 404, {"content-type": "a/b"}, b"\0\xff\r\n\r\n"),
        (b"Status: 599 Odd\n" + GOOD, 599, {"content-type": "text/plain"}, b""),
        (b"Content-Length: 2\n" + GOOD + b"ab", 200, {"content-length": "2"}, b"ab"),
        (b"X-Latin: \xe9\n" + GOOD, 200, {"x-latin": "\xe9"}, b""),
        (b"Date: Tue, 15 Nov 1994 08:12:31 GMT\n" + GOOD, 200, {"content-type": "text/plain"}, b""),
        (b"Status: 205\n" + GOOD, 205, {"content-length": "0"}, b""),
    ],
)  # fmt: skip
async def test_responses(edge: Node, output: bytes, status: int, headers: dict[str, str], body: bytes) -> None:
    answered, sent, rest = await answer(edge, output)
    assert (answered, rest) == (status, body)
    assert headers.items() <= dict(sent).items()
    assert ("content-length" in dict(sent)) == (status not in (204, 304))
    assert "status" not in dict(sent)


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (b"", "nothing to stdout"),
        (b"just text", "without the blank line that ends the headers, beginning with b'just text'"),
        (b"no colon\n\n", "the header line 'no colon', which has no colon"),
        (GOOD[:-1] + b"X Y: 1\n\n", "the header name 'X Y'"),
        (GOOD[:-1] + b"X: \x07\n\n", "a control character in the value of X"),
        (GOOD[:-1] + b"X: a\rSet-Cookie: b\n\n", "a control character in the value of X"),
        (GOOD[:-1] + b" folded\n\n", "' folded', which has no colon"),
        (GOOD[:-1] + b"Connection: close\n\n", "Connection, which is for the server"),
        (GOOD[:-1] + b"Transfer-Encoding: chunked\n\n", "Transfer-Encoding, which is for the server"),
        (GOOD[:-1] + b"Skerry-Release: 9\n\n", "Skerry-Release, which is for the server"),
        (GOOD[:-1] + GOOD, "Content-Type twice"),
        (b"Status: 100\n\n", "a status is a number from 200 to 599"),
        (b"Status: 200\n\nbody", "a body without a Content-Type"),
        (b"Status: 204\n" + GOOD + b"body", "a body of 4 bytes with the status 204"),
        (b"Status: 205\n" + GOOD + b"body", "a body of 4 bytes with the status 205"),
        (b"Content-Length: 5\n" + GOOD + b"four", "Content-Length: 5 and a body of 4 bytes"),
        (b"X: 1\n\n", "none of Content-Type, Location and Status"),
        (b"X: 1\n" * 129 + GOOD, "130 header lines; 128 are allowed"),
    ],
)
async def test_what_a_guest_writes_wrongly_is_said(edge: Node, output: bytes, told: str) -> None:
    status, _, body = await answer(edge, output)
    problem = orjson.loads(body)
    assert (status, problem["code"]) == (502, "guest_response_invalid")
    assert told in problem["detail"]
    assert "The function raw failed." in problem["detail"]


async def test_the_largest_head_goes_out_whole(edge: Node) -> None:
    lines = b"".join([b"X-%03d: %s\n" % (number, b"v" * 490) for number in range(127)])
    status, headers, body = await answer(edge, lines + GOOD + b"x")
    assert (status, body) == (200, b"x")
    assert len([name for name, value in headers if name.startswith("x-") and value == "v" * 490]) == 127
