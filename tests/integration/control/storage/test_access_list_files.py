"""The lists of who may come in, in the bucket: how large they get, who wrote them, and a bucket that doesn't answer."""

import asyncio
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from control.local.seaweedfs import s3_client
from control.problems import ProblemError
from control.storage import access_journal, access_list
from control.storage.object_store import Store
from control.web import lifespan
from control.web.lifespan import STORE_PATIENCE
from tests.integration.control.storage.test_access_lists import join_token, made, status
from tests.support import deploy
from tests.support.backups import Backups, RowBackup
from tests.support.clock import SetClock
from tests.support.control import until
from tests.support.replica import Replica, Site
from tests.support.store_proxy import store_proxy


async def test_changes_with_many_grants_are_lists_that_can_be_read(
    control_site: Site, backups: Backups, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with control_site.running() as live:
        token = await made(live, "revoked")
        await live.services.access.write()
    backup = await backups.take()
    grants = [{"role": "push", "group": "default", "functions": [f"f{'x' * 50}{n}" for n in range(20)]}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(access_list, "MOST_BYTES", 3000)
        async with control_site.running() as live:
            for number in range(5):
                await deploy.ok(live, "POST", "/v1/operators", {"name": f"many-{number}", "grants": grants})
            await deploy.ok(live, "DELETE", "/v1/operators/revoked")
            await live.services.access.write()
    await backups.restore(backup)
    monkeypatch.setattr(access_list, "MOST_BYTES", 3000)
    async with control_site.running() as live:
        assert await status(live, token) == 401
        assert not live.services.access.unverified


@pytest.mark.background("access lists")
async def test_a_bucket_that_does_not_answer_holds_no_revocation_up(
    control_site: Site, bucket_url: str, backups: Backups
) -> None:
    async with store_proxy(bucket_url) as proxy:
        async with control_site.running(artifacts_url=proxy.url) as live:
            token, stolen = await made(live, "revoked"), await live.join("stolen")
            assert (await stolen.ask(report=True)).status == 204
            await live.services.access.write()
        backup = await backups.take()
        async with control_site.running(artifacts_url=proxy.url) as live:
            proxy.answers(503, "SlowDown")
            await deploy.ok(live, "DELETE", "/v1/operators/revoked")
            await deploy.ok(live, "POST", "/v1/nodes/stolen/revoke")
            store = await deploy.ok(live, "GET", "/v1/artifact-store")
            # The node's join token, too.
            assert (store["access_waiting"], store["access_waiting_since"] is not None) == (3, True)
            proxy.answer = b""
            await live.services.access.write()
            store = await deploy.ok(live, "GET", "/v1/artifact-store")
            assert (store["access_waiting"], store["access_waiting_since"]) == (0, None)
        await backups.restore(backup)
        proxy.answers(503, "SlowDown")
        async with control_site.running(artifacts_url=proxy.url) as live:
            # It can't know yet; it says so, and applies the list once the store answers.
            stolen.replica = live
            assert (await live.call("GET", "/v1/nodes", token=token)).status == 200
            assert (await stolen.ask()).status == 204
            proxy.answer = b""

            async def refused() -> bool:
                answers = await live.call("GET", "/v1/nodes", token=token), await stolen.ask()
                return [answer.status for answer in answers] == [401, 401]

            await until(refused)


async def test_a_bucket_that_does_not_answer_for_long_leaves_nothing_behind(
    control_site: Site, bucket_url: str, connection: Any
) -> None:
    async with store_proxy(bucket_url) as proxy, control_site.running(artifacts_url=proxy.url) as live:
        await made(live, "one")
        await live.services.access.write()
        await made(live, "two")
        lists = await connection.fetchval("SELECT count(*) FROM access_lists")
        proxy.answers(503, "SlowDown")
        for _ in range(3):
            with pytest.raises(ProblemError, match="store"):
                await live.services.access.write()
        assert await connection.fetchval("SELECT count(*) FROM access_lists") == lists
        proxy.answer = b""
        await live.services.access.write()
        assert await connection.fetchval("SELECT count(*) FROM access_lists") == lists + 1


async def test_a_running_control_lets_nobody_in_until_the_bucket_answers(
    control_site: Site, bucket_url: str, connection: Any
) -> None:
    async with store_proxy(bucket_url) as proxy, control_site.running(artifacts_url=proxy.url) as live:
        token, joining, node = await made(live, "revoked"), await join_token(live), await live.join("one")
        backup = RowBackup(connection)
        await backup.take()
        await deploy.ok(live, "DELETE", "/v1/operators/revoked")
        await live.services.access.write()
        proxy.answers(503, "SlowDown")
        async with backup.putting_back():
            pass

        async def restoring() -> bool:
            return (await node.ask()).status == 503

        await until(restoring)
        assert (await live.call("GET", "/v1/nodes", token=token)).status == 503
        body = {"name": "two", "attempt": "00000000-0000-0000-0000-000000000001"}
        assert (await live.call("POST", "/v1/nodes", body, token=joining["token"])).status == 503
        proxy.answer = b""

        async def answered() -> bool:
            return (await node.ask(report=True)).status == 204

        await until(answered)
        assert (await live.call("GET", "/v1/nodes", token=token)).status == 401


async def test_a_start_waits_for_all_lists_while_the_store_answers(
    control_site: Site, backups: Backups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_list, "MOST", 1)
    async with control_site.running() as live:
        tokens = [await made(live, f"o{n}") for n in range(5)]
        await live.services.access.write()
    backup = await backups.take()
    async with control_site.running() as live:
        for n in range(5):
            await deploy.ok(live, "DELETE", f"/v1/operators/o{n}")
        await live.services.access.write()
    await backups.restore(backup)
    # All of them take longer than a start waits, each by itself much less.
    clock, read = SetClock(timers="stand"), Store.read
    began = clock.monotonic()

    async def slow(store: Store, *args: Any) -> Any:
        clock.advance(STORE_PATIENCE / 4)
        return await read(store, *args)

    monkeypatch.setattr(Store, "read", slow)
    async with control_site.running(clock=clock) as live:
        assert clock.monotonic() - began > 1.2 * STORE_PATIENCE
        assert live.services.access.looked
        assert [await status(live, token) for token in tokens] == [401] * 5


async def test_lists_that_are_none_of_ours_hold_no_start_up_and_let_nobody_in(
    control_site: Site, bucket_url: str, backups: Backups, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with control_site.running() as live:
        token, node = await made(live, "revoked"), await live.join("one")
        joining = await join_token(live)
        await live.services.access.write()
        owner, _ = await live.services.db.read(lambda conn: conn.one(access_journal.KEY))
    backup = await backups.take()
    async with control_site.running() as live:
        await deploy.ok(live, "DELETE", "/v1/operators/revoked")
        await live.services.access.write()
    await backups.restore(backup)
    junk = 40
    async with s3_client(bucket_url) as client:
        name = bucket_url.rpartition("/")[2]
        for number in range(junk):
            # Before the list that counts, which is named by its time.
            await client.put_object(Bucket=name, Key=f"{access_list.folder(owner)}0-{number:03}", Body=b"junk")
    clock, read, reads, slowly = SetClock(timers="stand"), Store.read, list[str](), True

    async def slow(store: Store, key: str, *more: Any) -> Any:
        if key.startswith(access_list.FOLDER):
            reads.append(key)
            # All together take longer than a start waits, each by itself much less.
            clock.advance(slowly * STORE_PATIENCE / 4)
            await asyncio.sleep(0)
        return await read(store, key, *more)

    monkeypatch.setattr(Store, "read", slow)
    monkeypatch.setattr(lifespan, "STORE_PATIENCE", STORE_PATIENCE)
    async with control_site.running(clock=clock) as live:
        assert not live.services.access.looked
        for _ in range(2):
            body = {"name": "x", "attempt": "00000000-0000-0000-0000-000000000001"}
            answers = [
                await live.call("GET", "/v1/nodes", token=token),
                await live.call("GET", "/v1/nodes"),
                await replace(node, replica=live).ask(),
                await live.call("POST", "/v1/nodes", body, token=joining["token"]),
            ]
            assert [answer.status for answer in answers] == [503] * 4, answers
            ready = await live.call("GET", "/readyz", token="")
            assert (ready.status, "access lists" in ready.json()["detail"]) == (503, True), ready
        slowly = False
        await live.services.fleet.refresh()
        assert await status(live, token) == 401
        assert (await live.call("GET", "/v1/nodes")).status == 200
        assert live.services.access.unverified == junk
        assert len(reads) <= junk + 1 + access_journal.READ_AT_ONCE, "what was judged isn't read again"


async def test_a_start_reads_lists_for_so_long_and_no_longer(
    control_site: Site, backups: Backups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where all of them are good."""
    monkeypatch.setattr(access_list, "MOST", 1)
    monkeypatch.setattr(access_journal, "READ_AT_ONCE", 1)
    async with control_site.running() as live:
        tokens = [await made(live, f"o{n}") for n in range(5)]
        await live.services.access.write()
    backup = await backups.take()
    async with control_site.running() as live:
        for n in range(5):
            await deploy.ok(live, "DELETE", f"/v1/operators/o{n}")
        await live.services.access.write()
    await backups.restore(backup)
    clock, read, slowly = SetClock(timers="stand"), Store.read, True

    async def slow(store: Store, *args: Any) -> Any:
        if slowly and args[0].startswith(access_list.FOLDER):
            clock.advance(STORE_PATIENCE / 2)
            await asyncio.sleep(0)
        return await read(store, *args)

    monkeypatch.setattr(Store, "read", slow)
    monkeypatch.setattr(lifespan, "LISTS_PATIENCE", STORE_PATIENCE * 1.7)
    async with control_site.running(clock=clock) as live:
        assert not live.services.access.looked
        # Those of the lists that were applied are known to be revoked, and nobody else is let in.
        assert {await status(live, token) for token in tokens} == {401, 503}
        slowly = False
        await live.services.fleet.refresh()
        assert [await status(live, token) for token in tokens] == [401] * 5
        told = (await live.call("GET", "/v1/audit?action=metadata.restored")).json()["items"]
        assert [entry["details"]["access_lists"] for entry in told] == [5]


async def when_ready(live: Replica) -> Any:
    """What /readyz answers once control is ready: something may not have answered it in time on a busy machine."""
    answer = await live.call("GET", "/readyz", token="")
    return answer.json() if answer.status == 200 else None


async def test_a_list_that_somebody_else_has_written_is_not_applied(
    control_site: Site, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with control_site.running() as live:
        await made(live, "kept")
        owner, key = await live.services.db.read(lambda conn: conn.one(access_journal.KEY))
        operator = await live.services.db.read(
            lambda conn: conn.fetchval("SELECT id::text FROM operators WHERE name = 'kept'")
        )
        now = live.services.clock.now()
    forged = access_list.AccessChange(now, "operator-revoked", operator, {"name": "kept"})
    name = f"{access_list.folder(owner)}forged.json"
    async with s3_client(bucket_url) as client:
        for code in ("f" * 36, key):
            # With the right key, too, it isn't good under another name.
            body = access_list.encode(code, f"{name}x", [forged])
            await client.put_object(Bucket=bucket_url.rpartition("/")[2], Key=name, Body=body)
            async with control_site.running() as live:
                ready = await until(partial(when_ready, live))
                assert "can't be verified" in ready["notes"][0]
                operators = (await live.call("GET", "/v1/operators")).json()["items"]
                assert "kept" in {item["name"] for item in operators}


async def test_many_changes_are_several_lists(
    control_site: Site, backups: Backups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_list, "MOST", 3)
    async with control_site.running() as live:
        tokens = [await made(live, f"o{n}") for n in range(8)]
    backup = await backups.take()
    async with control_site.running() as live:
        await asyncio.gather(*(deploy.ok(live, "DELETE", f"/v1/operators/o{n}") for n in range(8)))
        await live.services.access.write()
    await backups.restore(backup)
    keys = Store.keys

    async def of_two(store: Store, prefix: str, after: str) -> tuple[list[str], bool]:
        """As the store answers whose pages have two keys."""
        found, more = await keys(store, prefix, after)
        return found[:2], more or len(found) > 2

    monkeypatch.setattr(Store, "keys", of_two)
    async with control_site.running() as live:
        for token in tokens:
            assert (await live.call("GET", "/v1/nodes", token=token)).status == 401


async def test_names_that_are_taken_as_a_list_was_lost_hold_up_no_other_change(
    control_site: Site, bucket_url: str, backups: Backups
) -> None:
    async def lists(client: Any) -> set[str]:
        name = bucket_url.rpartition("/")[2]
        listed = await client.list_objects_v2(Bucket=name, Prefix=access_list.FOLDER)
        return {item["Key"] for item in listed.get("Contents", ())}

    async with s3_client(bucket_url) as client:
        async with control_site.running() as live:
            till, desk, spare = [await live.join(name) for name in ("till", "desk", "spare")]
            first, revoked = await made(live, "ci"), await made(live, "revoked")
            await live.services.access.write()
        backup = await backups.take()
        async with control_site.running() as live:
            before = await lists(client)
            for what in ("nodes/till", "nodes/spare", "operators/ci"):
                await deploy.ok(live, "DELETE", f"/v1/{what}")
            await live.services.access.write()
            freed = await lists(client) - before
            later = await live.join("till")
            await deploy.ok(live, "POST", "/v1/nodes/desk/rename", {"name": "spare"})
            second = await made(live, "ci")
            await deploy.ok(live, "DELETE", "/v1/operators/revoked")
            await live.services.access.write()
        assert freed
        for key in freed:
            await client.delete_object(Bucket=bucket_url.rpartition("/")[2], Key=key)
    await backups.restore(backup)
    async with control_site.running() as live:
        assert live.services.access.looked
        for node, name in ((till, "till"), (desk, "desk"), (spare, "spare")):
            assert (await live.node(name))["id"] == node.id
            assert (await replace(node, replica=live).ask(report=True)).status == 204
        assert (await replace(later, replica=live).ask()).status == 401
        assert [await status(live, token) for token in (first, second, revoked)] == [200, 401, 401]
