"""Signing in at a real OpenID provider, and what it must not be possible to pass off as that."""

import asyncio
import html
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import aiohttp
import pytest

from control.access import openid_provider as client
from control.access.sessions import COOKIE
from control.console.pages.sign_in_pages import PROVIDER_COOKIE
from control.local.pki import Pki
from tests.support.control import Control
from tests.support.cookies_and_forms import ConsoleBrowser
from tests.support.openid_provider import OpenIdProvider, control_beside, pass_through, provider

ACCOUNTS: dict[str, dict[str, Any]] = {
    "u-1": {"preferred_username": "Ada", "name": "Ada L.", "email": "ada@example.org", "groups": ["ops", "other"]},
    "u-2": {"preferred_username": "admin", "groups": ["north"]},
    "u-3": {"preferred_username": "nobody", "groups": ["other"]},
    "u-4": {"preferred_username": "none"},
}
GRANTS = """
[groups]
ops = ["admin"]
north = ["read", "deploy@north", "push@south (orders, stock)"]
"""


@dataclass
class Setting:
    """A control, the provider that it knows, and a browser."""

    control: Control
    provider: OpenIdProvider
    browser: ConsoleBrowser

    def another(self) -> ConsoleBrowser:
        return ConsoleBrowser(self.browser.url, self.browser.session)

    async def sign_in(self, login: str, browser: ConsoleBrowser | None = None, to: str = "/") -> ConsoleBrowser:
        browser = browser or self.another()
        await browser.open(f"/sign-in?next={to}")
        await browser.open(f"/sign-in/provider?next={to}")
        await browser.open(await pass_through(browser.at, login))
        return browser

    async def refused(self, url: str, browser: ConsoleBrowser) -> str:
        """The text of the page that refuses an answer of the provider; nobody is signed in by it."""
        shown = await browser.open(url)
        assert COOKIE not in browser.cookies
        assert PROVIDER_COOKIE not in browser.cookies
        assert shown.status in (401, 403, 503), text_of(browser)
        return text_of(browser)


@pytest.fixture
async def setting(
    long_waits: None, database_url: str, bucket_url: str, pki: Pki, tmp_path: Path
) -> AsyncIterator[Setting]:
    accounts = {login: {**claims} for login, claims in ACCOUNTS.items()}
    servers = database_url, bucket_url, pki
    async with AsyncExitStack() as stack:
        control, made, url = await stack.enter_async_context(
            control_beside("127.0.0.1", accounts, GRANTS, tmp_path, *servers, oidc_name="Example <b>")
        )
        jar = aiohttp.DummyCookieJar()
        session = aiohttp.ClientSession(connector=control.session.connector, connector_owner=False, cookie_jar=jar)
        await stack.enter_async_context(session)
        yield Setting(control, made, ConsoleBrowser(url, session))


def text_of(browser: ConsoleBrowser) -> str:
    """The text of the page that a browser shows."""
    return html.unescape(browser.shown.words)


def edited(url: str, **changes: str | None) -> str:
    """A URL with other parameters; None: without it."""
    parts = urlsplit(url)
    query: dict[str, Any] = {**parse_qs(parts.query), **changes}
    kept = {name: value for name, value in query.items() if value is not None}
    return parts._replace(query=urlencode(kept, doseq=True)).geturl()


async def test_somebody_signs_in_and_out(setting: Setting) -> None:
    browser, control = setting.browser, setting.control
    shown = await browser.open("/?range=1h")
    assert "Sign in with Example &lt;b&gt;" in shown.text
    await setting.sign_in("u-1", browser, to="/login")
    assert browser.at == f"{control.url}/login"
    assert "ada-" in text_of(browser)
    assert set(browser.cookies) == {COOKIE}
    (begun,) = [row for row in await control.items("/v1/audit") if row["action"] == "session.begin"]
    who = {"issuer": setting.provider.issuer, "subject": "u-1", "name": "Ada"}
    assert who.items() <= begun["details"].items()
    (operator,) = [o for o in await control.items("/v1/operators") if o["name"] == begun["actor"]]
    assert operator["grants"] == [{"role": "admin", "group": None, "functions": None}]
    assert operator["person"] == who
    assert operator["expires_at"] is not None
    # What is done in it says who it was.
    code = await control.ok("POST", "/v1/logins", {"machine": "laptop"}, token="")
    await browser.send("/login", code=code["user_code"])
    await browser.send("/login", answer="allow")
    token = (await control.ok("POST", "/v1/logins/token", {"device_code": code["device_code"]}, token=""))["token"]
    await control.ok("POST", "/v1/groups", {"name": "north"}, token=token)
    (made,) = [row for row in await control.items("/v1/audit?target=north") if row["action"] == "group.create"]
    assert made["actor"] == operator["name"]
    assert {**who, "in": "cli", "by": "provider"}.items() <= made["details"]["session"].items()
    # An admin by the provider gives nothing that lasts longer than it does, and isn't the admin who stays.
    refusal = await control.call("POST", "/v1/operators", {"name": "ci", "role": "read"}, token=token)
    assert refusal.code == "role_insufficient"
    assert (await control.call("DELETE", "/v1/operators/admin", token=token)).status in (403, 409)
    change = {"grants": [{"role": "read"}]}
    reply = await control.call("POST", f"/v1/operators/{operator['name']}/change", change)
    assert (reply.status, reply.code) == (409, "operator_of_provider")
    await browser.open("/login")
    shown = await browser.send("/sign-out")
    assert f'href="{setting.provider.issuer}/session/end?client_id=skerry' in shown.text
    assert COOKIE not in browser.cookies


async def test_rights_are_those_of_the_groups_at_each_sign_in(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The provider makes new keys at each start.
    monkeypatch.setattr(client, "KEYS_KEPT", 0.0)
    control = setting.control
    browser = await setting.sign_in("u-2")
    assert "admin-" in text_of(browser)
    operators = {o["name"]: o for o in await control.items("/v1/operators")}
    (name,) = operators.keys() - {"admin"}
    assert name.startswith("admin-"), "nobody gets another operator's name"
    assert operators[name]["grants"] == [
        {"role": "read", "group": None, "functions": None},
        {"role": "deploy", "group": "north", "functions": None},
        {"role": "push", "group": "south", "functions": ["orders", "stock"]},
    ]
    # Other groups now, and another name, but the same person: also in the sessions that are there.
    setting.provider.accounts["u-2"] = {"preferred_username": "Grace", "groups": ["ops"]}
    await setting.provider.stop()
    await setting.provider.start()
    await setting.sign_in("u-2")
    shown = await browser.open("/login")
    assert (shown.status, name in text_of(browser)) == (200, True)
    (person,) = [o for o in await control.items("/v1/operators") if o["name"] == name]
    assert (person["person"]["name"], person["grants"][0]["role"]) == ("Grace", "admin")
    # None that may anything: what they had ends, everywhere.
    setting.provider.accounts["u-2"] = {"preferred_username": "Grace", "groups": ["other"]}
    await setting.provider.stop()
    await setting.provider.start()
    refused = await setting.sign_in("u-2")
    assert "is in no group that may anything here (told: 1 group)" in text_of(refused)
    assert COOKIE not in refused.cookies
    await browser.open("/login")
    assert "/sign-in" in browser.at
    # Revoked here, it stays so.
    setting.provider.accounts["u-2"]["groups"] = ["ops"]
    await setting.provider.stop()
    await setting.provider.start()
    await control.ok("DELETE", f"/v1/operators/{name}")
    assert "was revoked here" in text_of(await setting.sign_in("u-2"))


async def test_rights_end_with_the_session(setting: Setting) -> None:
    browser = await setting.sign_in("u-1")
    for _ in range(7):
        setting.control.clock.advance(minutes=100)
        await browser.open("/login")
    assert "/login" in browser.at
    setting.control.clock.advance(minutes=21)
    await browser.open("/login")
    assert "/sign-in" in browser.at


@pytest.mark.parametrize("login", ["u-3", "u-4"])
async def test_who_is_in_no_group_that_may_anything_gets_nothing(setting: Setting, login: str) -> None:
    browser = await setting.sign_in(login)
    assert browser.shown.status == 403
    assert "is in no group that may anything here" in text_of(browser)
    assert COOKIE not in browser.cookies
    assert [o["name"] for o in await setting.control.items("/v1/operators")] == ["admin"]


async def test_an_answer_is_of_this_browsers_question(setting: Setting) -> None:
    """Of an answer that somebody else got, or that was changed, nobody is signed in."""
    mine, theirs = setting.another(), setting.another()
    await theirs.open("/sign-in/provider")
    stolen = await pass_through(theirs.at, "u-1")
    assert "isn't the answer to a sign-in that this browser began" in await setting.refused(stolen, setting.another())
    await mine.open("/sign-in/provider")
    answer = await pass_through(mine.at, "u-1")
    state = parse_qs(urlsplit(answer).query)["state"][0]
    kept = dict(mine.cookies)
    for changes in (
        {"state": "x"},
        {"state": None},
        {"state": parse_qs(urlsplit(stolen).query)["state"][0]},
        {"state": state.partition(".")[0] + ".aHR0cHM6Ly9ldmls"},
        {"code": parse_qs(urlsplit(stolen).query)["code"][0]},
        {"code": None},
        {"code": "wrong"},
        {"iss": "https://evil.example"},
        {"iss": None},
        {"error": "access_denied"},
    ):
        mine.cookies = dict(kept)
        await setting.refused(edited(answer, **changes), mine)
    mine.cookies = dict(kept)
    await setting.refused(f"{answer}&state={state}", mine)


async def test_an_answer_is_taken_once(setting: Setting) -> None:
    browser = setting.another()
    await browser.open("/sign-in/provider")
    kept, answer = dict(browser.cookies), await pass_through(browser.at, "u-1")
    await browser.open(answer)
    assert COOKIE in browser.cookies
    again = setting.another()
    await setting.refused(answer, again)
    again.cookies = kept
    assert "doesn't take the code (invalid_grant)" in await setting.refused(answer, again)


async def test_an_id_token_is_of_this_question(setting: Setting) -> None:
    """The browser is sent with another nonce: the provider makes a token of it, which is somebody else's here."""
    browser = setting.another()
    await browser.open("/sign-in/provider")
    answer = await pass_through(edited(browser.at, nonce="other"), "u-1")
    assert "(nonce)" in await setting.refused(answer, browser)
    # The same with the challenge: whoever began it has the verifier alone.
    await browser.open("/sign-in/provider")
    answer = await pass_through(edited(browser.at, code_challenge="a" * 43), "u-1")
    assert "doesn't take the code" in await setting.refused(answer, browser)


async def test_clocks_may_differ_by_a_minute(setting: Setting) -> None:
    setting.control.clock.jump(-50)
    assert COOKIE in (await setting.sign_in("u-1")).cookies
    setting.control.clock.jump(-50)
    assert "of a time to come" in text_of(await setting.sign_in("u-1"))
    # Half a minute before it counts as ended, which a busy machine may take.
    setting.control.clock.advance(hours=1, seconds=100 + 30)
    assert "old by control's clock (iat)" in text_of(await setting.sign_in("u-1"))
    setting.control.clock.advance(minutes=2)
    assert "has ended" in text_of(await setting.sign_in("u-1"))


async def test_the_providers_keys_may_change(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    # A provider takes its time to start on a busy machine, as does a sign-in.
    monkeypatch.setattr(client, "KEYS_KEPT", 600.0)
    await setting.sign_in("u-1")
    await setting.provider.stop()
    await setting.provider.start()
    # Read a moment ago: not again for every token that is signed by who knows whom.
    refused = await setting.sign_in("u-1")
    assert "signed by a key that the provider doesn't tell" in text_of(refused)
    monkeypatch.setattr(client, "KEYS_KEPT", 0.0)
    assert COOKIE in (await setting.sign_in("u-1")).cookies


async def test_without_the_provider_tokens_sign_in(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    await setting.provider.stop()
    browser = setting.browser
    shown = await browser.open("/sign-in/provider?next=/login")
    assert (shown.status, "provider_unavailable" in shown.text) == (503, True)
    assert "Signing in by a token goes on" in text_of(browser)
    await browser.send("/sign-in", token=setting.control.token)
    assert (browser.at, COOKIE in browser.cookies) == (f"{setting.control.url}/login", True)
    # It is asked again soon, and one that goes away within a sign-in is told of.
    monkeypatch.setattr(client, "FAILURE_KEPT", 0.0)
    await setting.provider.start()
    other = setting.another()
    await other.open("/sign-in/provider")
    answer = await pass_through(other.at, "u-1")
    await setting.provider.stop()
    shown = await other.open(answer)
    assert (shown.status, COOKIE in other.cookies) == (503, False)


async def test_the_person_may_refuse_at_the_provider(setting: Setting) -> None:
    browser = setting.another()
    await browser.open("/sign-in/provider")
    answer = await pass_through(browser.at, "u-1", allow=False)
    assert "refused it (access_denied)" in await setting.refused(answer, browser)


async def test_another_issuer_is_not_believed(setting: Setting) -> None:
    """A provider that calls itself something else than what it was asked as."""
    asked = setting.control.services.provider
    assert asked is not None
    async with provider(setting.control.url, ACCOUNTS, issuer="https://other.example") as other:
        asked.issuer = other.issuer
        shown = await setting.browser.open("/sign-in/provider")
    assert shown.status == 503
    assert "another issuer" in text_of(setting.browser)


async def test_first_sign_ins_at_the_same_time_make_one_operator(setting: Setting) -> None:
    browsers = [await setting.sign_in("u-4") for _ in range(3)]
    answers = []
    for browser in browsers:
        await browser.open("/sign-in/provider")
        answers.append(await pass_through(browser.at, "u-1"))
    await asyncio.gather(*(browser.open(answer) for browser, answer in zip(browsers, answers, strict=True)))
    assert all(COOKIE in browser.cookies for browser in browsers)
    assert len(await setting.control.items("/v1/operators")) == 2
