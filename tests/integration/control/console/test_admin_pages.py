"""Audit, operators, join tokens and settings in the console: what they show, to whom, and what their forms do."""

import html
import json
import re
from typing import Any

import aiohttp
import pytest

from control.api import audit
from control.api.operations import ApiCall, Reply
from control.console.pages import audit_page
from control.protocol import settings_in_force
from tests.support import deploy
from tests.support.console import MARKUP, ShownPage, page, send
from tests.support.replica import Replica, Site

KEY = "k" * 12


async def ok(replica: Replica, path: str, body: object) -> Any:
    return await deploy.ok(replica, "POST", path, body)


def token_of(shown: ShownPage) -> str:
    found = re.search(r"sk[oj]_[A-Za-z0-9_.-]+", shown.text)
    assert found, shown.words
    return found[0]


async def test_operators_are_made_changed_and_revoked(control_site: Site) -> None:
    async with control_site.running() as replica:
        await ok(replica, "/v1/groups", {"name": "shops"})
        assert "admin" in (await page(replica, "/operators")).words
        fields = {"key": KEY, "name": "ci", "grants": "push@shops (orders, stock)\nread", "expires_in": "90d"}
        made = await send(replica, "/make-operator", **fields)
        assert made.status == 200
        assert made.headers["cache-control"] == "no-store"
        token = token_of(made)
        assert (await replica.call("GET", "/v1/groups", token=token)).status == 200
        held = next(o for o in await deploy.items(replica, "/v1/operators") if o["name"] == "ci")
        assert held["grants"] == [
            {"role": "push", "group": "shops", "functions": ["orders", "stock"]},
            {"role": "read", "group": None, "functions": None},
        ]
        # The token is in that answer alone, and the second click makes a new one of the same operator.
        assert token not in (await page(replica, "/operators/ci")).text
        again = token_of(await send(replica, "/make-operator", **fields))
        assert (await replica.call("GET", "/v1/groups", token=again)).status == 200
        assert len(await deploy.items(replica, "/v1/operators")) == 2
        shown = await page(replica, "/operators/ci")
        assert "push@shops (orders, stock)\nread" in shown.text
        # What is wrong is said at the form, which keeps what was written.
        for wrong, status, text in (
            ({"grants": "king"}, 422, "Invalid enum value"),
            ({"grants": MARKUP}, 422, "isn&#39;t written as role"),
            ({"grants": "read@nowhere"}, 404, "there is no group nowhere"),
            ({"grants": "deploy (orders)"}, 422, "push alone is given"),
            ({"name": "ci"}, 409, "name_taken"),
            ({"expires_in": "soon"}, 422, "is no time"),
        ):
            shown = await send(replica, "/make-operator", **{**fields, "key": f"{KEY}2", "name": "two", **wrong})
            assert (shown.status, text in shown.text) == (status, True), (wrong, shown.words)
            assert "<img" not in shown.text
        changed = await send(replica, "/operators/ci", key=f"{KEY}3", grants="deploy@shops", ends="never")
        assert (changed.status, changed.headers["location"]) == (303, "/operators/ci")
        held = next(o for o in await deploy.items(replica, "/v1/operators") if o["name"] == "ci")
        assert (held["grants"][0]["role"], held["expires_at"]) == ("deploy", None)
        assert (await page(replica, "/operators/nobody")).status == 404

        untyped = await send(replica, "/operators/ci/revoke", key=f"{KEY}4", typed="c")
        assert (untyped.status, "type ci to confirm it" in untyped.words) == (422, True)
        assert (await replica.call("GET", "/v1/groups", token=again)).status == 200
        revoked = await send(replica, "/operators/ci/revoke", key=f"{KEY}5", typed="ci")
        assert revoked.status == 303
        assert (await replica.call("GET", "/v1/groups", token=again)).status == 401
        last = await send(replica, "/operators/admin/revoke", key=f"{KEY}6", typed="admin")
        assert (last.status, "last_admin" in last.words) == (409, True)


async def test_an_admin_of_a_group_sees_and_gives_no_more_than_that(control_site: Site) -> None:
    async with control_site.running() as replica:
        await ok(replica, "/v1/groups", {"name": "shops"})
        grants = [{"role": "admin", "group": "shops"}]
        token = (await ok(replica, "/v1/operators", {"name": "boss", "grants": grants}))["token"]
        await ok(replica, "/v1/operators", {"name": "other", "role": "read"})
        shown = await page(replica, "/operators", token=token)
        assert ("boss" in shown.words, "other" in shown.words) == (True, False)
        assert (await page(replica, "/operators/other", token=token)).status == 404
        for path in ("/audit", "/settings"):
            assert (await page(replica, path, token=token)).status == 403, path
        refused = await send(replica, "/make-operator", token=token, key=KEY, name="more", grants="admin")
        assert refused.status == 403
        refused = await send(replica, "/operators/other/revoke", token=token, key=KEY, typed="other")
        assert refused.status == 404
        made = await send(replica, "/make-operator", token=token, key=f"{KEY}1", name="more", grants="read@shops")
        assert made.status == 200
        reader = token_of(made)
        for path in ("/operators", "/make-operator", "/join-tokens", "/audit", "/settings", "/operators/boss"):
            assert (await page(replica, path, token=reader)).status == 403, path
        assert "Admin needs the role admin" in (await page(replica, "/releases", token=reader)).words


async def test_join_tokens_are_made_and_revoked(control_site: Site) -> None:
    async with control_site.running() as replica:
        await ok(replica, "/v1/groups", {"name": "shops"})
        assert 'name="group" value="default"' in (await page(replica, "/join-tokens/new")).text
        made = await send(replica, "/join-tokens/new", key=KEY, group="shops", hours="2")
        assert made.status == 200
        assert f"skerry-edge join --control {replica.url}" in made.words
        assert "--name NAME --state DIR skerry-edge run --state DIR" in made.words
        token = token_of(made)
        listed = (await deploy.items(replica, "/v1/join-tokens"))[0]
        assert (listed["group"], listed["state"]) == ("shops", "open")
        shown = await page(replica, "/join-tokens?state=open")
        assert listed["id"][:8] in shown.words
        assert token not in shown.text
        path = f"/join-tokens/{listed['id']}/revoke"
        assert (await send(replica, path, key=f"{KEY}1", typed="x")).status == 422
        assert (await deploy.items(replica, "/v1/join-tokens"))[0]["state"] == "open"
        assert (await send(replica, path, key=f"{KEY}2", typed=listed["id"][:8])).status == 303
        assert (await deploy.items(replica, "/v1/join-tokens"))[0]["state"] == "revoked"
        for wrong, status in (({"group": "nowhere"}, 404), ({"hours": "9999"}, 422), ({"hours": "x"}, 422)):
            fields = {"key": f"{KEY}3", "group": "shops", "hours": "1", **wrong}
            assert (await send(replica, "/join-tokens/new", **fields)).status == status, wrong
        await replica.join("shop-1", "shops")
        again = {"key": f"{KEY}4", "group": "shops", "hours": "1", "rejoin": "shop-1"}
        assert "--name shop-1 --state DIR --again" in (await send(replica, "/join-tokens/new", **again)).words
        assert (await page(replica, "/join-tokens?state=lost")).status == 422
        assert (await page(replica, "/join-tokens/x/revoke")).status == 422


async def test_the_audit_log_with_filters_that_are_the_address(control_site: Site) -> None:
    async with control_site.running() as replica:
        for number in range(3):
            await ok(replica, "/v1/groups", {"name": f"shops-{number}"})
        await ok(replica, "/v1/schema-changes", {"name": MARKUP, "sql": "CREATE TABLE t (a)"})
        await ok(replica, "/v1/releases", {"reason": MARKUP})
        shown = await page(replica, "/audit")
        assert shown.status == 200
        assert "<img" not in shown.text
        assert "release.create default/1" in shown.words
        assert '<a href="/releases/default/1">' in shown.text
        shown = await page(replica, "/audit?action=group.create&target=shops-1")
        table = shown.words[shown.words.index("What changed") : shown.words.index("Seals")]
        assert ("shops-1" in table, "shops-2" in table) == (True, False)
        assert "skerry audit list --target shops-1 --action group.create" in shown.words
        shown = await page(replica, "/audit?since=2100-01-01")
        assert "No row is so" in shown.words
        shown = await page(replica, "/audit?until=2100-01-01+10%3A00&actor=admin")
        assert "shops-1" in shown.words
        for wrong in ("since=yesterday", "cursor=x", f"actor={'a' * 301}"):
            assert (await page(replica, f"/audit?{wrong}")).status == 422, wrong
        await replica.call("GET", "/v1/groups", token="sko_wrong")
        await replica.services.failures.flush()
        assert "malformed" in (await page(replica, "/audit")).words


async def test_the_rows_that_a_filter_finds_can_be_downloaded(
    control_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_page, "DOWNLOADED", 2)
    async with control_site.running() as replica:
        for number in range(5):
            await ok(replica, "/v1/groups", {"name": f"shops-{number}"})
        await ok(replica, "/v1/releases", {"reason": f"{MARKUP}\nsecond line"})
        shown = await page(replica, "/audit?action=group.create&since=2026-01-01+00:00")
        (link,) = re.findall(r'<a href="([^"]+)" download>', shown.text)
        got = await page(replica, html.unescape(link))
        assert (got.status, got.headers["content-type"]) == (200, "application/x-ndjson")
        assert got.headers["content-disposition"] == 'attachment; filename="audit.jsonl"'
        rows = [json.loads(line) for line in got.text.splitlines()]
        assert [row["target"] for row in rows] == [*(f"shops-{number}" for number in (4, 3, 2, 1, 0)), "default"]
        rows = [json.loads(line) for line in (await page(replica, "/audit.jsonl")).text.splitlines()]
        assert rows == await deploy.items(replica, "/v1/audit")
        assert (await page(replica, "/audit.jsonl?since=yesterday")).status == 422
        grants = [{"role": "admin", "group": "shops-1"}]
        token = (await ok(replica, "/v1/operators", {"name": "one", "grants": grants}))["token"]
        assert (await page(replica, "/audit.jsonl", token=token)).status == 403
        assert (await page(replica, "/audit.jsonl", token="")).status == 303
        # Who is revoked in the middle gets no more.
        token = (await ok(replica, "/v1/operators", {"name": "two", "role": "admin"}))["token"]
        real = audit.list_audit

        async def revoked(call: ApiCall, query: audit.AuditFilter) -> Reply:
            found = await real(call, query)
            assert (await replica.call("DELETE", "/v1/operators/two")).status < 300
            return found

        monkeypatch.setattr(audit, "list_audit", revoked)
        with pytest.raises(aiohttp.ClientPayloadError):
            await page(replica, "/audit.jsonl", token=token)


async def test_settings_are_shown_without_secrets(control_site: Site) -> None:
    async with control_site.running(hold=7.0) as replica:
        shown = await page(replica, "/settings")
        assert "SKERRY_HOLD 7 program" in shown.words
        assert "SKERRY_OFFLINE_AFTER 75 default" in shown.words
        settings = replica.services.settings
        address = settings.store_address()
        secrets = [address.key, address.secret, settings.metadata_url.split("@")[0].rpartition("//")[2]]
        assert not [secret for secret in secrets if len(secret) > 3 and secret in shown.text]
        listed = await deploy.items(replica, "/v1/settings")
        assert [s["name"] for s in listed] == sorted(s["name"] for s in listed)
        given = {"SKERRY_HOLD": "7"}
        origins = {s.name: s.origin for s in settings_in_force.in_force(settings, given)}
        assert (origins["SKERRY_HOLD"], origins["SKERRY_BIND"]) == ("environment", "default")
