"""WAGI: a request as a CGI/1.1 environment and stdin, a response from stdout (RFC 3875). Pure.

Text here is latin-1: each code point below 256 stands for the byte that was sent or will be.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

HEAD_LIMIT = 65_000
"""Bytes of a response's header lines: as they go out they are a little longer, and a frame's head holds 65,535."""
HEADERS_LIMIT = 128

SOFTWARE = "skerry"


class RequestUnfit(ValueError):
    """The request can't be told to a guest in an environment; the message says what of it."""


class ResponseInvalid(ValueError):
    """The guest's output is no CGI response; the message says what it wrote wrongly."""


@dataclass(frozen=True, slots=True)
class Request:
    """One call. Text is as it was sent: `path` (below the function's route, "" or beginning with a slash) and `query`
    percent-encoded; header names in any case."""

    method: str
    path: str = ""
    query: str = ""
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""
    remote_address: str = "127.0.0.1"
    scheme: str = "http"


@dataclass(frozen=True, slots=True)
class Response:
    """What the guest answered. Without Content-Length, which whoever sends it computes from `body`."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    log: bytes = field(default=b"", compare=False)
    """What the guest wrote to stderr, cut at its bound."""


# The request

_VARIABLE = re.compile(r"[A-Za-z0-9-]+")
_APART = {"content-type": "CONTENT_TYPE", "content-length": "", "proxy": "", "transfer-encoding": "", "connection": ""}
"""Headers that don't become HTTP_…: their own variable, or none (`Proxy` would be HTTP_PROXY, which libraries obey)."""


@functools.lru_cache(maxsize=1024)
def _variable(name: str) -> str:
    """The environment variable of a header, "" for none. A name with an underscore has none: X_Y would pass for X-Y."""
    if not _VARIABLE.fullmatch(name):
        return ""
    apart = _APART.get(name.lower())
    return "HTTP_" + name.upper().replace("-", "_") if apart is None else apart


def environment(request: Request, function: str, script: str, config: Mapping[str, str]) -> list[str]:
    """The environment for a call, as `NAME=value` strings. `script` is the function's route.

    The manifest's `config` comes last and wins: no header can change it. Error: RequestUnfit.
    """
    path = unquote_to_bytes(request.path).decode("latin-1") if "%" in request.path else request.path
    variables = {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_SOFTWARE": SOFTWARE,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": script,
        "PATH_INFO": path,
        "QUERY_STRING": request.query,
        "REMOTE_ADDR": request.remote_address,
        "REMOTE_HOST": request.remote_address,
        "SKERRY_FUNCTION": function,
        "X_MATCHED_ROUTE": f"{script}/...",
        "X_RAW_PATH_INFO": request.path,
    }
    carries_body = bool(request.body)
    for name, value in request.headers:
        variable = _variable(name)
        if variable in variables:
            # Only what headers gave can be met twice: the names above are none of theirs.
            value = variables[variable] + ("; " if variable == "HTTP_COOKIE" else ", ") + value
        if variable:
            variables[variable] = value
        elif not carries_body and name.lower() == "content-length":
            carries_body = True
    if carries_body:
        variables["CONTENT_LENGTH"] = str(len(request.body))
    host = variables.get("HTTP_HOST", "localhost")
    name, port = _host(host, request.scheme)
    variables["SERVER_NAME"], variables["SERVER_PORT"] = name, port
    query = f"?{request.query}" if request.query else ""
    variables["X_FULL_URL"] = f"{request.scheme}://{host}{script}{request.path}{query}"
    if request.scheme == "https":
        variables["HTTPS"] = "on"
    for name, value in config.items():
        variables[name] = value.encode().decode("latin-1")
    strings = [f"{name}={value}" for name, value in variables.items()]
    if "\0" in "".join(strings):
        raise RequestUnfit(_named(variables) + " has a NUL, which no environment variable can hold")
    return strings


def _host(host: str, scheme: str) -> tuple[str, str]:
    name, colon, port = host.rpartition(":")
    if colon and port.isdigit():
        return name, port
    return host, "443" if scheme == "https" else "80"


def _named(variables: Mapping[str, str]) -> str:
    return next(name for name, value in variables.items() if "\0" in value)


# The response

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_STATUS = re.compile(r"([2-5][0-9][0-9])(?: .*)?")
_BLANK = re.compile(rb"\r?\n\r?\n")
_CGI_FIELDS = ("status", "content-type", "location")
_SERVERS_OWN = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
"""Headers about the connection, which is the server's."""


def parse_response(output: bytes, method: str) -> Response:
    """A guest's output as a response. `method` is the request's (a HEAD's answer may name the length that a GET's
    would have). Error: ResponseInvalid."""
    if output[:1] == b"\n" or output[:2] == b"\r\n":
        raise ResponseInvalid("it wrote a blank line first: header lines come before it")
    blank = _BLANK.search(output, 0, HEAD_LIMIT)
    if blank is None:
        raise ResponseInvalid(_headless(output))
    body = output[blank.end() :]
    status, headers, length, typed = _head(output[: blank.start()])
    if body and status in (204, 304):
        raise ResponseInvalid(f"it wrote a body of {len(body)} bytes with the status {status}, which has none")
    if length is not None and length != len(body) and (body or not (method == "HEAD" or status == 304)):
        raise ResponseInvalid(f"it wrote Content-Length: {length} and a body of {len(body)} bytes")
    if body and not typed:
        raise ResponseInvalid("it wrote a body without a Content-Type")
    return Response(status, headers, body)


def _headless(output: bytes) -> str:
    if not output:
        return "it wrote nothing to stdout"
    if len(output) > HEAD_LIMIT:
        return f"it wrote {len(output)} bytes without a blank line in the first {HEAD_LIMIT}: headers end with one"
    return f"it wrote {len(output)} bytes without the blank line that ends the headers, beginning with {output[:40]!r}"


def _head(head: bytes) -> tuple[int, list[tuple[str, str]], int | None, bool]:
    """Status, headers, Content-Length, whether there was a Content-Type."""
    lines = head.decode("latin-1").replace("\r\n", "\n").split("\n")
    if len(lines) > HEADERS_LIMIT:
        raise ResponseInvalid(f"it wrote {len(lines)} header lines; {HEADERS_LIMIT} are allowed")
    headers: list[tuple[str, str]] = []
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        value = value.strip(" \t")
        if not colon:
            raise ResponseInvalid(f"it wrote the header line {line[:80]!r}, which has no colon")
        if not _TOKEN.fullmatch(name):
            raise ResponseInvalid(f"it wrote the header name {name[:80]!r}, which has characters that no name may have")
        if not _VALUE.fullmatch(value):
            raise ResponseInvalid(f"it wrote a control character in the value of {name}: {value[:80]!r}")
        lower = name.lower()
        if lower in _SERVERS_OWN:
            raise ResponseInvalid(f"it wrote the header {name}, which is for the server to write")
        if lower in _CGI_FIELDS or lower == "content-length":
            if lower in fields:
                raise ResponseInvalid(f"it wrote {name} twice")
            fields[lower] = value
            if lower in ("status", "content-length"):
                continue
        headers.append((name, value))
    if not any(name in fields for name in _CGI_FIELDS):
        raise ResponseInvalid(
            "it wrote none of Content-Type, Location and Status, of which a response has one at least"
        )
    return _status(fields), headers, _length(fields), "content-type" in fields


def _status(fields: Mapping[str, str]) -> int:
    if "status" not in fields:
        return 302 if "location" in fields else 200
    found = _STATUS.fullmatch(fields["status"])
    if found is None:
        raise ResponseInvalid(f"it wrote Status: {fields['status'][:80]!r}; a status is a number from 200 to 599")
    return int(found[1])


def _length(fields: Mapping[str, str]) -> int | None:
    length = fields.get("content-length")
    if length is None:
        return None
    if not (length.isascii() and length.isdigit() and len(length) < 20):
        raise ResponseInvalid(f"it wrote Content-Length: {length[:80]!r}, which is no number")
    return int(length)
