"""The ABI WAGI: a request as a CGI/1.1 environment and stdin, a response from stdout (RFC 3875). Pure.

Text here is latin-1: each code point below 256 stands for one byte.
"""

import functools
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote_to_bytes

from edge_runtime.guests.invocation import Request
from edge_runtime.ipc.answer_head import (
    BODILESS,
    CACHED_BYTES,
    LIMIT,
    CheckedResponse,
    Head,
    ResponseInvalid,
    complete,
    parse,
    parse_cached,
)
from edge_runtime.ipc.request_head import RequestUnfit

SOFTWARE = "skerry"


# The request

REQUEST_VARIABLES: Final = frozenset(
    (
        *("GATEWAY_INTERFACE", "SERVER_SOFTWARE", "SERVER_PROTOCOL", "SERVER_NAME", "SERVER_PORT", "REQUEST_METHOD"),
        *("SCRIPT_NAME", "PATH_INFO", "PATH_TRANSLATED", "AUTH_TYPE", "REMOTE_USER", "QUERY_STRING", "REMOTE_ADDR"),
        *("REMOTE_HOST", "SKERRY_FUNCTION", "X_MATCHED_ROUTE", "X_RAW_PATH_INFO", "X_FULL_URL", "HTTPS"),
        *("CONTENT_TYPE", "CONTENT_LENGTH"),
    )
)
"""The variables that `environment` may make from a request, except those from its other headers and parameters."""
_HEADER: Final = "HTTP_"
_PARAMETER: Final = "PATH_PARAM_"
_VARIABLE = re.compile(r"[A-Za-z0-9-]+")
_APART = {"content-type": "CONTENT_TYPE", "content-length": "", "proxy": "", "transfer-encoding": "", "connection": ""}
"""Headers that don't become HTTP_…, with their own variable, or empty if they get none. `Proxy` would become
HTTP_PROXY, which HTTP libraries obey."""


@functools.lru_cache(maxsize=1024)
def _variable(name: str) -> str:
    """Return the environment variable of a header; empty if it gets none. A name with an underscore gets none, because
    X_Y would be taken for X-Y."""
    if not _VARIABLE.fullmatch(name):
        return ""
    apart = _APART.get(name.lower())
    return _HEADER + name.upper().replace("-", "_") if apart is None else apart


def arguments(request: Request, function: str) -> list[str]:
    """Return the command line for a call, as WAGI defines it: the path, and the parts of the query, as they were sent.
    A NUL in them is refused by `environment`."""
    script = request.script if request.route else request.script or f"/functions/{function}"
    return [script + request.path, *filter(None, request.query.split("&"))]


def is_of_request(name: str) -> bool:
    """Return whether a request may have a variable of this name."""
    return name in REQUEST_VARIABLES or name.startswith((_HEADER, _PARAMETER))


def environment(request: Request, function: str, settings: Mapping[str, str]) -> list[str]:
    """Return the environment for a call, as `NAME=value` strings. `settings` (the manifest's config and secrets) come
    last, so that no header can change them.

    Raises: RequestUnfit, when a value has a NUL.
    """
    script = request.script if request.route else request.script or f"/functions/{function}"
    path = unquote_to_bytes(request.path.encode("latin-1")).decode("latin-1") if "%" in request.path else request.path
    variables = {
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_SOFTWARE": SOFTWARE,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": script,
        "PATH_INFO": path,
        # There are no files that it could be translated to; for programs that read it, it has the value that WAGI
        # defines.
        "PATH_TRANSLATED": path,
        "AUTH_TYPE": request.auth_type,
        "REMOTE_USER": request.caller,
        "QUERY_STRING": request.query,
        "REMOTE_ADDR": request.remote_address,
        "REMOTE_HOST": request.remote_address,
        "SKERRY_FUNCTION": function,
        "X_MATCHED_ROUTE": request.route or f"{script}/...",
        "X_RAW_PATH_INFO": request.path,
    }
    carries_body = bool(request.body)
    for name, value in request.headers:
        variable = _variable(name)
        if variable in variables:
            # A variable can exist already only because of an earlier header: no header becomes one of the names above.
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
    for name, value in request.params:
        variables[_PARAMETER + name.upper()] = value
    for name, value in settings.items():
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

_STATUS = re.compile(r"([2-5][0-9][0-9])(?: .*)?")
_BLANK = re.compile(rb"(\r?\n)\r?\n")


def parse_response(output: bytes, method: str) -> CheckedResponse:
    """Parse what a guest wrote to stdout. `method` is the request's.

    Raises: ResponseInvalid, when it isn't a response.
    """
    if output[:1] == b"\n" or output[:2] == b"\r\n":
        raise ResponseInvalid("it wrote a blank line first: header lines come before it")
    blank = _BLANK.search(output, 0, LIMIT)
    if blank is None:
        raise ResponseInvalid(_headless(output))
    block = output[: blank.end(1)]
    head = parse_cached(block) if len(block) <= CACHED_BYTES else parse(block)
    status = status_of(head)
    body = output[blank.end() :]
    if not head.has_content_type or head.length is not None or status in BODILESS:
        return status, complete(head, status, body, method), body
    return status, head.lines, body


def header_lines(output: bytes) -> bytes:
    """Return the header lines of a response, as the guest wrote them."""
    blank = _BLANK.search(output, 0, LIMIT)
    return b"" if blank is None else output[: blank.end(1)]


def status_of(head: Head) -> int:
    """Return the status of a response.

    Raises: ResponseInvalid, when its header lines give it none.
    """
    if head.status is not None:
        return _status(head.status)
    if head.has_location:
        return 302
    if head.has_content_type:
        return 200
    raise ResponseInvalid("it wrote none of Content-Type, Location and Status, of which a response has one at least")


def _headless(output: bytes) -> str:
    if not output:
        return "it wrote nothing to stdout"
    if len(output) > LIMIT:
        return f"it wrote {len(output)} bytes without a blank line in the first {LIMIT}: headers end with one"
    return f"it wrote {len(output)} bytes without the blank line that ends the headers, beginning with {output[:40]!r}"


def _status(value: str) -> int:
    match = _STATUS.fullmatch(value)
    if match is None:
        raise ResponseInvalid(f"it wrote Status: {value[:80]!r}; a status is a number from 200 to 599")
    return int(match[1])
