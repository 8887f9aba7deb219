"""The row of epochs is changed by the last statement before COMMIT: nobody waits for it longer than that takes."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from control.clock import SystemClock
from control.local.pki import Pki
from control.storage import database, migrations
from tests.support import cockroachdb
from tests.support.cockroachdb import Proxy
from tests.support.control import Control, module, running


@pytest.fixture
async def watched(database_url: str, bucket_url: str, pki: Pki) -> AsyncIterator[tuple[Proxy, Control]]:
    """A control plane whose statements are written down."""
    async with (
        cockroachdb.proxied(database_url) as (proxy, url),
        running(url, bucket_url, pki) as control,
    ):
        yield proxy, control


def announcements(proxy: Proxy) -> int:
    """Count the transactions that changed the row of epochs; fail unless COMMIT comes right after that.

    One that met another transaction there is undone, and run again.
    """
    assert proxy.statements is not None
    by_connection: dict[int, list[str]] = {}
    for connection, text in proxy.statements:
        by_connection.setdefault(connection, []).append(text)
    found = 0
    for texts in by_connection.values():
        for text, after in zip(texts, [*texts[1:], ""], strict=True):
            if "UPDATE epochs" in text and after != "ROLLBACK;":
                found += 1
                assert after == "COMMIT;", f"{after!r} comes between the row of epochs and COMMIT"
    return found


async def test_every_operation_that_announces_does_it_last(watched: tuple[Proxy, Control]) -> None:
    proxy, control = watched
    one, other = await control.join("one"), await control.join("other")
    for text in ("1", "2"):
        await control.push("f", module(text))
    await control.ok("POST", "/v1/groups", {"name": "apart"})
    reader = await control.operator("reader", "read")
    assert (await control.call("GET", "/v1/nodes", token=reader)).status == 200

    async def announces(times: int, method: str, path: str, json: Any = None, **more: Any) -> Any:
        proxy.statements = []
        answer = await control.ok(method, path, json, key=str(uuid4()), **more)
        assert announcements(proxy) == times, (method, path)
        return answer

    await announces(1, "POST", "/v1/releases", {"functions": {"f": 1}})
    await announces(1, "POST", "/v1/releases", {"functions": {"f": 2}})
    await announces(1, "POST", "/v1/releases", {"rollback_to": 1})
    await announces(0, "POST", "/v1/releases?plan=true", {"functions": {"f": 2}})
    await announces(1, "POST", "/v1/nodes/one/move", {"group": "apart"})
    await announces(1, "POST", "/v1/nodes/one/retry")
    await control.ok("POST", "/v1/groups", {"name": "unused"})
    await announces(1, "DELETE", "/v1/groups/unused")
    await announces(1, "DELETE", "/v1/functions/f?release=true")
    await announces(1, "POST", "/v1/nodes/other/revoke")
    await announces(1, "DELETE", "/v1/operators/reader")
    await announces(0, "POST", "/v1/operators", {"name": "writer", "role": "deploy"})
    # The first credential that replaces another one ends it when it is used; an unused one when the next is asked for.
    poll = {"generation": 0, "digest": "", "wait": 0}
    for _ in range(2):
        rotated = (await control.ok("POST", "/v1/nodes/self/credential", token=one.credential))["credential"]
    proxy.statements = []
    await control.ok("POST", "/v1/nodes/self/credential", token=one.credential)
    assert announcements(proxy) == 1
    assert (await control.call("POST", "/v1/poll", poll, token=rotated)).status == 401
    rotated = (await control.ok("POST", "/v1/nodes/self/credential", token=one.credential))["credential"]
    proxy.statements = []
    assert (await control.call("POST", "/v1/poll", poll, token=rotated)).status != 401
    assert announcements(proxy) == 1
    assert (await control.call("POST", "/v1/poll", poll, token=one.credential)).status == 401
    # A lost node joins again; so does one whose answer to a join was lost.
    token = (await control.ok("POST", "/v1/join-tokens", {"rejoin": "other"}))["token"]
    body = {"name": "other", "attempt": str(uuid4())}
    for _ in range(2):
        proxy.statements = []
        assert (await control.ok("POST", "/v1/nodes", body, token=token))["node_id"] == other.id
        assert announcements(proxy) == 1
    await announces(1, "DELETE", "/v1/nodes/other")


async def test_a_join_announces_nothing(watched: tuple[Proxy, Control]) -> None:
    proxy, control = watched
    proxy.statements = []
    await control.join("one")
    assert announcements(proxy) == 0


async def test_an_admin_that_is_made_again_is_announced_last(empty_database_url: str) -> None:
    async with cockroachdb.proxied(empty_database_url) as (proxy, url):
        db = await database.connect(url)
        try:
            await migrations.migrate(db, SystemClock())
            proxy.statements = []
            await migrations.make_admin(db, SystemClock(), again=True)
        finally:
            await db.close()
        assert announcements(proxy) == 1


async def test_a_key_that_is_asked_again_announces_the_new_secret_last(watched: tuple[Proxy, Control]) -> None:
    proxy, control = watched
    key = str(uuid4())
    body = {"name": "reader", "role": "read"}
    old = (await control.ok("POST", "/v1/operators", body, key=key))["token"]
    assert (await control.call("GET", "/v1/nodes", token=old)).status == 200
    proxy.statements = []
    new = (await control.ok("POST", "/v1/operators", body, key=key))["token"]
    assert announcements(proxy) == 1
    assert (await control.call("GET", "/v1/nodes", token=new)).status == 200
    assert (await control.call("GET", "/v1/nodes", token=old)).status == 401
