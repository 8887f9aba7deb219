"""What a manifest grants, through the operators' API: refused, kept, shown by a release's plan; conflicting routes."""

from control.protocol.manifest import MANIFEST_FIELDS
from tests.support.control import Control, module

HTTP = {"hosts": ["api.example"], "methods": ["GET", "POST"]}


async def test_an_unfit_manifest_is_refused_and_takes_no_number(control: Control) -> None:
    sha256 = await control.upload(module("1"))
    for manifest, field in (
        ({"config": {"HTTP_PROXY": "x"}}, "manifest.config"),
        ({"secrets": ["KEY"], "config": {"KEY": "x"}}, "manifest.secrets"),
        ({"http": {"hosts": ["a.example:70000"]}}, "manifest.http.hosts"),
        ({"route": {"path": "/functions/f"}}, "manifest.route.path"),
        ({"route": {"path": "/", "hosts": ["127.1"]}}, "manifest.route.hosts"),
        # The module turns out to be WAGI.
        ({"entry": "run"}, "manifest.entry"),
    ):
        reply = await control.call("POST", "/v1/functions/f/versions", {"sha256": sha256, "manifest": manifest})
        assert (reply.status, reply.code, reply.body["field"]) == (422, "manifest_unfit", field)
    made = await control.push("f", module("1"), http=HTTP, secrets=["KEY"], route={"path": "/orders/{id}"})
    assert made["version"] == 1
    assert made["manifest"]["http"] == HTTP
    assert made["manifest"]["secrets"] == ["KEY"]


async def test_a_plan_shows_what_a_release_would_grant(control: Control) -> None:
    await control.push("f", module("1"), sql="read", secrets=["KEY"], time_limit_ms=100)
    added = await control.release(functions={"f": 1})
    assert [(g["grant"], g["from"], g["to"]) for g in added["changes"]["grants"]] == [
        ("sql", None, "read"),
        ("secrets", None, ["KEY"]),
    ]
    await control.push("f", module("1"), sql="write", http=HTTP, time_limit_ms=200)
    for path in ("/v1/releases?plan=true", "/v1/releases"):
        made = await control.ok("POST", path, {"functions": {"f": 2}})
        assert made["changes"]["grants"] == [
            {"name": "f", "grant": "sql", "from": "read", "to": "write"},
            {"name": "f", "grant": "read_only_methods", "from": None, "to": ["GET", "HEAD"]},
            {"name": "f", "grant": "http", "from": None, "to": HTTP},
            {"name": "f", "grant": "secrets", "from": ["KEY"], "to": None},
        ]
    assert (await control.release(reason="nothing"))["changes"]["grants"] == []


async def test_where_the_author_says_nothing_get_and_head_only_read(control: Control) -> None:
    """A version made before that field was there has none of it, and so has one whose author says that none does."""
    for said, kept in (
        ({"sql": "write"}, ["GET", "HEAD"]),
        ({"sql": "write", "read_only_methods": None}, ["GET", "HEAD"]),
        ({"sql": "write", "read_only_methods": ["PROPFIND"]}, ["PROPFIND"]),
        ({"sql": "write", "read_only_methods": []}, None),
        ({"sql": "read", "read_only_methods": ["GET"]}, None),
        ({}, None),
    ):
        made = await control.push("f", module("1"), **said)
        shown = await control.ok("GET", f"/v1/functions/f/versions/{made['version']}")
        assert made["manifest"].get("read_only_methods") == shown["manifest"].get("read_only_methods") == kept
    reply = await control.call(
        "POST", "/v1/functions/f/versions", {"sha256": made["sha256"], "manifest": {"read_only_methods": ["get"]}}
    )
    assert (reply.status, reply.code) == (422, "invalid_body")


async def test_conflicting_routes_are_refused_when_the_release_is_made(control: Control) -> None:
    await control.push("one", module("1"), route={"path": "/orders/{id}", "methods": ["GET"]})
    await control.push("two", module("2"), route={"path": "/orders/{number}", "methods": ["GET", "PUT"]})
    await control.push("two", module("2"), route={"path": "/orders/{number}", "methods": ["PUT"]})
    await control.release(functions={"one": 1})
    for query in ("?plan=true", ""):
        reply = await control.call("POST", f"/v1/releases{query}", {"functions": {"two": 1}})
        assert (reply.status, reply.code) == (409, "route_conflict")
        for part in ("/orders/{id}", "one", "/orders/{number}", "two", "GET"):
            assert part in reply.body["detail"]
    assert (await control.release(functions={"two": 2}))["number"] == 2
    # What comes back by a rollback is looked at too.
    await control.push("three", module("3"), route={"path": "/orders/{x}", "methods": ["PUT"]})
    assert (await control.call("POST", "/v1/releases", {"functions": {"three": 1}})).code == "route_conflict"
    assert (await control.release(functions={"three": 1}, remove=["two"]))["number"] == 3
    assert (await control.release(rollback_to=2))["number"] == 4


async def test_routes_of_one_path_for_a_host_each_stand_beside_each_other(control: Control) -> None:
    for name, hosts in {"one": ["one.example", "both.example"], "two": ["*.example.org"], "all": []}.items():
        await control.push(name, module(name), route={"path": "/", **({"hosts": hosts} if hosts else {})})
    made = await control.release(functions={"one": 1, "two": 1, "all": 1})
    granted = {grant["name"]: grant["to"] for grant in made["changes"]["grants"]}
    assert granted["one"] == {"path": "/", "hosts": ["one.example", "both.example"]}
    assert granted["all"] == {"path": "/"}
    await control.push("three", module("3"), route={"path": "/", "hosts": ["three.example", "both.example"]})
    reply = await control.call("POST", "/v1/releases?plan=true", {"functions": {"three": 1}})
    assert (reply.status, reply.code) == (409, "route_conflict")
    assert (
        "the route / of one and / of three take the same requests (every method for both.example)"
        in (reply.body["detail"])
    )


async def test_a_node_that_does_not_know_hosts_of_routes_is_found_before_the_release(control: Control) -> None:
    known = [field for field in MANIFEST_FIELDS if field != "route.hosts"]
    await control.join("shop", capabilities={"abi": ["wagi"], "manifest": known})
    await control.push("f", module("1"), route={"path": "/", "hosts": ["shop.example"]})
    await control.push("g", module("1"), route={"path": "/"})
    reply = await control.call("POST", "/v1/releases", {"functions": {"f": 1}})
    assert (reply.status, reply.code) == (409, "nodes_unfit")
    assert "shop lacks the manifest's field route.hosts (for f)" in reply.body["detail"]
    assert (await control.release(functions={"g": 1}))["number"] == 1
