"""Operators' tokens: exchanged for others, when they were last used, and names that are used again."""

import asyncio

import pytest

from control.access.auth import AuthError
from control.access.openid_provider import Person
from control.access.rights import Grant, Rights
from control.storage import migrations
from tests.integration.control.access.test_sessions import ask, asking, both, sign_in
from tests.support.control import Control, until

__all__ = ["both"]


async def status(control: Control, token: str) -> int:
    return (await control.call("GET", "/v1/groups", token=token)).status


async def test_a_token_is_exchanged_and_the_old_one_ends_at_once_everywhere(both: tuple[Control, Control]) -> None:
    here, there = both
    old = await here.operator("ci", "deploy")
    secret = await sign_in(here, old)
    assert [await status(control, old) for control in both] == [200, 200]
    made = await here.ok("POST", "/v1/operators/ci/rotate", {"keep_old": 0})
    assert (made["name"], made["grants"][0]["role"]) == ("ci", "deploy")
    assert await status(here, old) == 401
    await until(lambda: _is(there, old, 401))
    assert [await status(control, made["token"]) for control in both] == [200, 200]
    # Whoever had the old token may have signed in by it.
    for control in both:
        with pytest.raises(AuthError):
            await ask(control, secret)
    assert (await ask(here, await sign_in(here, made["token"]))).operator.name == "ci"
    # The answer may have been lost: the same request again gives a token that is good.
    again = [await here.ok("POST", "/v1/operators/ci/rotate", {"keep_old": 0}, key="again") for _ in range(2)]
    assert [await status(here, token) for token in (made["token"], again[0]["token"])] == [401, 401]
    assert await status(here, again[1]["token"]) == 200


async def _is(control: Control, token: str, wanted: int) -> bool:
    return await status(control, token) == wanted


async def test_the_old_token_is_kept_for_a_while(both: tuple[Control, Control]) -> None:
    here, there = both
    old = await here.operator("ci", "deploy")
    secret = await sign_in(here, old)
    made = await here.ok("POST", "/v1/operators/ci/rotate", {"keep_old": 3600})
    await until(lambda: _is(there, made["token"], 200))
    for control in both:
        assert [await status(control, token) for token in (old, made["token"])] == [200, 200]
        assert (await ask(control, secret)).operator.name == "ci"
    shown = await here.ok("GET", "/v1/operators/ci")
    assert shown["old_token_ends_at"] is not None
    newer = await sign_in(here, made["token"])
    here.clock.advance(seconds=3601)
    for control in both:
        assert [await status(control, token) for token in (old, made["token"])] == [401, 200]
        with pytest.raises(AuthError):
            await ask(control, secret)
        assert (await ask(control, newer)).operator.name == "ci"
    assert (await here.ok("GET", "/v1/operators/ci"))["old_token_ends_at"] is None


async def test_a_later_exchange_gives_no_ended_session_back(both: tuple[Control, Control]) -> None:
    here, there = both
    stolen = await here.operator("ci", "deploy")
    secret = await sign_in(here, stolen, stays=True)
    made = await here.ok("POST", "/v1/operators/ci/rotate", {"keep_old": 0})
    await until(lambda: _is(there, made["token"], 200))
    newer = await sign_in(here, made["token"], stays=True)
    here.clock.advance(seconds=60)
    made = await here.ok("POST", "/v1/operators/ci/rotate", {"keep_old": 3600})
    await until(lambda: _is(there, made["token"], 200))
    for control in both:
        with pytest.raises(AuthError):
            await ask(control, secret)
        assert (await ask(control, newer)).operator.name == "ci"


async def test_an_exchanged_token_begins_no_session_and_its_codes_end(control: Control) -> None:
    old = await control.operator("ci", "deploy")
    code = (await control.ok("POST", "/v1/sign-in-codes", token=old))["code"]
    made = await control.ok("POST", "/v1/operators/ci/rotate", {"keep_old": 3600})
    assert await status(control, old) == 200
    with pytest.raises(AuthError) as found:
        await control.services.sign_ins.use_code(asking(), code, stays=True)
    assert found.value.reason == "code_unknown"
    # It would be good for longer than the token.
    with pytest.raises(AuthError) as found:
        await sign_in(control, old, stays=True)
    assert (found.value.code, found.value.reason) == ("token_expired", "exchanged")
    assert (await control.call("POST", "/v1/sign-in-codes", token=old)).code == "token_expired"
    assert (await control.call("POST", "/v1/sign-in-codes", token=made["token"])).status == 201


async def test_an_answer_that_goes_on_for_long_ends_with_its_token(control: Control) -> None:
    old = await control.operator("ci", "deploy")
    asks = [await control.services.auth.operator(asking(authorization=f"Bearer {old}"))]
    made = await control.ok("POST", "/v1/operators/ci/rotate", {"keep_old": 3600})
    for token in (old, made["token"]):
        asks.append(await control.services.auth.operator(asking(authorization=f"Bearer {token}")))
    for who in asks:
        assert (await control.services.sessions.now(who)).name == "ci"
    control.clock.advance(seconds=3601)
    for who in asks[:2]:
        with pytest.raises(AuthError):
            await control.services.sessions.now(who)
    assert (await control.services.sessions.now(asks[2])).name == "ci"
    await control.ok("POST", "/v1/operators/ci/rotate", {"keep_old": 0})
    with pytest.raises(AuthError):
        await control.services.sessions.now(asks[2])


async def test_a_repeated_request_exchanges_no_token_of_a_later_operator(control: Control) -> None:
    making = {"name": "anna", "role": "deploy"}
    await control.ok("POST", "/v1/operators", making, key="make")
    await control.ok("POST", "/v1/operators/anna/rotate", {"keep_old": 0}, key="rotate")
    await control.ok("DELETE", "/v1/operators/anna")
    later = (await control.ok("POST", "/v1/operators", making))["token"]
    again = [
        await control.call("POST", "/v1/operators", making, key="make"),
        await control.call("POST", "/v1/operators/anna/rotate", {"keep_old": 0}, key="rotate"),
    ]
    assert [reply.code for reply in again] == ["unknown_operator"] * 2
    assert await status(control, later) == 200


async def test_a_new_token_by_migrate_ends_the_one_that_was_kept(control: Control) -> None:
    kept = await control.ok("POST", "/v1/operators/admin/rotate", {"keep_old": 3600})
    old, control.token = control.token, kept["token"]
    secret = await sign_in(control)
    control.clock.advance(seconds=1)
    made = await migrations.make_admin(control.services.db, control.clock, again=True)
    assert made is not None
    await until(lambda: _is(control, made, 200))
    assert [await status(control, token) for token in (old, kept["token"])] == [401, 401]
    with pytest.raises(AuthError):
        await ask(control, secret)


async def test_who_may_exchange_whose(control: Control) -> None:
    deployer = await control.operator("deployer", "deploy")
    await control.ok("POST", "/v1/groups", {"name": "north"})
    grants = [{"role": "admin", "group": "north"}]
    north = (await control.ok("POST", "/v1/operators", {"name": "north", "grants": grants}))["token"]
    for token, name, wanted in (
        (deployer, "deployer", 403),
        (north, "deployer", 404),
        (north, "admin", 404),
        (north, "nobody", 404),
        (north, "north", 200),
    ):
        reply = await control.call("POST", f"/v1/operators/{name}/rotate", {"keep_old": 0}, token=token)
        assert reply.status == wanted, (name, reply.body)
    assert (await control.call("POST", "/v1/operators/admin/rotate", {"keep_old": 31 * 86400})).status == 422
    # An admin whose token ends doesn't get one that doesn't.
    body = {"name": "short", "grants": [{"role": "admin"}], "expires_in": 3600}
    short = (await control.ok("POST", "/v1/operators", body))["token"]
    reply = await control.call("POST", "/v1/operators/admin/rotate", {"keep_old": 0}, token=short)
    assert reply.status == 403


async def test_who_signs_in_by_a_provider_gets_no_token(control: Control) -> None:
    person = Person("https://idp.example", "1", "anna", Rights((Grant("read"),)), 1)
    secret = await control.services.people.sign_in(asking(), person)
    name = (await ask(control, secret)).operator.name
    for what, body in (("rotate", {"keep_old": 0}), ("change", {"grants": [{"role": "admin"}]})):
        reply = await control.call("POST", f"/v1/operators/{name}/{what}", body)
        assert (reply.code, "https://idp.example" in reply.body["detail"]) == ("operator_of_provider", True), what
    assert str((await ask(control, secret)).operator.rights) == "read"


async def test_a_last_use_is_noted_by_token_and_by_session(control: Control) -> None:
    token = await control.operator("ci", "deploy")

    async def last(name: str) -> str | None:
        await control.services.auth.uses.flush()
        [listed] = [one for one in await control.items("/v1/operators") if one["name"] == name]
        assert listed == await control.ok("GET", f"/v1/operators/{name}")
        found: str | None = listed["last_used_at"]
        return found

    assert await last("ci") is None
    assert await status(control, token) == 200
    first = await last("ci")
    assert first is not None
    control.clock.advance(seconds=20)
    await status(control, token)
    assert await last("ci") == first, "it is written once a minute at most"
    control.clock.advance(seconds=41)
    secret = await sign_in(control, token)
    second = await last("ci")
    assert second is not None
    assert second > first
    control.clock.advance(seconds=61)
    await ask(control, secret)
    third = await last("ci")
    assert third is not None
    assert third > second


async def test_the_name_of_a_revoked_operator_is_used_again(control: Control) -> None:
    old = await control.operator("anna", "deploy")
    body = {"name": "blue"}
    await control.ok("POST", "/v1/groups", body, token=old, key="one")
    first = (await control.ok("GET", "/v1/operators/anna"))["id"]
    assert (await control.call("POST", "/v1/operators", {"name": "anna", "role": "read"})).code == "name_taken"
    await control.ok("DELETE", "/v1/operators/anna")
    made = await control.ok("POST", "/v1/operators", {"name": "anna", "role": "deploy"})
    assert made["id"] != first
    assert [await status(control, token) for token in (old, made["token"])] == [401, 200]
    # What was answered to the other anna isn't answered to this one.
    reply = await control.call("POST", "/v1/groups", body, token=made["token"], key="one")
    assert reply.code == "name_taken"
    await control.ok("DELETE", "/v1/operators/anna")
    again = await control.ok("POST", "/v1/operators", {"name": "anna", "role": "read"})
    rows = [row for row in await control.items("/v1/audit") if row["target"] == "anna"]
    told = [(row["action"], row["details"]["id"]) for row in reversed(rows)]
    assert told == [
        ("operator.create", first),
        ("operator.revoke", first),
        ("operator.create", made["id"]),
        ("operator.revoke", made["id"]),
        ("operator.create", again["id"]),
    ]
    assert [one["name"] for one in await control.items("/v1/operators")] == ["admin", "anna"]


async def test_two_make_the_same_name_at_once(control: Control) -> None:
    await control.operator("anna", "deploy")
    await control.ok("DELETE", "/v1/operators/anna")
    replies = await asyncio.gather(
        *(control.call("POST", "/v1/operators", {"name": "anna", "role": "read"}) for _ in range(4))
    )
    assert sorted(reply.status for reply in replies) == [201, 409, 409, 409]
