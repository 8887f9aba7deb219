"""What a manifest may say beyond its types, and which routes are refused beside each other."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control import manifest_rules
from control.protocol import wire
from control.protocol.manifest import Manifest, Route, completed, manifest_digest, sql_grant

METHODS = st.sampled_from(["GET", "HEAD", "POST", "PUT"])


def manifest(**fields: Any) -> Manifest:
    return msgspec.convert(fields, Manifest)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"abi": "wagi", "entry": "run"}, "entry"),
        ({"abi": "direct", "entry": "run"}, "entry"),
        ({"abi": "extism", "route": {"path": "/a"}}, "entry"),
        ({"config": {"PATH_INFO": "x"}}, "config"),
        ({"config": {"HTTP_HOST": "x"}}, "config"),
        ({"config": {"PATH_PARAM_ID": "x"}}, "config"),
        ({"config": {"NUL": "a\0b"}}, "config"),
        ({"secrets": ["REQUEST_METHOD"]}, "secrets"),
        ({"secrets": ["KEY", "KEY"]}, "secrets"),
        ({"secrets": ["KEY"], "config": {"KEY": "x"}}, "secrets"),
        ({"http": {"hosts": ["a.example"], "methods": ["CONNECT"]}}, "http.methods"),
        ({"http": {"hosts": ["a.example:65536"]}}, "http.hosts"),
        ({"http": {"hosts": ["[1:2:3]"]}}, "http.hosts"),
        ({"http": {"hosts": ["[0:0:0:0:0:0:0:1]"]}}, "http.hosts"),
        ({"http": {"hosts": ["127.1"]}}, "http.hosts"),
        ({"http": {"hosts": ["2130706433"]}}, "http.hosts"),
        ({"http": {"hosts": ["1.2.3.04"]}}, "http.hosts"),
        ({"cors": {"origins": ["*", "https://a.example"]}}, "cors.origins"),
        ({"cors": {"origins": ["https://a.example:443"]}}, "cors.origins"),
        ({"cors": {"origins": ["http://[::1]:80"]}}, "cors.origins"),
        ({"cors": {"origins": ["http://a.example:65536"]}}, "cors.origins"),
        ({"cors": {"origins": ["*"], "credentials": True}}, "cors.credentials"),
        ({"cors": {"origins": ["null"], "credentials": True}}, "cors.credentials"),
        ({"navigation": True, "sql": "write", "read_only_methods": []}, "navigation"),
        ({"navigation": True, "sql": "write", "read_only_methods": ["GET"]}, "navigation"),
        ({"route": {"path": "/functions/x"}}, "route.path"),
        ({"route": {"path": "/a", "hosts": ["127.1"]}}, "route.hosts"),
        ({"route": {"path": "/a", "hosts": ["*.0.0.1"]}}, "route.hosts"),
        ({"route": {"path": "/_skerry"}}, "route.path"),
        ({"route": {"path": "/a/../b"}}, "route.path"),
        ({"route": {"path": "/{a}/{a}"}}, "route.path"),
        ({"route": {"path": "/{a}/{a...}"}}, "route.path"),
        ({"schedule": ["0 3 * *"]}, "schedule"),
        ({"schedule": ["0 3 * * *", "0 3 * * *"]}, "schedule"),
        ({"schedule": ["0 3 * * *"], "timezone": "Europe/Atlantis"}, "timezone"),
        ({"schedule": ["0 3 * * *"], "timezone": "/etc/passwd"[1:]}, "timezone"),
        ({"schedule": ["*/5 * * * *"], "jitter_seconds": 300}, "jitter_seconds"),
        ({"schedule": ["0 3 * * *"], "missed_most": 7}, "missed_most"),
        ({"timezone": "Europe/Berlin"}, "timezone"),
        ({"jitter_seconds": 1}, "jitter_seconds"),
        ({"missed": "all", "on_release": True}, "missed"),
        ({"abi": "extism", "schedule": ["0 3 * * *"]}, "entry"),
        ({"abi": "extism", "on_release": True}, "entry"),
    ],
)
def test_a_manifest_is_refused_and_the_field_named(fields, field):
    with pytest.raises(manifest_rules.ManifestUnfit) as refused:
        manifest_rules.check(manifest(**fields))
    assert refused.value.field == field
    assert str(refused.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"cors": {}},
        {"cors": {"origins": []}},
        {"cors": {"origins": ["a.example"]}},
        {"cors": {"origins": ["https://a.example/"]}},
        {"cors": {"origins": ["https://A.example"]}},
        {"cors": {"origins": ["https://*.a.example"]}},
        {"cors": {"origins": ["https://a.example\n"]}},
        {"cors": {"origins": ["*"], "headers": ["a b"]}},
        {"cors": {"origins": ["*"], "headers": ["*"]}},
        {"cors": {"origins": ["*"], "methods": []}},
        {"cors": {"origins": ["*"], "max_age": -1}},
        {"http": {"hosts": []}},
        {"http": {"hosts": ["https://a.example"]}},
        {"http": {"hosts": ["a.example/path"]}},
        {"http": {"hosts": ["user@a.example"]}},
        {"http": {"hosts": ["A.example"]}},
        {"http": {"hosts": ["*"]}},
        {"http": {"hosts": ["a.*.example"]}},
        {"http": {"hosts": ["a.example:0"]}},
        {"http": {"hosts": ["a.example\n"]}},
        {"route": {"path": "orders"}},
        {"route": {"path": "/a//b"}},
        {"route": {"path": "/a/{b"}},
        {"route": {"path": "/a/x{b}"}},
        {"route": {"path": "/{rest...}/b"}},
        {"route": {"path": "/a?b"}},
        {"route": {"path": "/a%20b"}},
        {"route": {"path": "/a\n"}},
        {"route": {"path": "/a", "methods": ["get"]}},
        {"route": {"path": "/a", "hosts": ["Shop.example"]}},
        {"route": {"path": "/a", "hosts": ["shop.example:80"]}},
        {"route": {"path": "/a", "hosts": ["shop.example."]}},
        {"route": {"path": "/a", "hosts": ["http://shop.example"]}},
        {"route": {"path": "/a", "hosts": ["köln.example"]}},
        {"route": {"path": "/a", "hosts": ["*"]}},
        {"route": {"path": "/a", "hosts": ["*.example"]}},
        {"route": {"path": "/a", "hosts": ["a.*.example"]}},
        {"route": {"path": "/a", "hosts": ["[::1]"]}},
        {"route": {"path": "/a", "hosts": ["a" * 64 + ".example"]}},
        {"route": {"path": "/a", "hosts": [".".join(["a" * 60] * 5)]}},
        {"route": {"path": "/a", "hosts": [""]}},
        {"route": {"path": "/a", "hosts": [f"h{number}.example" for number in range(17)]}},
        {"config": {"1X": "a"}},
        {"secrets": ["A=B"]},
    ],
)
def test_a_manifest_of_another_form_is_refused(fields):
    with pytest.raises(msgspec.ValidationError):
        manifest(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"entry": "run"},
        {"abi": "extism", "entry": "run", "config": {"vowels": "aeiou"}, "secrets": ["API_KEY"]},
        {"http": {"hosts": ["a.example", "*.b.example:8443", "http://10.0.0.1:80", "[::1]", "http://[::1]:9"]}},
        {"cors": {"origins": ["https://a.example:8443", "http://[::1]", "null", "app://x", "http://10.0.0.1"]}},
        {"cors": {"origins": ["*"], "headers": ["Authorization", "x-a"], "methods": ["PUT"], "max_age": 0}},
        {"cors": {"origins": ["https://a.example"], "credentials": True}},
        {"navigation": True},
        {"navigation": True, "sql": "write"},
        {"navigation": True, "sql": "read", "read_only_methods": []},
        {"route": {"path": "/"}},
        {"route": {"path": "/orders/{id}/lines/{line}", "methods": ["GET", "PUT"]}},
        {"route": {"path": "/files/{path...}"}},
        {"route": {"path": "/a.b/~c/"}},
        {"route": {"path": "/", "hosts": ["shop.example", "*.shop.example", "xn--kln-sna.example", "10.0.0.7"]}},
        {"route": {"path": "/", "hosts": ["till", "localhost"]}},
        {"schedule": ["*/5 * * * *", "0 3 * * SUN"], "timezone": "Europe/Berlin", "jitter_seconds": 299},
        {"schedule": ["0 3 * * *"], "missed": "all", "missed_most": 7, "on_release": True},
        {"abi": "extism", "entry": "run", "schedule": ["0 3 * * *"]},
    ],
)
def test_a_manifest_is_taken(fields):
    manifest_rules.check(manifest(**fields))


@pytest.mark.parametrize(
    ("one", "other", "conflicts"),
    [
        (("/a", []), ("/a", []), True),
        (("/a", ["GET"]), ("/a", ["POST"]), False),
        (("/a", ["GET"]), ("/a", []), True),
        (("/a/{x}", ["GET"]), ("/a/{y}", ["GET", "PUT"]), True),
        (("/a/{x}", []), ("/a/b", []), False),
        (("/a/{x}", []), ("/{y}/b", []), False),
        (("/a/{x...}", []), ("/a/{y...}", []), True),
        (("/a/{x...}", []), ("/a/{y}", []), False),
        (("/a/", []), ("/a", []), False),
        (("/A", []), ("/a", []), False),
    ],
)
def test_two_routes_conflict_where_a_request_could_be_either_ones(one, other, conflicts):
    routes = {"f": Route(one[0], one[1]), "g": Route(other[0], other[1])}
    said = manifest_rules.conflict(routes)
    assert bool(said) is conflicts
    if conflicts:
        assert one[0] in said
        assert other[0] in said


def test_routes_for_one_host_conflict_and_the_host_is_named():
    routes = {
        "f": Route("/a", ["GET"], ["shop.example", "www.shop.example"]),
        "g": Route("/a", ["GET"], ["www.shop.example"]),
    }
    said = "the route /a of f and /a of g take the same requests (GET for www.shop.example)"
    assert manifest_rules.conflict(routes) == said
    for hosts in ([], ["*.shop.example"], ["other.example"]):
        assert manifest_rules.conflict({"f": routes["f"], "g": Route("/a", hosts=hosts)}) == ""


def test_the_hosts_of_a_route_are_shown():
    route = {"path": "/a", "methods": ["GET"], "hosts": ["shop.example", "*.shop.example"]}
    assert manifest_rules.shown("route", route) == "GET shop.example,*.shop.example/a"


def test_differences_are_those_of_grants_and_shown_to_people():
    before = {"sql": "read", "time_limit_ms": 100, "secrets": ["A"]}
    after = {"sql": "write", "time_limit_ms": 200, "http": {"hosts": ["a.example"]}, "route": {"path": "/{id}"}}
    found = manifest_rules.differences(before, after)
    assert found == {
        "route": (None, {"path": "/{id}"}),
        "sql": ("read", "write"),
        "http": (None, {"hosts": ["a.example"]}),
        "secrets": (["A"], None),
    }
    assert manifest_rules.grants(after) == {
        "route": "ANY /{id}",
        "sql": "write",
        "http": "GET|HEAD to a.example (5000 ms, 1048576 bytes out, 1048576 in)",
    }
    assert manifest_rules.shown("secrets", None) == "none"


@given(st.sampled_from(["none", "read", "write"]), st.none() | st.lists(METHODS, max_size=4), METHODS)
def test_what_is_stored_says_by_itself_which_methods_read_only(sql, said, method):
    asked = manifest(sql=sql) if said is None else manifest(sql=sql, read_only_methods=said)
    kept = completed(asked)
    stored = msgspec.to_builtins(kept)
    # Nodes that don't know the field refuse it, so it is there only where it says something.
    assert ("read_only_methods" in stored) is (sql == "write" and said != [])
    reads = method in (("GET", "HEAD") if said is None else said)
    assert sql_grant(manifest(**stored), method) == ("read" if sql == "write" and reads else sql)


def test_what_was_stored_before_there_were_methods_that_only_read_is_what_it_was():
    before = manifest(abi="wagi", sql="write", memory_pages=64)
    assert manifest_digest(before) == "d307f59f1cb65f336f87512fd0547278a071aa0648c86ca8076387c8ada1e430"
    assert sql_grant(before, "GET") == "write"


def test_the_methods_that_only_read_are_among_the_grants():
    before, after = {"sql": "write"}, msgspec.json.decode(wire.canonical(completed(manifest(sql="write"))))
    assert manifest_rules.differences(before, after) == {"read_only_methods": (None, ["GET", "HEAD"])}
    assert manifest_rules.grants(after) == {"sql": "write", "read_only_methods": "GET, HEAD"}


def test_what_web_pages_may_do_is_among_the_grants():
    given = manifest(cors={"origins": ["https://a.example", "null"]}, navigation=True)
    assert manifest_rules.grants(msgspec.json.decode(wire.canonical(given))) == {
        "cors": "GET|HEAD|POST from https://a.example, null",
        "navigation": "links of other sites",
    }
    given = manifest(cors={"origins": ["https://a.example"], "methods": ["PUT"], "credentials": True})
    stored = msgspec.json.decode(wire.canonical(given))
    assert manifest_rules.grants(stored) == {"cors": "PUT from https://a.example, with credentials"}
    assert manifest_rules.differences({}, stored) == {"cors": (None, stored["cors"])}
