"""What control's log says of operators' acts, of releases and of nodes: by their names, once it is committed."""

import logging

import pytest

from control.protocol import wire
from control.storage.audit_log import Actor, record
from control.storage.connection import Connection, log_at_commit
from tests.support import seeds
from tests.support.clock import SetClock
from tests.support.replica import Site
from tests.support.webhooks import look


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("skerry.")]


async def test_acts_releases_and_nodes_are_in_the_log_by_name(
    control_site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "skerry")
    clock = SetClock(time="run")
    async with control_site.running(clock=clock) as replica:
        good, bad = await replica.join("good"), await replica.join("bad")
        assert any(line.startswith("node good: node.join good (request ") for line in lines(caplog))
        await good.poll()
        await bad.poll()
        await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 1})
        assert any(line.startswith("operator admin: release.create default/1 (request ") for line in lines(caplog))

        await good.sync()
        plan = await bad.plan()
        await bad.report(plan.sync_id, "failed", error=wire.SyncError("disk_full", "no room\non the disk"))
        told = "node bad failed to reach release default/1: disk_full: no room on the disk"
        assert told in lines(caplog)
        await look(replica)
        assert "release default/1 has failed on 1 of 2 nodes (disk_full 1)" in lines(caplog)
        clock.advance(seconds=301)
        await good.poll()
        await look(replica)
        assert "offline: 1 node, bad" in lines(caplog)
        assert "overdue: 1 node, bad" in lines(caplog)
        # The same failure again is no news.
        plan = await bad.plan()
        await bad.report(plan.sync_id, "failed", error=wire.SyncError("disk_full", "no room\non the disk"))
        assert lines(caplog).count(told) == 1
        await bad.plan()
        clock.advance(seconds=61)
        await look(replica)
        assert "syncs expired: 1 node, bad" in lines(caplog)
        await bad.sync()
        await look(replica)
        await look(replica)
        assert "release default/1: the whole group is at it, 2 nodes" in lines(caplog)
        for node in (good, bad):
            assert not [line for line in lines(caplog) if node.id in line]


async def test_what_is_undone_is_not_in_the_log(control_site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "skerry")
    async with control_site.running() as replica:
        now = replica.services.clock.now()

        async def undone(conn: Connection) -> None:
            await record(conn, now, Actor("operator", "ada"), "group.create", "nowhere")
            raise KeyError

        with pytest.raises(KeyError):
            await replica.services.db.transaction(undone)
    assert not [line for line in lines(caplog) if "nowhere" in line]
    log_at_commit("outside of a\ntransaction")
    assert "outside of a transaction" in lines(caplog)
