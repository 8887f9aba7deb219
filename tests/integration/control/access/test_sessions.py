"""Sessions, on a real database and by two replicas: what they are good for, and what ends them, everywhere."""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.types import Scope

from control.access import auth, sessions
from control.access.auth import AuthError
from control.access.sessions import COOKIE, ConsoleSession
from control.local.pki import Pki
from control.storage.database import Database
from tests.support import replica
from tests.support.clock import SetClock
from tests.support.control import Control, running, until


@pytest.fixture
async def first(long_waits: None, database_url: str, bucket_url: str, pki: Pki) -> AsyncIterator[Control]:
    async with running(database_url, bucket_url, pki) as control:
        yield control


@pytest.fixture
async def both(
    long_waits: None, database_url: str, bucket_url: str, pki: Pki, tmp_path: Any
) -> AsyncIterator[tuple[Control, Control]]:
    """Two replicas, on one clock."""
    clock = SetClock(time="run")
    site = await replica.prepare(database_url, bucket_url, pki, tmp_path)
    async with site.running(clock=clock) as a, site.running(clock=clock) as b:
        yield (
            Control(a.server, site.admin, clock, a.session),
            Control(b.server, site.admin, clock, b.session),
        )


def asking(**headers: str) -> Scope:
    """A request as the application has it."""
    sent = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "headers": sent, "client": ("192.0.2.7", 1), "request_id": b"call-1"}


async def sign_in(control: Control, token: str = "", **more: Any) -> str:
    """Begin a session of the operator with this token, as /sign-in does; its secret."""
    operator = await control.services.auth.operator(asking(authorization=f"Bearer {token or control.token}"))
    return await control.services.sessions.begin(asking(), operator, **{"used_in": "console", "by": "token", **more})


async def ask(control: Control, secret: str) -> ConsoleSession:
    return await control.services.sessions.signed_in(asking(cookie=f"a=b; {COOKIE}={secret}; c=d"))


async def refused(control: Control, secret: str) -> tuple[str, str]:
    """The code and the recorded reason of a refusal that must come."""
    with pytest.raises(AuthError) as found:
        await ask(control, secret)
    return found.value.code, found.value.reason


@asynccontextmanager
async def counted(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[str]]:
    """What of the database is asked for in sessions' name, meanwhile."""
    asked: list[str] = []
    find = sessions.Lookups.find

    async def counting(self: Any, id: str) -> Any:
        asked.append(id)
        return await find(self, id)

    with monkeypatch.context() as patch:
        patch.setattr(sessions.Lookups, "find", counting)
        yield asked


async def test_a_session_is_its_operator_in_the_browser_alone(first: Control) -> None:
    token = await first.operator("anna", "deploy")
    secret = await sign_in(first, token)
    found = await ask(first, secret)
    assert (found.operator.name, str(found.operator.rights)) == ("anna", "deploy")
    assert found.operator.signed_in == {"in": "console", "by": "token", "session": found.id}
    assert found.form_token == sessions.form_token(secret) != secret
    # A cookie's secret is no token of the API, nor an operator's token a cookie.
    assert (await first.call("GET", "/v1/groups", token=secret)).code == "credentials_invalid"
    assert await refused(first, token) == ("credentials_invalid", "malformed")
    assert (await first.call("GET", "/v1/groups", token="", headers={"cookie": f"{COOKIE}={secret}"})).status == 401


async def test_what_skerry_login_gets_is_a_token_of_the_api_alone(first: Control) -> None:
    token = await first.operator("anna", "read")
    secret = await sign_in(first, token, used_in="cli", by="provider")
    assert (await first.call("GET", "/v1/groups", token=secret)).status == 200
    assert (await first.call("POST", "/v1/groups", {"name": "north"}, token=secret)).code == "role_insufficient"
    assert await refused(first, secret) == ("credentials_invalid", "wrong_secret")


async def test_a_known_session_asks_no_database(first: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = await sign_in(first)
    await ask(first, secret)

    async def no_database(*_: Any) -> Any:
        raise AssertionError("the database is asked")

    with monkeypatch.context() as patch:
        for method in ("read", "transaction"):
            patch.setattr(Database, method, no_database)
        first.services.fleet._read_at = first.services.clock.monotonic()
        assert (await ask(first, secret)).operator.name == "admin"


async def test_secrets_are_stored_nowhere(first: Control, caplog: pytest.LogCaptureFixture) -> None:
    secret = await sign_in(first)
    await ask(first, secret)
    with pytest.raises(AuthError) as wrong:
        await ask(first, secret[:-1] + ("A" if secret[-1] != "A" else "B"))
    text = secret.split("_", 2)[2]
    assert (wrong.value.code, wrong.value.reason) == ("credentials_invalid", "wrong_secret")
    rows = await first.services.db.read(lambda conn: conn.fetch("SELECT s::text AS s FROM sessions AS s"))
    logged = str(rows) + str(await first.items("/v1/audit")) + caplog.text + str(wrong.value)
    assert text not in logged
    assert sessions.form_token(secret) not in logged


async def test_signing_out_ends_it_at_every_replica(both: tuple[Control, Control]) -> None:
    one, other = both
    secret = await sign_in(one)
    session = await ask(one, secret)
    elsewhere = await ask(other, secret)
    assert other.services.sessions.holds(elsewhere)
    await one.services.sessions.end(asking(), session.operator)
    # At once where it was done, and elsewhere within the time between two readings of the epochs.
    assert await refused(one, secret) == ("session_ended", "session_ended")
    assert not one.services.sessions.holds(session)

    async def ended() -> bool:
        return not other.services.sessions.holds(elsewhere)

    await until(ended)
    assert await refused(other, secret) == ("session_ended", "session_ended")
    await one.services.sessions.end(asking(), session.operator)
    actions = [row["action"] for row in await one.items("/v1/audit") if row["action"].startswith("session.")]
    assert actions == ["session.end", "session.begin"], "the second end does nothing"


async def test_it_ends_with_its_operator_and_has_the_rights_of_now(both: tuple[Control, Control]) -> None:
    one, other = both
    token = await one.operator("anna", "admin")
    secret = await sign_in(one, token)
    seen = [await ask(one, secret), await ask(other, secret)]
    await one.ok("POST", "/v1/operators/anna/change", {"grants": [{"role": "read"}]})
    assert str((await ask(one, secret)).operator.rights) == "read"

    async def changed() -> bool:
        return str((await ask(other, secret)).operator.rights) == "read"

    await until(changed)
    assert not any(
        c.services.sessions.holds(s) and str(s.operator.rights) == "read" for c, s in zip(both, seen, strict=True)
    )
    await one.ok("DELETE", "/v1/operators/anna")
    assert await refused(one, secret) == ("credentials_invalid", "revoked")

    async def revoked() -> bool:
        try:
            await ask(other, secret)
        except AuthError as error:
            return error.reason == "revoked"
        return False

    await until(revoked)


async def test_an_end_that_is_announced_within_a_look_up_is_not_missed(
    both: tuple[Control, Control], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row is read, then the session ends and that is announced, and only then would it be put into memory."""
    one, other = both
    secret = await sign_in(one)
    session = await ask(one, secret)
    read = sessions.Lookups.find
    once = [True]

    async def slow(self: Any, id: str) -> Any:
        found = await read(self, id)
        if id == session.id and once:
            once.clear()
            await one.services.sessions.end(asking(), session.operator)
            await other.services.fleet.refresh()
        return found

    monkeypatch.setattr(sessions.Lookups, "find", slow)
    assert await refused(other, secret) == ("session_ended", "session_ended")


async def test_a_look_up_ends_though_something_is_announced_all_the_time(
    both: tuple[Control, Control], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = both
    await one.operator("anna", "read")
    secret = await sign_in(one)
    read = sessions.Lookups.find
    rights = itertools.cycle(("push", "read"))
    readings = 0

    async def busy(self: Any, id: str) -> Any:
        nonlocal readings
        readings += 1
        found = await read(self, id)
        await one.ok("POST", "/v1/operators/anna/change", {"grants": [{"role": next(rights)}]})
        await other.services.fleet.refresh()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(sessions.Lookups, "find", busy)
        session = await ask(other, secret)
        assert (session.operator.name, readings) == ("admin", sessions.READINGS)
    assert not other.services.sessions.holds(session), "what was read isn't kept"
    assert other.services.sessions.holds(await ask(other, secret))


async def test_it_ends_by_its_age(first: Control) -> None:
    short, long, cli = await sign_in(first), await sign_in(first, stays=True), await sign_in(first, used_in="cli")
    for _ in range(7):  # in use all the time
        first.clock.advance(minutes=100)
        for secret in (short, long):
            await ask(first, secret)
    assert (await first.call("GET", "/v1/groups", token=cli)).status == 200
    first.clock.advance(minutes=21)
    assert await refused(first, short) == ("session_ended", "session_ended")
    assert (await first.call("GET", "/v1/groups", token=cli)).code == "session_ended"
    first.clock.advance(days=6)
    session = await ask(first, long)
    first.clock.advance(hours=13)
    assert await refused(first, long) == ("session_ended", "session_ended")
    assert not first.services.sessions.holds(session)


async def test_it_ends_with_its_operators_token(first: Control) -> None:
    made = await first.ok("POST", "/v1/operators", {"name": "anna", "role": "read", "expires_in": 3600})
    secret = await sign_in(first, made["token"])
    await ask(first, secret)
    first.clock.advance(minutes=61)
    assert await refused(first, secret) == ("session_ended", "session_ended")


async def test_it_ends_by_standing_idle_at_all_replicas_together(both: tuple[Control, Control]) -> None:
    one, other = both
    secret = await sign_in(one)
    await ask(one, secret)
    session = await ask(other, secret)
    one.clock.advance(minutes=100)
    await ask(one, secret)
    await one.services.sessions.flush()
    one.clock.advance(minutes=100)
    # In use at the one, while the other saw nothing of it for 200 minutes.
    assert not other.services.sessions.holds(session)
    assert (await ask(other, secret)).operator.name == "admin"
    await other.services.sessions.flush()
    one.clock.advance(minutes=121)
    for control in both:
        assert await refused(control, secret) == ("session_ended", "session_ended")


async def test_a_write_in_a_session_that_has_ended_is_refused_whatever_memory_says(first: Control) -> None:
    secret = await sign_in(first, used_in="cli")
    assert (await first.call("POST", "/v1/groups", {"name": "north"}, token=secret)).status == 201
    # As another replica does it, before this one has read the announcement.
    await first.services.db.transaction(lambda conn: conn.execute("UPDATE sessions SET ended_at = made_at"))
    reply = await first.call("POST", "/v1/groups", {"name": "south"}, token=secret)
    assert (reply.status, reply.code) == (401, "session_ended")
    assert {g["name"] for g in await first.items("/v1/groups")} == {"default", "north"}


async def test_the_audit_log_says_in_which_session_it_was_done(first: Control) -> None:
    secret = await sign_in(first, used_in="cli")
    await first.ok("POST", "/v1/groups", {"name": "north"}, token=secret)
    await first.ok("POST", "/v1/groups", {"name": "south"})
    rows = {row["target"]: row for row in reversed(await first.items("/v1/audit"))}
    begun = rows["admin"]
    assert (begun["action"], begun["actor"], begun["address"]) == ("session.begin", "admin", "192.0.2.7")
    assert begun["details"]["in"] == "cli"
    assert rows["north"]["details"]["session"] == begun["details"]
    assert "session" not in rows["south"]["details"]


async def test_two_cookies_of_the_name_are_none(first: Control) -> None:
    """Whoever can put a second one into the browser must not choose between them."""
    secret, other = await sign_in(first), await sign_in(first)
    for sent in (f"{COOKIE}={secret}; {COOKIE}={other}", f"{COOKIE}={secret}; {COOKIE}={secret}"):
        with pytest.raises(AuthError) as found:
            await first.services.sessions.signed_in(asking(cookie=sent))
        assert (found.value.code, found.value.reason) == ("credentials_invalid", "two_cookies")
    with pytest.raises(AuthError) as none:
        await first.services.sessions.signed_in(asking(cookie="skerry=a"))
    assert (none.value.code, none.value.reason) == ("credentials_missing", "")


async def test_a_revoked_operator_signs_in_no_more(first: Control) -> None:
    token = await first.operator("anna", "read")
    operator = await first.services.auth.operator(asking(authorization=f"Bearer {token}"))
    await first.ok("DELETE", "/v1/operators/anna")
    with pytest.raises(AuthError):
        await first.services.sessions.begin(asking(), operator, "console", "token")


async def test_made_up_sessions_are_looked_up_together(first: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    async with counted(monkeypatch) as asked:
        for _ in range(3):
            assert await refused(first, f"sks_{auth.tokens.new_token('session').id}_{'a' * 43}") == (
                "credentials_invalid",
                "unknown",
            )
        assert len(asked) == 3
        assert await refused(first, "sks_nothing") == ("credentials_invalid", "malformed")
        assert len(asked) == 3


async def test_old_sessions_are_deleted(first: Control) -> None:
    await sign_in(first)
    monitor = first.services.monitor()
    for days, left in ((7.5, 1), (1, 0)):
        first.clock.advance(days=days)
        await monitor.retention(first.clock.now())
        rows = await first.services.db.read(lambda conn: conn.fetch("SELECT id FROM sessions"))
        assert len(rows) == left


def test_what_a_browser_is_told() -> None:
    name, value = sessions.set_cookie(COOKIE, "x")
    assert (name, value) == (b"set-cookie", b"__Host-skerry=x; Path=/; Secure; HttpOnly; SameSite=Lax")
    assert sessions.set_cookie(COOKIE, "", seconds=0)[1].endswith(b"; Max-Age=0")
