"""What else of who may come in stays as it was when the metadata are restored: sessions, people of a provider, tokens
that end with their operator, and tokens whose answer was lost."""

from uuid import uuid4

import pytest

from control.access.auth import AuthError
from control.access.openid_provider import Person
from control.access.rights import Grant, Rights
from control.access.sessions import COOKIE
from control.storage import migrations
from tests.integration.control.access.test_sessions import asking
from tests.integration.control.storage.test_access_lists import SCOPE, made, rotate, status
from tests.support import deploy
from tests.support.backups import Backups
from tests.support.replica import Replica, Site, TestNode


def person(subject: str, *grants: Grant) -> Person:
    return Person("https://idp.example", subject, subject, Rights(grants), len(grants))


async def signed_in(live: Replica, token: str) -> str:
    """The secret of a session that begins with this token."""
    code = (await deploy.ok(live, "POST", "/v1/sign-in-codes", token=token))["code"]
    return await live.services.sign_ins.use_code(SCOPE, code, stays=True)


async def is_signed_in(live: Replica, secret: str) -> bool:
    try:
        await live.services.sessions.signed_in(asking(cookie=f"{COOKIE}={secret}"))
    except AuthError:
        return False
    return True


async def test_who_has_signed_out_stays_so(control_site: Site, backups: Backups) -> None:
    async with control_site.running() as live:
        token = await made(live, "anna")
        left, stays = [await signed_in(live, token) for _ in range(2)]
        await live.services.access.write()
    backup = await backups.take()
    async with control_site.running() as live:
        session = await live.services.sessions.signed_in(asking(cookie=f"{COOKIE}={left}"))
        await live.services.sessions.end(SCOPE, session.operator)
        await live.services.access.write()
    await backups.restore(backup)
    async with control_site.running() as live:
        assert [await is_signed_in(live, secret) for secret in (left, stays)] == [False, True]


async def test_people_of_a_provider_have_what_they_had_last(control_site: Site, backups: Backups) -> None:
    async with control_site.running() as live:
        people = live.services.people
        revoked = await people.sign_in(SCOPE, person("revoked", Grant("admin")))
        narrowed = await people.sign_in(SCOPE, person("narrowed", Grant("admin")))
        await live.services.access.write()
    backup = await backups.take()
    async with control_site.running() as live:
        people = live.services.people
        await people.sign_in(SCOPE, person("later", Grant("admin")))
        await people.sign_in(SCOPE, person("narrowed", Grant("read")))
        names = {one["name"].rpartition("-")[0]: one["name"] for one in await deploy.items(live, "/v1/operators")}
        for name in ("revoked", "later"):
            await deploy.ok(live, "DELETE", f"/v1/operators/{names[name]}")
        await live.services.access.write()
    for _ in range(2):
        await backups.restore(backup)
        async with control_site.running() as live:
            assert not await is_signed_in(live, revoked)
            session = await live.services.sessions.signed_in(asking(cookie=f"{COOKIE}={narrowed}"))
            assert str(session.operator.rights) == "read"
            # One that the backup doesn't know must not be made anew when they sign in.
            for name in ("revoked", "later"):
                with pytest.raises(AuthError) as found:
                    await live.services.people.sign_in(SCOPE, person(name, Grant("admin")))
                assert found.value.reason == "revoked", name


async def test_join_tokens_end_with_their_operator_and_node(control_site: Site, backups: Backups) -> None:
    async with control_site.running() as live:
        tokens = []
        for name in ("revoked", "narrowed", "kept"):
            maker = await made(live, name, "admin")
            tokens.append((await deploy.ok(live, "POST", "/v1/join-tokens", {}, token=maker))["token"])
        for name in ("stolen", "removed"):
            await live.join(name)
            tokens.append((await deploy.ok(live, "POST", "/v1/join-tokens", {"rejoin": name}))["token"])
        await live.services.access.write()
    backup = await backups.take()
    async with control_site.running() as live:
        await deploy.ok(live, "DELETE", "/v1/operators/revoked")
        await deploy.ok(live, "POST", "/v1/operators/narrowed/change", {"grants": [{"role": "read"}]})
        await deploy.ok(live, "POST", "/v1/nodes/stolen/revoke")
        await deploy.ok(live, "DELETE", "/v1/nodes/removed")
        await live.services.access.write()
    await backups.restore(backup)
    async with control_site.running() as live:
        names = ("one", "two", "three", "stolen", "removed")
        told = []
        for name, token in zip(names, tokens, strict=True):
            body = {"name": name, "attempt": str(uuid4())}
            told.append((await live.call("POST", "/v1/nodes", body, token=token)).status)
        assert told == [401, 401, 201, 401, 401]


async def test_a_token_whose_answer_was_lost_is_the_one_that_came_last(control_site: Site, backups: Backups) -> None:
    async with control_site.running() as live:
        await live.services.access.write()
    backup = await backups.take()
    async with control_site.running() as live:
        lost, good = [await repeated(live, "operators", {"name": "ci", "role": "read"}) for _ in range(2)]
        admin = await migrations.make_admin(live.services.db, live.services.clock, again=True)
        assert admin is not None
        await live.services.access.write()
    await backups.restore(backup)
    async with control_site.running() as live:
        assert [await status(live, token) for token in (lost, good, admin, live.admin)] == [401, 200, 200, 401]


async def test_an_admin_that_migrate_has_made_stays_one(control_site: Site, backups: Backups) -> None:
    """Of a new name, of one that may less, and of one that was revoked, which is somebody else then."""
    async with control_site.running() as live:
        old = [await made(live, name) for name in ("less", "revoked")]
        await live.services.access.write()
    backup = await backups.take()
    async with control_site.running() as live:
        await deploy.ok(live, "DELETE", "/v1/operators/revoked")
        names = ("new", "less", "revoked")
        good = [
            await migrations.make_admin(live.services.db, live.services.clock, name=name, again=True) for name in names
        ]
        await live.services.access.write()
    for _ in range(2):
        async with control_site.running() as live:
            for token in good:
                assert token is not None
                assert (await live.call("GET", "/v1/audit", token=token)).status == 200
            assert [await status(live, token) for token in old] == [401, 401]
        await backups.restore(backup)


async def repeated(live: Replica, what: str, body: dict[str, object], wanted: int = 201) -> str:
    """The token by a request that may have come before, under the same key."""
    headers = {"authorization": f"Bearer {live.admin}", "idempotency-key": what}
    async with live.session.post(f"{live.url}/v1/{what}", json=body, headers=headers) as answer:
        assert answer.status == wanted
        return str((await answer.json())["token"])


async def test_what_waited_in_the_backup_takes_nothing_back(control_site: Site, backups: Backups) -> None:
    """It is in a list, too: applied to metadata that have it and what came after it, it changes nothing."""
    async with control_site.running() as live:
        ci = {"name": "ci", "role": "read"}
        lost, leaked = [await repeated(live, "operators", ci) for _ in range(2)]
        good = await rotate(live, "ci", 0)
        kept = await made(live, "kept")
        later = [await repeated(live, "operators/kept/rotate", {"keep_old": 3600}, 200) for _ in range(2)]
        await live.join("stolen")
        await deploy.ok(live, "POST", "/v1/nodes/stolen/revoke")
        token = (await deploy.ok(live, "POST", "/v1/join-tokens", {"rejoin": "stolen"}))["token"]
        joined = await deploy.ok(live, "POST", "/v1/nodes", {"name": "stolen", "attempt": str(uuid4())}, token=token)
        again = TestNode(live, joined["node_id"], joined["credential"])
        assert (await again.ask(report=True)).status == 204
    backup = await backups.take()
    async with control_site.running() as live:
        await live.services.access.write()
    await backups.restore(backup)
    async with control_site.running() as live:
        assert (await deploy.ok(live, "GET", "/v1/artifact-store"))["restored_at"] is not None
        assert [await status(live, token) for token in (lost, leaked, good)] == [401, 401, 200]
        assert [await status(live, token) for token in (kept, *later)] == [200, 401, 200]
        again.replica = live
        assert (await again.ask(report=True)).status == 204
