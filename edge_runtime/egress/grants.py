"""Decides which HTTP requests a function may have the node make, and parses them strictly. Pure."""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from control.protocol.manifest import HttpGrant
from edge_runtime.ipc import http_messages
from edge_runtime.ipc.http_messages import NotFetched

URL_LIMIT: Final = 8_192
HEADERS_LIMIT: Final = 128
HEADER_BYTES_LIMIT: Final = 32_768
"""Bytes of a request's header names and values together."""
HEAD_LIMIT: Final = 262_144
"""Bytes of a request's head as JSON; a head within the limits above is shorter."""
PORTS: Final = {"https": 443, "http": 80}

_URL: Final = re.compile(r"(https?)://([^/?#\\]*)([^#]*)(?:#.*)?", re.IGNORECASE)
_AUTHORITY: Final = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")
_TARGET: Final = re.compile(r"[!-~]*")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\U0010ffff]*")
"""A header's value; it is sent as UTF-8."""


class Outgoing(NamedTuple):
    """A request that a grant allows."""

    method: str
    scheme: str
    host: str
    """A name in lower case, or an address (IPv6 without brackets)."""
    port: int
    target: str
    """Path and query, from the slash on."""
    headers: list[tuple[str, str]]
    body: bytes
    lasting: bool
    """The grant names exactly this host, so a connection to it is worth keeping."""


def read(request: bytes, grant: HttpGrant) -> Outgoing:
    """Return the request in a function's parcel. Raises: NotFetched, when the grant or HTTP doesn't allow it."""
    head, data = http_messages.unpack(request)
    if len(head) > HEAD_LIMIT:
        raise _invalid(f"The request's URL and headers have {len(head)} bytes as JSON; {HEAD_LIMIT} are allowed.")
    try:
        fields = http_messages.decode_asked(head)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(f"The request isn't as it must be: {error}") from None
    scheme, host, port, target = split(fields.url)
    pattern = granted(grant.hosts, scheme, host, port)
    if pattern is None:
        # As it would be written there: https is meant where no scheme is.
        pattern = shown(scheme, host, port).removeprefix("https://")
        text = f"The manifest's `http.hosts` doesn't name `{pattern}`."
        raise NotFetched("not_granted", text, "http_host")
    if not _TOKEN.fullmatch(fields.method):
        raise _invalid("The method isn't one.")
    if fields.method not in grant.methods:
        listed = ", ".join(grant.methods)
        text = f"The manifest's `http.methods` doesn't name {fields.method[:16]}; it has {listed}."
        raise NotFetched("not_granted", text, "http_method")
    if len(data) > grant.request_bytes:
        text = (
            f"The request's body has {len(data)} bytes; the manifest's `http.request_bytes` is {grant.request_bytes}."
        )
        raise NotFetched("http_too_large", text)
    headers = _headers(fields.headers, host, port, scheme, len(data))
    lasting = "*" not in pattern
    return Outgoing(fields.method, scheme, host, port, target, headers, data, lasting)


def granted(hosts: Iterable[str], scheme: str, host: str, port: int) -> str | None:
    """Return the pattern of a grant that allows this host (in lower case, or an address); None if none does."""
    names = [_bracketed(host)]
    if ":" not in host and not _is_address(host):
        labels = host.split(".")
        names += ["*." + ".".join(labels[at:]) for at in range(1, len(labels))]
    prefix = "" if scheme == "https" else "http://"
    ports = [f":{port}", ""] if port == PORTS[scheme] else [f":{port}"]
    named = set(hosts)
    return next((p for name in names for end in ports if (p := f"{prefix}{name}{end}") in named), None)


def shown(scheme: str, host: str, port: int) -> str:
    """Return the beginning of a URL, without the port that its scheme has anyway."""
    return f"{scheme}://{_bracketed(host)}" + ("" if port == PORTS[scheme] else f":{port}")


def _invalid(message: str) -> NotFetched:
    return NotFetched("http_request_invalid", message)


def split(url: str) -> tuple[str, str, int, str]:
    """Return scheme, host, port and target of a URL.

    Raises: NotFetched, when it isn't one, or another parser might read it differently.
    """
    if len(url) > URL_LIMIT:
        raise _invalid(f"The URL has {len(url)} characters; {URL_LIMIT} are allowed.")
    match = _URL.fullmatch(url)
    if match is None:
        raise _invalid("The URL must begin with https:// or http://.")
    scheme, authority, target = match[1].lower(), match[2], match[3]
    if "@" in authority:
        raise _invalid("The URL has a user's name or password: send an Authorization header.")
    split = _AUTHORITY.fullmatch(authority)
    if split is None:
        raise _invalid("The URL's host is no name in ASCII and no address.")
    if not _TARGET.fullmatch(target):
        raise _invalid("The URL has a character that must be percent-encoded.")
    host, port = split[1].lower(), int(split[2]) if split[2] else PORTS[scheme]
    if not 1 <= port <= 65_535:
        raise _invalid("The URL's port must be 1 to 65535.")
    if host.startswith("["):
        try:
            host = str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise _invalid("The URL's host is no IPv6 address.") from None
    if target[:1] in ("", "?"):
        target = "/" + target
    elif target[0] != "/":
        # It starts with a backslash, which some parsers read as a slash.
        raise _invalid("The URL's host is no name in ASCII and no address.")
    return scheme, host, port, target


def _headers(given: Sequence[tuple[str, str]], host: str, port: int, scheme: str, length: int) -> list[tuple[str, str]]:
    """Return the headers to send: the given ones, without those that the node writes itself."""
    if len(given) > HEADERS_LIMIT or sum(len((name + value).encode()) for name, value in given) > HEADER_BYTES_LIMIT:
        raise _invalid(f"A request may have {HEADERS_LIMIT} headers of {HEADER_BYTES_LIMIT} bytes together.")
    own_host = {f"{_bracketed(host)}:{port}"} | ({_bracketed(host)} if port == PORTS[scheme] else set())
    kept = []
    for name, value in given:
        if not _TOKEN.fullmatch(name):
            raise _invalid(f"The header name {name[:80]!r} has characters that no name may have.")
        value = value.strip(" \t")
        if not _VALUE.fullmatch(value):
            raise _invalid(f"The value of the header {name} has a character that no value may have.")
        lower = name.lower()
        if lower in http_messages.HOP_BY_HOP:
            raise _invalid(f"The header {name} is about the connection, which is the node's.")
        if lower == "host":
            if value.lower() not in own_host:
                raise _invalid("The Host header names another host than the URL.")
        elif lower == "content-length":
            if value != str(length):
                raise _invalid(f"The Content-Length is {value[:20]}, and the body has {length} bytes.")
        else:
            kept.append((name, value))
    return kept


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_address(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True
