"""Every form of the console, as a stranger sends it: from another site, without its token, without the right to it."""

import re
from typing import Any
from uuid import uuid4

from control.access import sessions
from control.console import console_routes
from control.console.visits import ConsolePage
from tests.support import deploy
from tests.support.console import ShownPage, page, send, session_of
from tests.support.control import module
from tests.support.replica import Replica, Site

KEY = "k" * 12
VALUES = {"group": "default", "number": "1", "name": "admin", "id": str(uuid4()), "node": "edge-1", "act": "remove"}
VALUES["code"] = "database_busy"
FIELDS = {
    **{
        "key": KEY,
        "typed": "admin",
        "do": "add",
        "sql": "CREATE TABLE other (a)",
        "grants": "admin",
        "group": "default",
    },
    **{"hours": "1", "digest": "x", "node": "edge-1", "ends": "never", "number": "1"},
}
"""What any of them would take."""
FORMS = [p for p in console_routes.PAGES if p.method == "POST" and p.role is not None and p.path != "/sign-out"]
PAGES = [p for p in console_routes.PAGES if p.method == "GET" and p.role is not None and not p.path.endswith("/live")]
"""All but those that go on for as long as somebody looks."""


def path_of(shown: ConsolePage) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: VALUES[match[1]], shown.path)


async def changes(replica: Replica) -> list[Any]:
    """What operators have changed, but for their own sessions."""
    rows = (await deploy.ok(replica, "GET", "/v1/audit?limit=1000"))["items"]
    return [(r["action"], r["target"]) for r in rows if r["actor_kind"] == "operator" and "session" not in r["action"]]


async def fleet(replica: Replica) -> None:
    await deploy.ok(replica, "POST", "/v1/groups", {"name": "shops"})
    await deploy.push(replica, "orders", module("1"))
    await deploy.schema(replica, "CREATE TABLE t (a)")
    await deploy.release(replica, functions={"orders": 1})
    await replica.join("edge-1")
    grants = [{"role": "admin", "group": "shops"}]
    made = await deploy.ok(replica, "POST", "/v1/operators", {"name": "other", "grants": grants})
    await deploy.ok(replica, "GET", "/v1/groups", token=made["token"])


async def sent(replica: Replica, form: ConsolePage, secret: str, origin: str = "", **more: str) -> ShownPage:
    headers = {"cookie": f"{sessions.COOKIE}={secret}", "origin": origin or replica.url}
    return await send(replica, path_of(form), headers=headers, **{**FIELDS, **more})


async def test_a_form_of_another_site_or_without_its_token_does_nothing(control_site: Site) -> None:
    async with control_site.running() as replica:
        await fleet(replica)
        secret = await session_of(replica, "admin")
        token = sessions.form_token(secret)
        other = sessions.form_token(await session_of(replica, "other"))
        before = await changes(replica)
        assert len(FORMS) > 10
        for form in FORMS:
            for origin, given in (("https://evil.example", token), ("null", token), ("", ""), ("", other)):
                shown = await sent(replica, form, secret, origin, form_token=given)
                assert (shown.status, "form_refused" in shown.words) == (403, True), (form.path, origin, shown.words)
        assert await changes(replica) == before


async def test_an_operator_of_another_group_does_nothing_by_any_form(control_site: Site) -> None:
    async with control_site.running() as replica:
        await fleet(replica)
        secret = await session_of(replica, "other")
        before = await changes(replica)
        for form in FORMS:
            shown = await sent(replica, form, secret, form_token=sessions.form_token(secret))
            assert 400 <= shown.status < 500, (form.path, shown.status, shown.words)
        assert await changes(replica) == before


async def test_no_page_changes_anything_by_being_looked_at(control_site: Site) -> None:
    async with control_site.running() as replica:
        await fleet(replica)
        secret = await session_of(replica, "admin")
        before = await changes(replica)
        for shown in PAGES:
            answer = await page(replica, path_of(shown), cookie=f"{sessions.COOKIE}={secret}")
            assert answer.status < 500, (shown.path, answer.words)
            assert answer.status == 303 or answer.headers["cache-control"] == "no-store", shown.path
            assert len(answer.text) < 100_000
        assert await changes(replica) == before


async def test_no_page_fails_by_what_is_odd_in_its_address(control_site: Site) -> None:
    async with control_site.running() as replica:
        await fleet(replica)
        names = ("actor", "target", "since", "find", "label", "group", "q", "cursor", "version", "from", "schema")
        for text in (
            "%00",
            "%ff%fe",
            "%D9%A1",
            "9" * 30,
            "-1",
            "0001-01-01T00:00%2B14:00",
            "a" * 3000,
            "%3Cimg src=x%3E",
        ):
            query = "&".join(f"{name}={text}" for name in names)
            for shown in PAGES:
                answer = await page(replica, f"{path_of(shown)}?{query}".replace(" ", "%20"))
                assert answer.status < 500, (shown.path, text, answer.words)
                assert "<img" not in answer.text, shown.path
                assert "\x00" not in answer.text
