"""What a replica does without being asked: all of its background tasks run, by a clock that the test moves."""

import asyncio

import asyncpg
import pytest

from control.access import sessions
from control.sync import monitor
from tests.support import numbers, seeds
from tests.support.clock import SetClock
from tests.support.cookies_and_forms import ConsoleBrowser
from tests.support.programs import until
from tests.support.replica import UNASKED, Site

DONE = {
    "access lists": "SELECT count(*) > 0 FROM access_lists",
    "clean-up of live records": "SELECT count(*) = 0 FROM watched_records",
    "heartbeats": "SELECT last_seen_at > $1 FROM node_presence",
    "monitor": "SELECT state = 'offline' FROM nodes",
    "numbers": "SELECT count(*) > 0 FROM group_minutes",
    "refusals": "SELECT count(*) > 0 FROM auth_failures",
    "sessions": "SELECT last_used_at > $1 FROM sessions",
    "uses of tokens": "SELECT last_used_at > $1 FROM operator_uses",
}
"""By task: whether it has written what the test has given it to write since a time. The bucket's owner and webhooks
have tests of their own."""
LEFT_BEHIND = "INSERT INTO watched_records VALUES ('a viewer', 'a replica', 1, now() - INTERVAL '1 hour', '')"


@pytest.mark.background(*UNASKED)
async def test_what_a_replica_has_to_write_is_written_as_time_goes_by(control_site: Site, database_url: str) -> None:
    clock = SetClock(timers="stand")
    metadata = await asyncpg.connect(database_url)
    await metadata.execute(LEFT_BEHIND)
    async with control_site.running(clock=clock) as replica:
        assert {task.get_name() for task in asyncio.all_tasks()} >= UNASKED
        browser = ConsoleBrowser(replica.url, replica.session)
        await browser.sign_in(replica.admin)
        await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 1})
        node = await replica.join("one")
        await node.sync()
        began = clock.now()
        clock.jump(2 * sessions.TOUCH_AFTER.total_seconds())
        assert (await browser.open("/")).status == 200
        assert (await replica.call("GET", "/v1/nodes")).status == 200
        assert (await replica.call("GET", "/v1/nodes", token="sko_wrong")).status == 401
        assert (await numbers.tell(node, numbers.message([numbers.function()]))).status == 204

        left = set(DONE)

        async def nothing_is_left() -> bool:
            clock.advance(monitor.PERIOD)
            for name in sorted(left):
                query = DONE[name]
                if await metadata.fetchval(query, *[began] * query.count("$1")):
                    left.discard(name)
            return not left

        await until(nothing_is_left, "all that waits is written")
    await metadata.close()
