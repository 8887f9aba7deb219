"""The pages of a node's data on a real control and store: its backup, a restore by its plan, letting it go on."""

import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any

import pytest

from control.protocol import wire
from control.storage.connection import Connection
from tests.support import deploy, programs, seeds
from tests.support.backup_files import BEGUN_MS, EVERY_MS, history, states
from tests.support.backup_store import release_id, ship, tell
from tests.support.console import MARKUP, ShownPage, live, page, send
from tests.support.replica import Replica, Site, TestNode

AT = "/nodes/shop-1/data"
KEY = "k" * 12
COUNT = 6
"""States of the database, one a transaction."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return states(tmp_path_factory.mktemp("source"), COUNT)


@pytest.fixture
async def replica(control_site: Site) -> AsyncIterator[Replica]:
    async with control_site.running() as replica:
        yield replica


async def joined(replica: Replica) -> TestNode:
    """A node of a group that is backed up, at its release."""
    await deploy.ok(replica, "PUT", "/v1/groups/default/backup", {"interval": 10})
    await seeds.function(replica, "hello")
    await seeds.release(replica, functions={"hello": 1})
    node = await replica.join("shop-1")
    node.protocol, node.capabilities = wire.PROTOCOL, {}
    await node.sync()
    return node


async def goes_on(node: TestNode, lineage: str, transaction: int) -> None:
    """Have its group get another release, and the node go to it after a transaction."""
    await seeds.function(node.replica, "hello")
    newest = (await deploy.items(node.replica, "/v1/functions/hello/versions"))[0]["version"]
    await seeds.release(node.replica, functions={"hello": newest})
    plan = await node.plan()
    node.apply(plan)
    boundary = wire.BackupPosition(lineage, transaction)
    assert (await node.report(plan.sync_id, "succeeded", boundary=boundary)).status == 200


def words(shown: ShownPage) -> str:
    """All its text, as it is read."""
    return unescape(shown.words)


def fields(shown: ShownPage, action: str) -> dict[str, str]:
    """The hidden fields of the form of an act."""
    (form,) = re.findall(rf'<form[^>]*method="post" action="{action}".*?</form>', shown.text, re.DOTALL)
    return {n: unescape(v) for n, v in re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', form)}


async def restores(replica: Replica) -> list[Any]:
    found = await deploy.items(replica, "/v1/nodes/shop-1/restores")
    return [(each["position"].rpartition("/")[2], each["state"]) for each in found]


async def told(node: TestNode, outcome: str = "done", **more: Any) -> None:
    id = (await deploy.items(node.replica, "/v1/nodes/shop-1/restores"))[0]["id"]
    node.restore = id
    more.setdefault("release_id", await release_id(node.replica, more.get("release", 0)))
    result = wire.RestoreResult(outcome, **more)  # type: ignore[arg-type]
    answer = await node.replica.call("PUT", f"/v1/nodes/self/restores/{id}", result, token=node.credential)
    assert answer.status == 204, answer


async def test_a_node_page_says_how_far_its_backup_is(replica: Replica, made: list[bytes]) -> None:
    node = await joined(replica)
    async with live(replica, "/nodes/shop-1") as stream:
        await stream.until(lambda s: "nothing yet" in s.parts.get("backup", ""))
        lineage = await ship(replica, node, history(made))
        await tell(node, lineage, COUNT, replica.services.clock.now())
        await stream.until(lambda s: ">good<" in s.parts["backup"])
        assert "<form" not in stream.parts["backup"]
        await tell(node, lineage, COUNT, replica.services.clock.now(), sequence=2, error=MARKUP)
        await stream.until(lambda s: "failing" in s.parts["backup"])
        assert MARKUP not in stream.parts["backup"]
    shown = await page(replica, "/nodes/shop-1")
    assert f"The backup doesn't go on {MARKUP}" in words(shown)
    assert MARKUP not in shown.text
    assert "Newest" in shown.part("backup")
    assert 'aria-labelledby="h-restores"' not in shown.text, "there were none"

    late = replica.services.clock.now() - timedelta(hours=2)
    await told_late(replica, node, late)
    assert "The store is behind the node" in (await page(replica, "/nodes/shop-1")).words
    await drilled(replica, node, "3 rows break a foreign key")
    shown = await page(replica, AT)
    assert "The last restore drill failed 3 rows break a foreign key" in shown.words
    assert "skerry data drill shop-1" in shown.words
    assert lineage[:12] in shown.words

    await deploy.ok(replica, "DELETE", "/v1/groups/default/backup")
    shown = await page(replica, "/nodes/shop-1")
    assert "Backup off" in shown.words
    assert "isn't backed up any more" in words(shown)


async def told_late(replica: Replica, node: TestNode, reached_at: datetime) -> None:
    async def write(conn: Connection) -> None:
        await conn.execute("UPDATE backups SET reached_at = $2, error = '' WHERE node_id = $1", node.id, reached_at)

    await replica.services.db.transaction(write)


async def drilled(replica: Replica, node: TestNode, error: str) -> None:
    async def write(conn: Connection) -> None:
        await conn.execute("UPDATE backups SET drilled_at = now(), drill_error = $2 WHERE node_id = $1", node.id, error)

    await replica.services.db.transaction(write)


async def test_a_node_without_a_backup_offers_no_restore(replica: Replica) -> None:
    await replica.join("shop-1")
    for path in ("/nodes/shop-1", AT):
        shown = await page(replica, path)
        assert "Group default isn't backed up: if this node's disk is lost, so is its data." in words(shown)
        assert "data/restore" not in shown.text
    shown = await page(replica, f"{AT}/restore?do=plan&way=latest")
    assert (shown.status, "backup_incomplete" in shown.words) == (409, True)
    assert "<h1>Restore shop-1?</h1>" in shown.text, "another state can be asked for"
    for path, status in ((f"{AT}/resume", 409), ("/nodes/nobody/data", 404), (f"{AT}?cursor=x", 422)):
        assert (await page(replica, path)).status == status, path


async def test_a_restore_does_what_its_plan_shows(replica: Replica, made: list[bytes]) -> None:
    node = await joined(replica)
    lineage = await ship(replica, node, history(made))
    await goes_on(node, lineage, 2)
    newest = datetime.fromtimestamp((BEGUN_MS + COUNT * EVERY_MS) / 1000, UTC)
    await tell(node, lineage, COUNT, newest)
    for query in ("do=plan&way=before&release=2", "to=before:2"):
        shown = await page(replica, f"{AT}/restore?{query}")
        for text in (
            "Undoes release default 2",
            "Loses 12 rows of table orders 18 → 6",
            "Loses what was written since then: 80.0 s, up to 2023-11-14 22:15:20 UTC",
            "Goes back to its state of 2023-11-14 22:14:00 UTC ; its release there isn't known, or it has none",
            f"{lineage}/2",
            "Type shop-1",
        ):
            assert text in words(shown), (query, shown.words)
    shown = await page(replica, f"{AT}/restore?to=latest")
    assert "Loses what isn't at the store yet ~ Goes back" in words(shown), shown.words
    # A time without an offset is in UTC.
    shown = await page(replica, f"{AT}/restore?do=plan&way=time&at=2023-11-14T22:14:25")
    assert f"{lineage}/3" in shown.words

    at = f"{AT}/restore"
    given = fields(shown, at)
    assert given["position"] == f"{lineage}/3"
    good = {**given, "key": KEY, "typed": "shop-1", "reason": "release 2 lost prices"}
    for wrong, why in (
        ({"typed": "shop-2"}, "type shop-1 to confirm it"),
        ({"reason": " "}, "say why"),
        ({"position": f"{lineage}/4"}, "plan_changed"),
        ({"plan_digest": "0" * 64}, "plan_changed"),
        ({"plan_digest": ""}, "invalid_body"),
        ({"key": ""}, "the form has no key"),
    ):
        refused = await send(replica, at, **{**good, **wrong})
        assert refused.status in (409, 422), wrong
        assert why in refused.words, (wrong, refused.words)
    assert await restores(replica) == []
    for _ in range(2):  # a double click
        sent = await send(replica, at, **good)
        assert (sent.status, sent.headers["location"]) == (303, "/nodes/shop-1?done=restore")
    assert await restores(replica) == [("3", "ordered")]
    audit = await deploy.items(replica, "/v1/audit?action=node.restore&limit=10")
    assert [(row["target"], row["details"]["reason"]) for row in audit] == [("shop-1", "release 2 lost prices")]
    shown = await page(replica, "/nodes/shop-1?done=restore")
    assert "It is to bring data back To its state of 2023-11-14 22:14:20 UTC" in shown.words


async def test_a_plan_that_has_changed_is_shown_as_it_is_now(replica: Replica, made: list[bytes]) -> None:
    node = await joined(replica)
    lineage = await ship(replica, node, history(made))
    at = f"{AT}/restore"
    given = fields(await page(replica, f"{at}?to={lineage}/3"), at)
    # It goes to another release meanwhile, which the restore would undo.
    await goes_on(node, lineage, 5)
    refused = await send(replica, at, **{**given, "key": KEY, "typed": "shop-1", "reason": "x"})
    assert (refused.status, "plan_changed" in refused.words) == (409, True)
    assert "Undoes release default 2" in refused.words
    assert await restores(replica) == []
    again = fields(refused, at)
    sent = await send(replica, at, **{**again, "typed": "shop-1", "reason": "x"})
    assert sent.status == 303
    # The same plan isn't carried out when somebody else has brought the node somewhere.
    await told(node, release=1)
    other = {**again, "key": "o" * 12, "typed": "shop-1", "reason": "x"}
    assert "plan_changed" in (await send(replica, at, **other)).words
    assert await restores(replica) == [("3", "held")]


async def test_a_held_node_is_let_go_on_as_it_was_shown(replica: Replica, made: list[bytes]) -> None:
    node = await joined(replica)
    lineage = await ship(replica, node, history(made))
    await deploy.ok(replica, "POST", "/v1/nodes/shop-1/restores", {"to": f"{lineage}/2"})
    shown = await page(replica, "/nodes/shop-1")
    assert "Cancel the restore …" in shown.words
    await told(node, release=1, kept=f"/var/lib/{MARKUP}", before=wire.BackupPosition(lineage, 6))
    async with live(replica, "/nodes/shop-1") as stream:
        await stream.until(lambda s: "Held at a restore" in s.parts.get("trouble", ""))
        assert "<form" not in stream.parts["trouble"]
        assert MARKUP not in stream.parts["restores"]
    shown = await page(replica, "/nodes/shop-1")
    assert "It then goes to release 1 of default." in shown.words
    assert f'href="{AT}/restore?to={lineage}/6"' in shown.text
    given = fields(await page(replica, f"{AT}/resume"), f"{AT}/resume")
    # Another release is made meanwhile.
    await seeds.function(replica, "hello")
    await seeds.release(replica, functions={"hello": 2})
    refused = await send(replica, f"{AT}/resume", **{**given, "key": KEY})
    assert (refused.status, "plan_changed" in refused.words) == (409, True)
    assert "Goes to release default 2 with its next poll" in refused.words
    assert (await replica.node("shop-1"))["held"]
    given = fields(refused, f"{AT}/resume")
    for _ in range(2):
        sent = await send(replica, f"{AT}/resume", **given)
        assert (sent.status, sent.headers["location"]) == (303, "/nodes/shop-1?done=resume")
    assert not (await replica.node("shop-1"))["held"]
    assert (await node.sync()).release_number == 2
    audit = await deploy.items(replica, "/v1/audit?action=node.resume&limit=10")
    assert len(audit) == 1
    assert (await send(replica, f"{AT}/resume", **{**given, "key": "o" * 12})).status == 409


async def test_a_restore_is_cancelled(replica: Replica, made: list[bytes]) -> None:
    node = await joined(replica)
    lineage = await ship(replica, node, history(made))
    await deploy.ok(replica, "POST", "/v1/nodes/shop-1/restores", {"to": f"{lineage}/2"})
    shown = await page(replica, f"{AT}/resume")
    assert "Cancel the restore of shop-1?" in shown.words
    sent = await send(replica, f"{AT}/resume", **fields(shown, f"{AT}/resume"))
    assert sent.headers["location"] == "/nodes/shop-1?done=cancel"
    assert await restores(replica) == [("2", "cancelled")]
    assert (await node.poll()).json()["type"] == "back_up", "it isn't held"


async def test_who_may_not_restore_sees_and_does_nothing(replica: Replica, made: list[bytes]) -> None:
    node = await joined(replica)
    lineage = await ship(replica, node, history(made))
    await tell(node, lineage, COUNT, replica.services.clock.now())
    given = fields(await page(replica, f"{AT}/restore?to=latest"), f"{AT}/restore")
    reader = (await deploy.ok(replica, "POST", "/v1/operators", {"name": "ada", "role": "read"}))["token"]
    await deploy.ok(replica, "GET", "/v1/groups", token=reader)
    for path in ("/nodes/shop-1", AT):
        shown = await page(replica, path, token=reader)
        assert "Restore … needs deploy" in shown.words
        assert "data/restore" not in shown.text
    for path in ("restore?to=latest", "resume"):
        assert (await page(replica, f"{AT}/{path}", token=reader)).status == 403
    sent = await send(replica, f"{AT}/restore", token=reader, **{**given, "typed": "shop-1", "reason": "x"})
    assert sent.status == 403
    sent = await send(replica, f"{AT}/resume", token=reader, key=KEY)
    assert sent.status == 403
    # Of a group that they may not see there is no node.
    grants = [{"role": "deploy", "group": "east"}]
    await deploy.ok(replica, "POST", "/v1/groups", {"name": "east"})
    other = (await deploy.ok(replica, "POST", "/v1/operators", {"name": "eve", "grants": grants}))["token"]
    await deploy.ok(replica, "GET", "/v1/groups", token=other)
    for path in ("", "/restore?to=latest", "/resume"):
        shown = await page(replica, f"{AT}{path}", token=other)
        assert (shown.status, "unknown_node" in shown.words) == (404, True), path
    assert await restores(replica) == []


async def test_restores_have_pages(replica: Replica, made: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control.console.pages.node_data.SHOWN", 2)
    monkeypatch.setattr("control.console.pages.node_detail.RESTORES", 2)
    node = await joined(replica)
    lineage = await ship(replica, node, history(made))
    for transaction in (1, 2, 3):
        await deploy.ok(replica, "POST", "/v1/nodes/shop-1/restores", {"to": f"{lineage}/{transaction}"})
        await told(node, "failed", code="disk_full", message="no room")
    assert "All restores" in (await page(replica, "/nodes/shop-1")).words
    first = await page(replica, AT)
    (following,) = re.findall(r'<a href="([^"]+)" rel="next"', first.text)
    rest = await page(replica, unescape(following))
    assert [first.words.count("disk_full"), rest.words.count("disk_full")] == [2, 1]


BACKUP = """
INSERT INTO backups (node_id, lineage, begun_at, told_at, reached, reached_at, error, proven, proven_at, drill_error)
SELECT id, repeat('a', 32), $2, $3, 5, $4, $5, 1, $6, $7 FROM nodes WHERE name = $1
"""


async def faulty(replica: Replica) -> None:
    """Have nodes of a group each of whose backups has another fault, one that has none, and one that has two."""
    now, day = replica.services.clock.now(), timedelta(days=1)
    await deploy.ok(replica, "PUT", "/v1/groups/default/backup", {"interval": 200})
    of: dict[str, dict[str, Any]] = {
        "good": {},
        "failing": {"error": "the disk failed"},
        "late": {"reached_at": now - timedelta(seconds=601)},
        "drill": {"drill_error": "3 rows break a foreign key"},
        "unproven": {"proven_at": None},
        "both": {"error": "the disk failed", "reached_at": now - day},
        # Not yet: it may be behind by three intervals.
        "slow": {"reached_at": now - timedelta(seconds=599)},
    }
    for name, has in of.items():
        await replica.join(name)
        row = {"reached_at": now, "error": "", "proven_at": now - day, "drill_error": "", **has}

        async def write(conn: Connection, name: str = name, row: dict[str, Any] = row) -> None:
            times = now - 10 * day, now, row["reached_at"]
            await conn.execute(BACKUP, name, *times, row["error"], row["proven_at"], row["drill_error"])

        await replica.services.db.transaction(write)
    await replica.join("missing")
    # One that isn't backed up has no fault.
    await deploy.ok(replica, "POST", "/v1/groups", {"name": "east"})
    await replica.join("off", "east")


async def test_lists_find_the_nodes_whose_backup_has_a_fault(replica: Replica) -> None:
    await faulty(replica)
    for fault, expected in {
        "failing": ["both", "failing"],
        "late": ["both", "late"],
        "drill": ["drill"],
        "unproven": ["unproven"],
        "missing": ["missing"],
    }.items():
        for sort in ("name", "seen", "standing"):
            shown = await page(replica, f"/nodes?backup={fault}&sort={sort}")
            found = re.findall(r'<th scope="row"><a href="/nodes/([^"]+)"', shown.text)
            assert sorted(found) == expected, (fault, sort)
        assert f"--backup {fault}" in shown.words
        out = (await programs.skerry(replica, "node", "list", "--backup", fault, "--json")).out
        assert [node["name"] for node in json.loads(out)] == expected
    assert (await page(replica, "/nodes?backup=good")).status == 422
    await deploy.ok(replica, "POST", "/v1/nodes/missing/revoke")
    assert await deploy.items(replica, "/v1/nodes?backup=missing") == [], "nothing is expected of it"


async def test_the_overview_says_what_is_wrong_with_backups(replica: Replica) -> None:
    await faulty(replica)
    shown = await page(replica, "/")
    said = words(shown)
    for text in (
        "2 backups failing, 1 restore drill failing",
        "2 nodes The backup doesn't go on",
        "1 node A restore drill failed",
        "2 nodes The store is behind the node",
        "1 node Nothing is at the store yet",
        "1 node No restore was proven",
        "Backed up 7 1 off",
    ):
        assert text in said, (text, said)
    assert 'href="/nodes?backup=late&amp;group=default"' in shown.text
    grants = [{"role": "read", "group": "east"}]
    other = (await deploy.ok(replica, "POST", "/v1/operators", {"name": "eve", "grants": grants}))["token"]
    await deploy.ok(replica, "GET", "/v1/groups", token=other)
    shown = await page(replica, "/", token=other)
    assert "Nothing is wrong" in shown.words
    assert "Backed up" not in shown.words
