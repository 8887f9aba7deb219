"""What a function may ask the node to fetch: the request read strictly, and the grant held against a model."""

import itertools
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control import manifest_rules
from control.protocol.manifest import HttpGrant, Manifest
from edge_runtime.egress import grants
from edge_runtime.guests import http_json
from edge_runtime.ipc import http_messages
from edge_runtime.ipc.http_messages import NotFetched

GRANT = HttpGrant(["a.example", "http://b.example:8080", "*.c.example", "[::1]:99"], ("GET", "POST"), 100)


def read(grant: HttpGrant = GRANT, **asked: Any) -> grants.Outgoing:
    return grants.read(http_json.to_front(orjson.dumps(asked))[2], grant)


def refused(grant: HttpGrant = GRANT, **asked: Any) -> NotFetched:
    with pytest.raises(NotFetched) as error:
        read(grant, **asked)
    assert str(error.value)
    return error.value


def test_a_request_is_taken_apart() -> None:
    assert read(url="https://A.Example?q=1#part", headers=[["X-One", " 1 "], ["x-one", "2"]]) == grants.Outgoing(
        "GET", "https", "a.example", 443, "/?q=1", [("X-One", "1"), ("x-one", "2")], b"", True
    )
    asked = read(url="HTTP://b.example:8080/p/%2e%2e/..?a b"[:-2], method="POST", body="ü")
    assert (asked.scheme, asked.port, asked.target, asked.body) == ("http", 8080, "/p/%2e%2e/..?a", "ü".encode())
    assert read(url="https://[0:0::1]:99/", method="POST", body={"$blob": "AAE="})[2:7] == ("::1", 99, "/", [], b"\0\1")
    assert read(url="https://x.y.c.example/").lasting is False
    # What clients send by habit, where it is right.
    habits = [["Host", "a.example"], ["Content-Length", "2"]]
    assert read(url="https://a.example/", method="POST", headers=habits, body="ab").headers == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a.example",
        "//a.example/",
        "ftp://a.example/",
        "file:///etc/passwd",
        "https:/a.example/",
        "https://",
        "https:///path",
        "https://user@a.example/",
        "https://a.example:443@evil.example/",
        "https://a.example\\@evil.example/",
        "https://a.example\\.evil.example/",
        "https://a.example:/",
        "https://a.example:0/",
        "https://a.example:65536/",
        "https://a.example:99999999/",
        "https://a%2eexample/",
        "https://a.example /",
        "https://a.exämple/",
        "https://[::1/",
        "https://[::1%25eth0]/",
        "https://[zz]/",
        "https://a.example/a b",
        "https://a.example/\r\nX: y",
        "https://a.example/ü",
        " https://a.example/",
        "https://a.example/\n",
        "https://a.example/" + "a" * 9000,
    ],
)
def test_a_url_that_others_might_read_otherwise_is_refused(url: str) -> None:
    assert refused(url=url).code == "http_request_invalid"


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("http://a.example/", "http_host"),
        ("https://a.example:444/", "http_host"),
        ("https://a.example./", "http_host"),
        ("https://b.example:8080/", "http_host"),
        ("http://b.example/", "http_host"),
        ("https://c.example/", "http_host"),
        ("https://xc.example/", "http_host"),
        ("https://x.c.example:444/", "http_host"),
        ("https://a.example.evil.example/", "http_host"),
        ("https://[::1]/", "http_host"),
        ("https://[::2]:99/", "http_host"),
        ("https://127.0.0.1/", "http_host"),
    ],
)
def test_what_the_grant_does_not_name_is_denied(url: str, kind: str) -> None:
    error = refused(url=url)
    assert (error.code, error.denied) == ("not_granted", kind)


def test_methods_sizes_and_headers_have_bounds() -> None:
    assert refused(url="https://a.example/", method="PUT").denied == "http_method"
    assert refused(url="https://a.example/", method="get").denied == "http_method"
    assert refused(url="https://a.example/", method="GE T").code == "http_request_invalid"
    assert refused(url="https://a.example/", body="x" * 101).code == "http_too_large"
    for name, value in (
        ("Connection", "close"),
        ("Transfer-Encoding", "chunked"),
        ("Proxy-Authorization", "x"),
        ("Upgrade", "x"),
        ("Host", "evil.example"),
        ("Content-Length", "3"),
        ("X y", "1"),
        ("X", "a\r\nY: b"),
        ("X", "a\x7f"),
        ("", "1"),
    ):
        error = refused(url="https://a.example/", headers=[[name, value]])
        assert (error.code, error.denied) == ("http_request_invalid", ""), name
    assert refused(url="https://a.example/", headers=[["X", "1"]] * 129).code == "http_request_invalid"
    for long in ("1" * 40_000, "ü" * 20_000):
        assert refused(url="https://a.example/", headers=[["X", long]]).code == "http_request_invalid"


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"[]",
        b"{}",
        b'{"url": 1}',
        b'{"url": "https://a.example/", "more": 1}',
        b'{"url": "https://a.example/", "headers": {"a": "b"}}',
        b'{"url": "https://a.example/", "body": {"$blob": "!"}}',
        b'{"url": "https://a.example/", "body": {"blob": ""}}',
        b'{"url": "\xff"}',
        b"[" * 100_000,
    ],
)
def test_a_request_of_another_form_is_refused(request_: bytes) -> None:
    with pytest.raises(NotFetched) as error:
        http_json.to_front(request_)
    assert error.value.code == "http_request_invalid"


NAMES = ["a.example", "b.a.example", "c.b.a.example", "example", "10.0.0.1", "xa.example"]
PATTERNS = [
    f"{scheme}{star}{name}{port}"
    for scheme, star, name, port in itertools.product(("", "http://"), ("", "*."), NAMES, ("", ":443", ":80", ":8443"))
]


def allows(pattern: str, scheme: str, host: str, port: int) -> bool:
    """The rule as docs/functions.md says it."""
    wanted, _, rest = pattern.rpartition("http://")
    del wanted
    if scheme != ("http" if pattern.startswith("http://") else "https"):
        return False
    name, _, given = rest.partition(":")
    if port != (int(given) if given else {"https": 443, "http": 80}[scheme]):
        return False
    if name.startswith("*."):
        return host.endswith(name[1:]) and not host[0].isdigit()
    return host == name


@given(
    st.lists(st.sampled_from(PATTERNS), max_size=3),
    st.sampled_from(["http", "https"]),
    st.sampled_from(NAMES),
    st.sampled_from([80, 443, 8443]),
)
def test_a_grant_allows_what_its_patterns_say(hosts: list[str], scheme: str, host: str, port: int) -> None:
    found = grants.granted(hosts, scheme, host, port)
    assert (found is not None) == any(allows(pattern, scheme, host, port) for pattern in hosts)
    assert found is None or found in hosts


@given(st.text(max_size=80))
def test_no_url_gets_past_the_pattern_of_another_host(text: str) -> None:
    """Whatever is put into a URL, what is fetched is of a host that the grant names."""
    grant = HttpGrant(["a.example"])
    for url in (text, f"https://{text}", f"https://{text}a.example/", f"https://a.example{text}"):
        try:
            asked = read(grant, url=url)
        except (NotFetched, TypeError):
            continue
        assert (asked.scheme, asked.host, asked.port) == ("https", "a.example", 443)
        assert asked.target.startswith("/")
        assert asked.target.isascii()
        assert asked.target.isprintable()


def test_every_pattern_that_control_takes_can_be_met() -> None:
    for pattern in ("a.example", "*.a.example:8443", "http://10.0.0.1:80", "[::1]", "http://[fe80::1]:9"):
        grant = msgspec.convert({"hosts": [pattern]}, HttpGrant)
        manifest_rules.check(Manifest(http=grant))
        scheme, _, rest = pattern.rpartition("://")
        read(grant, url=f"{scheme or 'https'}://{rest.replace('*', 'x')}/")


def answer(headers: list[tuple[str, str]], body: bytes) -> Any:
    raw = [(name.encode(), value.encode()) for name, value in headers]
    return orjson.loads(http_json.to_guest(http_messages.answer(200, raw, body)))


def test_an_answer_is_text_or_a_blob_without_the_connections_headers() -> None:
    headers = [("Content-Type", "text/plain"), ("Connection", "X-Hop, close"), ("x-hop", "1"), ("Set-Cookie", "a=b")]
    assert answer(headers, "ü".encode()) == {
        "status": 200,
        "headers": [["content-type", "text/plain"], ["set-cookie", "a=b"]],
        "body": "ü",
    }
    assert answer([], b"")["body"] == ""
    assert answer([], b'"\\\n')["body"] == '"\\\n'
    assert answer([], b"\xff")["body"] == {"$blob": "/w=="}
    assert answer([], b"a\0")["body"] == {"$blob": "YQA="}
    told = http_json.to_guest(http_messages.parcel(http_messages.refused("c", "m")))
    assert orjson.loads(told) == {"error": {"code": "c", "message": "m"}}


@pytest.mark.parametrize("parcel", [b"", b"\0", b"\0\0\0\5[]", b"\xff\xff\xff\xff{}", b"\0\0\0\2[]", b"\0\0\0\4null"])
def test_a_parcel_that_no_worker_of_ours_makes_is_refused(parcel: bytes) -> None:
    for data in (parcel, http_messages.parcel(b'["GET", "https://a.example/", []]' + b" " * grants.HEAD_LIMIT)):
        with pytest.raises(NotFetched) as error:
            grants.read(data, GRANT)
        assert error.value.code == "http_request_invalid"
