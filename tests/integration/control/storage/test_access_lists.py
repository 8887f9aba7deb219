"""Who may come in stays as it was when the metadata are restored: the bucket has lists of what changed."""

from dataclasses import replace
from typing import Any

import pytest

from control.access.auth import AuthError
from control.access.sessions import COOKIE
from control.problems import ProblemError
from control.storage.access_journal import AccessJournal
from tests.integration.control.access.test_sessions import asking
from tests.support import deploy
from tests.support.backups import Backups, RowBackup
from tests.support.control import until
from tests.support.replica import Replica, Site, TestNode

SCOPE = asking()


async def made(live: Replica, name: str, role: str = "read") -> str:
    return str((await deploy.ok(live, "POST", "/v1/operators", {"name": name, "role": role}))["token"])


async def join_token(live: Replica) -> Any:
    return await deploy.ok(live, "POST", "/v1/join-tokens", {"group": "default"})


async def rotated(node: TestNode) -> TestNode:
    """The node with the successor of its credential, which it hasn't used yet."""
    answer = await node.replica.call("POST", "/v1/nodes/self/credential", token=node.credential)
    assert answer.status == 201, answer
    return TestNode(node.replica, node.id, answer.json()["credential"], node.inventory, node.generation)


class Before:
    """What there is when the backup is made."""

    async def make(self, live: Replica) -> None:
        self.revoked, self.narrowed = await made(live, "revoked"), await made(live, "narrowed", "admin")
        self.kept = await made(live, "kept")
        self.unwanted, self.removed, self.stolen = [await live.join(name) for name in ("unwanted", "removed", "stolen")]
        self.rotating, self.rejoining = await live.join("rotating"), await live.join("rejoining")
        self.nodes = [self.unwanted, self.removed, self.stolen, self.rotating, self.rejoining]
        for node in self.nodes:
            assert (await node.ask(report=True)).status == 204
        self.token, self.used, self.open = [await join_token(live) for _ in range(3)]


class After:
    """What changes after the backup was made."""

    async def make(self, live: Replica, before: Before) -> None:
        await deploy.ok(live, "DELETE", "/v1/operators/revoked")
        change = {"grants": [{"role": "read", "group": "default"}]}
        await deploy.ok(live, "POST", "/v1/operators/narrowed/change", change)
        await deploy.ok(live, "POST", "/v1/nodes/unwanted/revoke")
        await deploy.ok(live, "DELETE", "/v1/nodes/removed")
        self.made = await made(live, "made")
        # The thief has the credential that was rotated out and the one that followed it.
        self.successor = await rotated(before.stolen)
        assert (await self.successor.ask()).status == 204
        await deploy.ok(live, "POST", "/v1/nodes/stolen/revoke")
        self.rotated = await rotated(before.rotating)
        assert (await self.rotated.ask()).status == 204
        self.unused = await rotated(self.rotated)
        self.again = await rotated(self.rotated)
        await deploy.ok(live, "DELETE", f"/v1/join-tokens/{before.token['id']}")
        body = {"name": "new", "attempt": "00000000-0000-0000-0000-000000000001", "labels": {"a": "b"}}
        joined = await deploy.ok(live, "POST", "/v1/nodes", body, token=before.used["token"])
        self.new = TestNode(live, joined["node_id"], joined["credential"])
        assert (await self.new.ask(report=True)).status == 204
        token = (await deploy.ok(live, "POST", "/v1/join-tokens", {"group": "default", "rejoin": "rejoining"}))["token"]
        body = {"name": "rejoining", "attempt": "00000000-0000-0000-0000-000000000002"}
        joined = await deploy.ok(live, "POST", "/v1/nodes", body, token=token)
        self.rejoined = TestNode(live, joined["node_id"], joined["credential"])
        assert (await self.rejoined.ask(report=True)).status == 204


async def is_refused(live: Replica, node: TestNode) -> bool:
    return (await replace(node, replica=live).ask()).status == 401


async def check(live: Replica, before: Before, after: After) -> None:
    """Who may come in is what was so when the database was lost."""
    for name in ("stolen", "removed", "unwanted"):
        assert await is_refused(live, getattr(before, name)), name
    assert await is_refused(live, after.successor), "the one that followed is revoked, too"
    assert await is_refused(live, before.rejoining), "the disk that was lost"
    for node in (after.rotated, after.new, after.rejoined):
        answer = await replace(node, replica=live).ask(report=True)
        assert answer.status == 204, answer
    assert await is_refused(live, before.rotating), "its successor was used"
    assert await is_refused(live, after.unused), "a later successor took its place"
    assert (await replace(after.again, replica=live).ask(report=True)).status == 204
    assert await is_refused(live, after.rotated)
    for token, status in ((before.revoked, 401), (before.narrowed, 200), (before.kept, 200), (after.made, 200)):
        assert (await live.call("GET", "/v1/nodes", token=token)).status == status
    assert (await live.call("GET", "/v1/operators", token=before.narrowed)).status == 403
    for token, status in ((before.token, 401), (before.used, 401), (before.open, 201)):
        body = {"name": "another", "attempt": "00000000-0000-0000-0000-000000000003"}
        assert (await live.call("POST", "/v1/nodes", body, token=token["token"])).status == status
    for name in ("unwanted", "stolen", "rejoining", "rotating", "new"):
        assert ((await live.node(name))["state"] == "revoked") == (name in ("unwanted", "stolen")), name
    shown = await live.node("new")
    assert (shown["group"], shown["labels"]) == ("default", {"a": "b"})
    assert (await live.call("GET", "/v1/nodes/removed")).status == 404
    entries = (await live.call("GET", "/v1/audit?action=metadata.restored")).json()["items"]
    assert entries[0]["details"]["applied"]["operator-revoked"] == 1
    store = (await live.call("GET", "/v1/artifact-store")).json()
    assert store["restored_at"] is not None


async def test_who_may_come_in_survives_a_restore_under_a_running_control(control_site: Site, connection: Any) -> None:
    async with control_site.running() as live:
        before, after, backup = Before(), After(), RowBackup(connection)
        await before.make(live)
        await backup.take()
        await after.make(live, before)
        await live.services.access.write()
        mark = live.services.fleet.mark
        count = mark.committed

        async def marked() -> bool:
            return mark.committed >= count + 2

        await until(marked)
        async with backup.putting_back():
            pass

        async def noticed() -> bool:
            answer = await live.call("GET", "/v1/artifact-store")
            return answer.status == 200 and answer.json()["restored_at"] is not None

        # Nobody who was revoked is let in at any time from then on.
        while not await noticed():
            assert (await live.call("GET", "/v1/nodes", token=before.revoked)).status in (401, 503)
            assert (await before.stolen.ask()).status in (401, 503)
        await check(live, before, after)


async def test_who_may_come_in_survives_a_restore_before_a_start(control_site: Site, backups: Backups) -> None:
    async with control_site.running() as live:
        before, after = Before(), After()
        await before.make(live)
        await live.services.access.write()
    backup = await backups.take()
    async with control_site.running() as live:
        for node in before.nodes:
            node.replica = live
        await after.make(live, before)
        await live.services.access.write()
    for _ in range(2):  # a second time from the same backup, too
        await backups.restore(backup)
        async with control_site.running() as live:
            await check(live, before, after)
    # Nothing of it is applied again to metadata that have it.
    async with control_site.running() as live:
        entries = (await live.call("GET", "/v1/audit?action=metadata.restored")).json()["items"]
        assert len(entries) == 1


async def status(live: Replica, token: str) -> int:
    return (await live.call("GET", "/v1/nodes", token=token)).status


async def rotate(live: Replica, name: str, keep_old: int) -> str:
    return str((await deploy.ok(live, "POST", f"/v1/operators/{name}/rotate", {"keep_old": keep_old}))["token"])


async def test_exchanged_tokens_and_names_that_are_used_again_survive_a_restore(
    control_site: Site, backups: Backups
) -> None:
    async with control_site.running() as live:
        stolen, kept, first = [await made(live, name) for name in ("stolen", "kept", "anna")]
        code = (await deploy.ok(live, "POST", "/v1/sign-in-codes", token=stolen))["code"]
        session = await live.services.sign_ins.use_code(SCOPE, code, stays=True)
        await live.services.access.write()
    backup = await backups.take()
    async with control_site.running() as live:
        leaked = await rotate(live, "stolen", 0)
        good = [await rotate(live, "stolen", 3600)]
        good.append(await rotate(live, "kept", 3600))
        await deploy.ok(live, "DELETE", "/v1/operators/anna")
        second = await made(live, "anna")
        await deploy.ok(live, "DELETE", "/v1/operators/anna")
        good.append(await made(live, "anna"))
        await live.services.access.write()
    for _ in range(2):
        await backups.restore(backup)
        async with control_site.running() as live:
            for token, wanted in ((stolen, 401), (leaked, 200), (kept, 200), (first, 401), (second, 401)):
                assert await status(live, token) == wanted
            assert [await status(live, token) for token in good] == [200] * 3
            with pytest.raises(AuthError):
                await live.services.sessions.signed_in(asking(cookie=f"{COOKIE}={session}"))
            listed = (await live.call("GET", "/v1/operators")).json()["items"]
            ends = {one["name"]: one["old_token_ends_at"] is not None for one in listed}
            assert ends == {"admin": False, "anna": False, "kept": True, "stolen": True}


async def test_a_second_restore_takes_no_later_change_back(control_site: Site, backups: Backups) -> None:
    """What waited in a backup is in a list already, before what changed later."""
    async with control_site.running() as live:
        token = await made(live, "ci")
        await live.services.access.write()
    oldest = await backups.take()
    async with control_site.running() as live:
        await deploy.ok(live, "POST", "/v1/operators/ci/change", {"grants": [{"role": "admin"}]})
    waiting = await backups.take()
    async with control_site.running() as live:
        await live.services.access.write()
        await deploy.ok(live, "POST", "/v1/operators/ci/change", {"grants": [{"role": "read"}]})
        await live.services.access.write()
    await backups.restore(waiting)
    async with control_site.running() as live:
        assert (await live.call("GET", "/v1/operators", token=token)).status == 403
        await live.services.access.write()
    await backups.restore(oldest)
    async with control_site.running() as live:
        assert (await live.call("GET", "/v1/operators", token=token)).status == 403


async def test_a_node_that_got_a_name_which_another_had_survives_a_restore(
    control_site: Site, backups: Backups
) -> None:
    async with control_site.running() as live:
        old = await live.join("till")
        await live.services.access.write()
    backup = await backups.take()
    async with control_site.running() as live:
        await deploy.ok(live, "POST", "/v1/nodes/till/rename", {"name": "till-old"})
        new = await live.join("till")
        await live.services.access.write()
    await backups.restore(backup)
    async with control_site.running() as live:
        for node in (old, new):
            answer = await replace(node, replica=live).ask(report=True)
            assert answer.status == 204, answer
        assert (await live.node("till"))["id"] == new.id
        assert (await live.node("till-old"))["id"] == old.id


async def test_a_restore_is_told_of_also_where_control_dies_within_its_lists(
    control_site: Site, backups: Backups, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with control_site.running() as live:
        await live.services.access.write()
    backup = await backups.take()
    async with control_site.running() as live:
        await made(live, "later")
        await live.services.access.write()
    await backups.restore(backup)

    async def die(*_: object) -> None:
        raise ProblemError("database_unavailable", "")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AccessJournal, "_note_restored", die)
        async with control_site.running():
            pass
    async with control_site.running() as live:
        assert (await live.call("GET", "/v1/artifact-store")).json()["restored_at"] is not None
