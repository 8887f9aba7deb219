"""Signing in and out at the console, as a browser does it, and what others can't do with it."""

import asyncio
import contextlib
import re
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from control.access import rate_limits, sign_ins
from control.access.rate_limits import Guesses
from control.access.sessions import COOKIE
from control.console.pages.sign_in_pages import VISIT_COOKIE
from control.local.pki import Pki
from control.problems import ProblemError
from tests.support.control import Control, until
from tests.support.cookies_and_forms import ConsoleBrowser
from tests.support.lent import Lender
from tests.support.services import ServerUrls


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lender(services: ServerUrls, pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lender]:
    """Has a replica with sign-ins of all tests; the operators of each have names of its own."""
    written = {"operators", "sessions", "sign_in_codes", "logins"}
    made = Lender(services, pki, tmp_path_factory.mktemp("spool"), written=written)
    yield made
    await made.end()


in_the_modules_loop = pytest.mark.asyncio(loop_scope="module")
"""For a test that is lent the module's replica."""


@contextlib.asynccontextmanager
async def browsing(control: Control) -> AsyncIterator[ConsoleBrowser]:
    connector = control.session.connector
    # Its cookies are kept by the test's rules.
    async with aiohttp.ClientSession(
        connector=connector, connector_owner=False, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        yield ConsoleBrowser(control.url, session)


@pytest.fixture
async def browser(control: Control) -> AsyncIterator[ConsoleBrowser]:
    async with browsing(control) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def lent_browser(lent: Control) -> AsyncIterator[ConsoleBrowser]:
    async with browsing(lent) as made:
        yield made


def another(browser: ConsoleBrowser) -> ConsoleBrowser:
    return ConsoleBrowser(browser.url, browser.session)


def standing_still(guesses: Guesses) -> None:
    """No time passes for these: else one more is let through each few seconds."""
    now = time.monotonic()
    guesses._passed = lambda: now


@in_the_modules_loop
async def test_who_asks_for_a_page_signs_in_and_gets_it(lent: Control, lent_browser: ConsoleBrowser) -> None:
    shown = await lent_browser.open("/?range=1h")
    assert (shown.status, lent_browser.at) == (200, f"{lent.url}/sign-in?next=/%3Frange%3D1h")
    assert "no-store" in shown.headers["cache-control"]
    shown = await lent_browser.send("/sign-in", token=f" {lent.token} ")
    assert (shown.status, lent_browser.at) == (200, f"{lent.url}/?range=1h")
    assert "admin" in shown.words
    assert set(lent_browser.cookies) == {COOKIE}
    assert lent.token not in shown.text
    # Who is signed in isn't asked again.
    await lent_browser.open("/sign-in?next=/login")
    assert lent_browser.at == f"{lent.url}/login"


@in_the_modules_loop
async def test_signing_out_ends_the_session_itself(lent: Control, lent_browser: ConsoleBrowser) -> None:
    await lent_browser.sign_in(lent.token)
    kept = dict(lent_browser.cookies)
    await lent_browser.send("/sign-out")
    assert (lent_browser.cookies.keys(), lent_browser.at) == ({VISIT_COOKIE}, f"{lent.url}/sign-in")
    thief = another(lent_browser)
    thief.cookies = kept
    await thief.open("/")
    assert thief.at.startswith(f"{lent.url}/sign-in?")


async def test_a_wrong_token_tells_nothing_and_is_counted(control: Control, browser: ConsoleBrowser) -> None:
    revoked = await control.operator("gone", "read")
    await control.ok("DELETE", "/v1/operators/gone")
    told = set()
    for token in ("sko_nothing", revoked, control.token[:-4] + "AAAA", ""):
        shown = await browser.sign_in(token)
        assert shown.status == 401
        told.add(re.search(r"<p class=\"small wrap\">(.*?)</p>", shown.text)[1])  # type: ignore[index]
        assert COOKIE not in browser.cookies
    assert len(told) == 1
    await control.services.failures.flush()
    failures = {row["reason"]: row["count"] for row in await control.items("/v1/auth-failures")}
    assert failures == {"malformed": 2, "revoked": 1, "wrong_secret": 1}


@pytest.mark.parametrize("to", ["https://evil.example/", "//evil.example", "/\\evil.example", "/sign-in", "/sign-out"])
@in_the_modules_loop
async def test_signing_in_leads_to_no_other_place(lent: Control, lent_browser: ConsoleBrowser, to: str) -> None:
    await lent_browser.open("/sign-in")
    await lent_browser.send("/sign-in", token=lent.token, next=to)
    assert lent_browser.at == f"{lent.url}/"
    await lent_browser.send("/sign-out")
    await lent_browser.session.get(lent.url)
    shown = await lent_browser.open(f"/sign-in?next={to}")
    assert 'name="next" value="/"' in shown.text


@in_the_modules_loop
async def test_no_other_site_signs_anybody_in(lent: Control, lent_browser: ConsoleBrowser) -> None:
    """Nor has them send a form, whatever of the cookies it could put into the browser."""
    await lent_browser.open("/sign-in")
    for headers in (
        {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {},
    ):
        shown = await lent_browser.send("/sign-in", headers=headers, token=lent.token)
        assert (shown.status, COOKIE in lent_browser.cookies) == (403, False)
    # A form that was made for another browser.
    other = another(lent_browser)
    await other.open("/sign-in")
    other.cookies = dict(lent_browser.cookies)
    shown = await other.send("/sign-in", token=lent.token)
    assert (shown.status, COOKIE in other.cookies) == (403, False)
    # Without cookies the page says what is wrong.
    lost = another(lent_browser)
    await lost.open("/sign-in")
    lost.cookies.clear()
    shown = await lost.send("/sign-in", token=lent.token)
    assert (shown.status, COOKIE in lost.cookies) == (403, False)
    assert "Cookies must be allowed" in shown.words


@in_the_modules_loop
async def test_signing_in_makes_a_new_session_whatever_the_browser_had(
    lent: Control, lent_browser: ConsoleBrowser
) -> None:
    """A session that somebody put there before isn't the one that is signed in."""
    await lent_browser.sign_in(lent.token)
    first = lent_browser.cookies[COOKIE]
    token = await lent.operator("victim", "read")
    victim = another(lent_browser)
    await victim.open("/sign-in")
    victim.cookies[COOKIE] = first
    shown = await victim.send("/sign-in", token=token)
    assert victim.cookies[COOKIE] != first
    assert "victim" in shown.words
    # The one before was ended.
    await lent_browser.open("/")
    assert "/sign-in" in lent_browser.at


@in_the_modules_loop
async def test_every_form_of_the_console_needs_its_sessions_token_and_origin(
    lent: Control, lent_browser: ConsoleBrowser
) -> None:
    await lent_browser.sign_in(lent.token)
    await lent_browser.open("/login")
    shown = await lent_browser.send("/sign-out", form_token="0" * 64)
    assert (shown.status, COOKIE in lent_browser.cookies) == (403, True)
    await lent_browser.open("/login")
    shown = await lent_browser.send(
        "/sign-out", headers={"origin": "https://sibling.127.0.0.1", "sec-fetch-site": "same-site"}
    )
    assert (shown.status, COOKIE in lent_browser.cookies) == (403, True)
    assert (await lent_browser.open("/login")).status == 200


async def test_staying_signed_in_is_chosen(control: Control, browser: ConsoleBrowser) -> None:
    await browser.open("/sign-in")
    await browser.send("/sign-in", token=control.token, stays="on")
    other = another(browser)
    await other.sign_in(control.token)
    control.clock.advance(hours=13)
    assert (await browser.open("/")).status == 200
    assert browser.at == f"{control.url}/"
    await other.open("/")
    assert "/sign-in" in other.at


@in_the_modules_loop
async def test_a_code_signs_in_once(lent: Control, lent_browser: ConsoleBrowser) -> None:
    token = await lent.operator("coder", "deploy")
    made = await lent.ok("POST", "/v1/sign-in-codes", token=token)
    assert re.fullmatch(r"[B-Z]{4}-[B-Z]{4}", made["code"])
    rows = await lent.services.db.read(lambda conn: conn.fetch("SELECT c::text AS c FROM sign_in_codes AS c"))
    assert made["code"].replace("-", "") not in str(rows)
    shown = await lent_browser.open("/sign-in?by=code")
    assert 'name="token"' not in shown.text
    shown = await lent_browser.send("/sign-in", code=made["code"].lower().replace("-", " "))
    assert (lent_browser.at, "coder" in shown.words) == (f"{lent.url}/", True)
    other = another(lent_browser)
    await other.open("/sign-in?by=code")
    shown = await other.send("/sign-in", code=made["code"])
    assert (shown.status, COOKIE in other.cookies) == (401, False)
    actions = [(r["action"], r["details"].get("by")) for r in await lent.items("/v1/audit?actor=coder")]
    assert actions == [("session.begin", "code"), ("code.create", None)]


async def test_a_code_ends_and_its_operator_ends_it(control: Control, browser: ConsoleBrowser) -> None:
    token = await control.operator("anna", "read")
    old = await control.ok("POST", "/v1/sign-in-codes", token=token)
    control.clock.advance(minutes=5, seconds=1)
    new = await control.ok("POST", "/v1/sign-in-codes", token=token)
    await browser.open("/sign-in?by=code")
    assert (await browser.send("/sign-in", code=old["code"])).status == 401
    await control.ok("DELETE", "/v1/operators/anna")
    assert (await browser.send("/sign-in", code=new["code"])).status == 401
    assert COOKIE not in browser.cookies


async def test_codes_that_are_asked_for_hold_up_nothing_else(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, hashed = threading.Event(), list[str]()

    def slow(code: str) -> str:
        hashed.append(code)
        assert go_on.wait(60)
        return f"hash of {code}"

    monkeypatch.setattr(sign_ins, "hash_code", slow)
    standing_still(control.services.sign_ins._made)
    # More than Python has threads for on any machine.
    readers = [await control.operator(f"reader-{n}", "read") for n in range(2)]
    each = sign_ins.MADE[0] + 2
    asked = [asyncio.create_task(control.call("POST", "/v1/sign-in-codes", token=token)) for token in readers * each]
    await until(lambda: asyncio.sleep(0, len(hashed) == sign_ins.HASHED_AT_ONCE))
    # A body that is parsed by a thread.
    async with asyncio.timeout(20):
        assert (await control.call("POST", "/v1/groups", {"name": "x" * 70_000})).status == 422
    go_on.set()
    answers = Counter(answer.status for answer in await asyncio.gather(*asked))
    assert answers == {201: 2 * sign_ins.MADE[0], 429: 4}
    assert (await control.call("POST", "/v1/sign-in-codes")).status == 201, "others' codes don't count"


async def test_codes_cannot_be_found_by_trying(control: Control, browser: ConsoleBrowser) -> None:
    made = await control.ok("POST", "/v1/sign-in-codes")
    standing_still(control.services.sign_ins._tries)
    await browser.open("/sign-in?by=code")
    for _ in range(sign_ins.TRIES[0]):
        shown = await browser.send("/sign-in", code=sign_ins.new_code())
        assert shown.status == 401
    shown = await browser.send("/sign-in", code=made["code"])
    assert (shown.status, COOKIE in browser.cookies) == (429, False)
    assert "too_many_tries" in shown.text
    # Tokens go on.
    await browser.sign_in(control.token)
    assert COOKIE in browser.cookies


async def login(control: Control) -> dict[str, str]:
    made: dict[str, str] = await control.ok("POST", "/v1/logins", {"machine": "<b>anna's laptop</b>"}, token="")
    return made


async def take(control: Control, made: dict[str, str]) -> tuple[int, str, str]:
    """Status, code of a problem, and token."""
    reply = await control.call("POST", "/v1/logins/token", {"device_code": made["device_code"]}, token="")
    return reply.status, "" if reply.status == 200 else reply.code, reply.body.get("token", "")


@in_the_modules_loop
async def test_a_login_is_allowed_by_whoever_types_its_code(lent: Control, lent_browser: ConsoleBrowser) -> None:
    token = await lent.operator("typist", "deploy")
    made = await login(lent)
    assert await take(lent, made) == (403, "login_pending", "")
    await lent_browser.open(made["verification_path"])
    await lent_browser.send("/sign-in", token=token)
    assert lent_browser.at == f"{lent.url}/login"
    shown = await lent_browser.send("/login", code=made["user_code"])
    assert "&lt;b&gt;anna&#39;s laptop" in shown.text
    assert "127.0.0.1" in shown.words
    assert await take(lent, made) == (403, "login_pending", "")
    shown = await lent_browser.send("/login", answer="allow")
    assert "The login is allowed" in shown.words
    status, _, got = await take(lent, made)
    assert status == 200
    assert (await lent.call("GET", "/v1/groups", token=got)).status == 200
    assert await take(lent, made) == (403, "login_ended", "")
    assert (await lent_browser.send("/login", answer="allow")).status == 404
    # Both are of one sign-in, and end apart.
    await lent_browser.open("/login")
    await lent_browser.send("/sign-out")
    assert (await lent.call("GET", "/v1/groups", token=got)).status == 200
    await lent.ok("DELETE", "/v1/sessions/self", token=got)
    assert (await lent.call("GET", "/v1/groups", token=got)).code == "session_ended"
    assert (await lent.call("DELETE", "/v1/sessions/self", token=token)).code == "unknown_session"
    actions = [row["action"] for row in await lent.items("/v1/audit?actor=typist")]
    assert actions == ["session.end", "session.end", "session.begin", "login.allow", "session.begin"]


async def test_a_login_that_is_refused_or_too_late_gives_nothing(control: Control, browser: ConsoleBrowser) -> None:
    await browser.sign_in(control.token)
    made = await login(control)
    await browser.open("/login")
    await browser.send("/login", code=made["user_code"])
    await browser.send("/login", answer="refuse")
    assert await take(control, made) == (403, "login_refused", "")
    late = await login(control)
    control.clock.advance(minutes=11)
    assert await take(control, late) == (403, "login_ended", "")
    await browser.open("/login")
    assert (await browser.send("/login", code=late["user_code"])).status == 404
    for code in ("", "x", "BBBB-BBBB"):
        assert (await browser.send("/login", code=code)).status == 404
    reply = await control.call("POST", "/v1/logins/token", {"device_code": made["device_code"][:-4] + "AAAA"}, token="")
    assert reply.code == "credentials_invalid"


async def test_logins_and_codes_make_nobody_stay_signed_in(control: Control, browser: ConsoleBrowser) -> None:
    """A session by way of another one is as old as that."""
    await browser.sign_in(control.token)
    control.clock.advance(hours=1)
    for hour in range(6):
        made = await login(control)
        await browser.open("/login")
        await browser.send("/login", code=made["user_code"])
        await browser.send("/login", answer="allow")
        token = (await take(control, made))[2]
        code = (await control.ok("POST", "/v1/sign-in-codes", token=token))["code"]
        browser = another(browser)
        await browser.open("/sign-in?by=code")
        await browser.send("/sign-in", code=code, stays="on")
        assert COOKIE in browser.cookies, hour
        control.clock.advance(minutes=110)
    assert (await control.call("GET", "/v1/groups", token=token)).code == "session_ended"
    await browser.open("/")
    assert "/sign-in" in browser.at


async def test_logins_are_begun_only_so_often(control: Control) -> None:
    standing_still(control.services.sign_ins._begins)
    for _ in range(sign_ins.BEGINS[0]):
        await login(control)
    reply = await control.call("POST", "/v1/logins", {"machine": "x"}, token="")
    assert (reply.status, reply.code) == (429, "too_many_tries")
    assert int(reply.headers["retry-after"]) > 0


async def test_strangers_keep_nobody_out_who_has_signed_in_from_there(
    control: Control, browser: ConsoleBrowser, monkeypatch: pytest.MonkeyPatch
) -> None:
    begins = control.services.sign_ins._begins
    standing_still(begins)
    for number in range(sign_ins.BEGINS[1]):
        await begins.take(f"2001:db8:0:{number:x}::1")
    assert (await control.call("POST", "/v1/logins", {"machine": "x"}, token="")).code == "too_many_tries"
    await browser.sign_in(control.token)
    # It is read again soon: who has just signed in may wait for so long.
    monkeypatch.setattr(rate_limits, "AGAIN", 0.0)
    await login(control)
    with pytest.raises(ProblemError):
        await begins.take("2001:db8:1::1")
