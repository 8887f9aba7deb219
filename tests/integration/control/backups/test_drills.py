"""What control does with a node's backup by itself, which is to merge, prove and sweep it; and what operators get."""

import io
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec
import pytest

from control.api import node_data
from control.backups import drills, objects
from control.backups.chain import restorable
from control.backups.keeper import BackupKeeper
from control.backups.merging import Merger
from control.backups.objects import MERGED, SNAPSHOT, BackupFile
from control.problems import ProblemError
from control.protocol import wire
from control.protocol.manifest import Manifest, completed
from edge_runtime.children import release_transaction
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.sql import database
from edge_runtime.sql.database import LibsqlDatabase
from tests.guests.version import version
from tests.support.backup_files import BEGUN_MS, history
from tests.support.control import Control
from tests.support.programs import skerry
from tests.support.replica import Replica, TestNode

DAY_MS = 86_400_000
TABLES = "CREATE TABLE generation (number INTEGER NOT NULL)"
# Of the least number there is no absolute value.
ASKS = version(1, "SELECT abs(number) FROM generation")
LEAST = -(2**63)


class Shop(NamedTuple):
    """A node's database at its release, and what is backed up of it."""

    control: Control
    node: TestNode
    lineage: str
    opened: LibsqlDatabase
    states: list[bytes]

    def write(self, sql: str) -> None:
        """Commit something, as one more state."""
        self.opened.rows(sql)
        self.opened.rows("PRAGMA wal_checkpoint(TRUNCATE)")
        assert self.opened.path is not None
        self.states.append(self.opened.path.read_bytes())

    async def ship(self, every_ms: int = 20_000) -> dict[BackupFile, bytes]:
        """Have the store have all states, and control know that."""
        files = history(self.states, every_ms)
        for file, data in files.items():
            key = objects.key(self.node.id, self.lineage, file)
            if await self.control.services.store.head(key) is None:
                await self.control.services.store.put_new(key, io.BytesIO(data))
        await self.tell(reached=len(self.states))
        return files

    async def tell(self, **columns: Any) -> None:
        """Set columns of the history."""
        for name, value in columns.items():
            text = f"UPDATE backups SET {name} = $3 WHERE node_id = $1::text::uuid AND lineage = $2"
            await execute(self.control, text, self.node.id, self.lineage, value)

    async def row(self) -> Any:
        return await fetch(
            self.control,
            "SELECT * FROM backups WHERE node_id = $1::text::uuid AND lineage = $2",
            self.node.id,
            self.lineage,
        )

    async def files(self) -> list[BackupFile]:
        return await self.control.services.builder.files(self.node.id, self.lineage)


async def execute(control: Control, text: str, *given: Any) -> None:
    await control.services.db.transaction(lambda conn: conn.execute(text, *given))


async def fetch(control: Control, text: str, *given: Any) -> Any:
    async def read(conn: Any) -> Any:
        rows = await conn.fetch(text, *given)
        return rows[0] if rows else None

    return await control.services.db.read(read)


@pytest.fixture
async def shop(control: Control, tmp_path: Path) -> Any:
    await control.ok("POST", "/v1/schema-changes", {"name": "tables", "sql": TABLES})
    await control.push("asks", ASKS, probe={"path": "/"}, sql="read")
    await control.push("afar", version(3), http={"hosts": ["example.org"]}, probe={"path": "/"})
    joined = await control.join("shop-1")
    await control.release(functions={"asks": 1, "afar": 1}, allow_unfit=True)
    authority = control.services.settings.ca_cert
    assert authority is not None
    replica = Replica(control.server, control.url, authority, control.session, control.token)
    node = TestNode(replica, joined.id, joined.credential)
    plan = await node.plan()
    (tmp_path / "node").mkdir()
    (tmp_path / "asks.wasm").write_bytes(ASKS)
    functions = [
        LocalFunction(
            *(f.name, f.version, f.sha256, completed(msgspec.convert(f.manifest, Manifest)), f.manifest_digest),
            wasm=str(tmp_path / "asks.wasm"),
        )
        for f in plan.functions
    ]
    made = [msgspec.structs.replace(f, manifest=msgspec.structs.replace(f.manifest, probe=None)) for f in functions]
    with database.connect(tmp_path / "node" / "skerry.db", foreign_keys=False) as opened:
        release_transaction.prepare(opened, plan, made)
        release_transaction.commit(opened)
        lineage = uuid4().hex
        await control.services.grants.check(node.id, lineage)
        found = Shop(control, node, lineage, opened, [])
        found.write("INSERT INTO generation VALUES (1)")
        yield found


def keeper(control: Control, bytes_a_day: int = 1 << 40) -> BackupKeeper:
    services = control.services
    folder = services.builder.folder
    merger = Merger(services.store, services.builder, services.ownership, folder)
    return BackupKeeper(
        services.databases.background, services.builder, merger, services.drills, control.clock, bytes_a_day
    )


async def drill(shop: Shop) -> Any:
    return await shop.control.ok("POST", "/v1/nodes/shop-1/drill")


async def test_a_backup_that_works_is_proven(shop: Shop) -> None:
    control = shop.control
    assert "no snapshot up to transaction 0 is at the store" in (await drill(shop))["findings"][0]
    shop.write("INSERT INTO generation VALUES (2)")
    await shop.ship()
    found = await drill(shop)
    assert (found["proven"], found["findings"], found["transaction"]) == (True, [], 2)
    assert (found["lineage"], found["release"], found["probes"]) == (shop.lineage, 1, 1)
    assert found["untried"] == ["the probe of afar@1 wasn't tried: it needs HTTP or secrets, which only the node has"]
    assert found["size"] == len(shop.states[-1])
    row = await shop.row()
    assert (row["proven"], row["drill_error"], row["proven_at"] == row["drilled_at"]) == (2, "", True)
    [audited, *_] = await control.items("/v1/audit?limit=5")
    assert (audited["action"], audited["target"]) == ("node.drill", "shop-1")
    shop.node.protocol, shop.node.capabilities = wire.PROTOCOL, {}
    await shop.node.poll()
    planned = await control.ok("POST", "/v1/nodes/shop-1/restores?plan=true", {"to": "latest"})
    assert planned["release"] == {"group": "default", "number": 1}


async def broken_probe(shop: Shop) -> None:
    shop.write(f"INSERT INTO generation VALUES ({LEAST})")


async def another_schema(shop: Shop) -> None:
    await execute(shop.control, "UPDATE schema_changes SET sql = sql || '; CREATE TABLE more (x)'")


async def another_history(shop: Shop) -> None:
    await execute(shop.control, "UPDATE schema_changes SET checksum = repeat('0', 64)")


async def changed_table(shop: Shop) -> None:
    shop.write("ALTER TABLE generation ADD COLUMN another")


async def orphan(shop: Shop) -> None:
    shop.write("PRAGMA foreign_keys = OFF")
    shop.write("CREATE TABLE child (x REFERENCES generation (rowid))")
    shop.write("INSERT INTO child VALUES (77)")


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (broken_probe, "The probe of asks@1 fails: GET / answers 500 in place of 200"),
        (another_schema, "The schema isn't what its changes make of it: table more"),
        (another_history, "Its schema is another one: the node has applied schema change 1"),
        (changed_table, "The table generation isn't as the last release left it."),
        (orphan, "Foreign keys are violated"),
    ],
)
async def test_a_drill_that_fails_says_why(shop: Shop, damage: Callable[[Shop], Any], text: str) -> None:
    await shop.ship()
    assert (await drill(shop))["proven"]
    await damage(shop)
    await shop.ship()
    found = await drill(shop)
    assert not found["proven"]
    assert text in found["findings"][0]
    row = await shop.row()
    assert (row["proven"], text in row["drill_error"], row["drilled_at"] > row["proven_at"]) == (1, True, True)


async def test_a_backup_that_cannot_be_restored_is_said(shop: Shop) -> None:
    for number in (2, 3):
        shop.write(f"INSERT INTO generation VALUES ({number})")
    files = await shop.ship()
    gone = next(file for file in files if file.first == 2)
    await shop.control.services.store.delete(objects.key(shop.node.id, shop.lineage, gone))
    found = await drill(shop)
    assert "of transactions 2 to 2 no file is at the store" in found["findings"][0]
    assert (await shop.row())["drill_error"] == found["findings"][0]


@pytest.mark.parametrize("every_ms", [20_000, 30 * 365 * DAY_MS])
async def test_what_was_proven_becomes_a_snapshot_a_day_later(shop: Shop, every_ms: int) -> None:
    """A day of control's: the node's clock may be anywhere."""
    shop.write("INSERT INTO generation VALUES (2)")
    await shop.ship(every_ms)
    assert (await drill(shop))["proven"]
    assert [file.last for file in await shop.files() if file.level == SNAPSHOT] == [1]
    shop.write("INSERT INTO generation VALUES (3)")
    await shop.ship(every_ms)
    shop.control.clock.advance(86_400 + 60)
    assert (await drill(shop))["proven"]
    assert sorted(file.last for file in await shop.files() if file.level == SNAPSHOT) == [1, 3]
    async with shop.control.services.builder.built(shop.node.id, shop.lineage) as built:
        assert len(built.files) == 1
        assert built.path.read_bytes() == shop.states[-1]
    # Of what doesn't work none is made.
    await broken_probe(shop)
    for _ in range(3):
        shop.write("INSERT INTO generation VALUES (0)")
    await shop.ship(every_ms)
    shop.control.clock.advance(86_400 + 60)
    assert not (await drill(shop))["proven"]
    assert sorted(file.last for file in await shop.files() if file.level == SNAPSHOT) == [1, 3]


async def test_shipments_are_merged_once_the_node_has_told_of_what_came_after(shop: Shop) -> None:
    control = shop.control
    for number in range(2, 10):
        shop.write(f"INSERT INTO generation VALUES ({number})")
    await shop.ship()
    release = await fetch(control, "SELECT id FROM releases")
    told = "INSERT INTO boundaries VALUES ($1::text::uuid, $2, $3, 5, $4)"
    await execute(control, told, shop.node.id, release["id"], shop.lineage, control.clock.now())
    ordered = (
        "INSERT INTO restores (id, node_id, lineage, transaction_id, state_at, hold, state, made_by, made_at)"
        " VALUES ($1, $2::text::uuid, $3, $4, $6, true, $5, 'test', $6)"
    )
    for transaction, state in ((6, "ordered"), (8, "done")):
        given = uuid4(), shop.node.id, shop.lineage, transaction, state, control.clock.now()
        await execute(control, ordered, *given)
    await keeper(control).tick()
    assert not [file for file in await shop.files() if file.level == MERGED], "they aren't an hour old"
    control.clock.advance(2 * 3600)
    await keeper(control).tick()
    assert not [file for file in await shop.files() if file.level == MERGED], "the node wasn't seen since"
    control.clock.advance(2 * 3600)
    await execute(control, "UPDATE node_presence SET last_seen_at = $1", control.clock.now())
    await keeper(control).tick()
    files = await shop.files()
    minutes = {(BEGUN_MS + at * 20_000) // 60_000: at for at in range(1, 10)}
    assert {file.last for file in restorable(files)} == {1, 5, 6, *minutes.values()}
    assert [file for file in files if file.level == MERGED]
    assert (await shop.row())["merged"] == 9
    assert not await keeper(control)._merge_some(), "nothing is left to merge"


async def test_histories_are_proven_in_turn_within_the_budget(shop: Shop) -> None:
    control = shop.control
    await shop.ship()
    size = sum(file.size for file in await shop.files())
    poor = keeper(control, size)
    # A share of the day's bytes is there at once.
    assert await poor._drill_one()
    assert (await shop.row())["proven"] == 1
    await shop.tell(drilled_at=None)
    assert not await poor._drill_one(), "the budget is used up"
    # This clock's waits are real ones.
    poor._left.at -= 86_400
    assert await poor._drill_one()
    row = await shop.row()
    control.clock.advance(2 * 86_400)
    assert not await keeper(control)._drill_one(), "nothing has come to it"
    await shop.tell(reached=2)
    assert await keeper(control)._drill_one()
    assert (await shop.row())["proven_at"] - row["proven_at"] >= timedelta(days=2)
    control.clock.advance(86_400 - 60)
    assert not await keeper(control)._drill_one()
    await shop.tell(reached=1)
    control.clock.advance(7 * 86_400)
    assert await keeper(control)._drill_one(), "it is proven again, all the same"


async def test_a_history_that_the_store_cannot_read_keeps_no_other_from_being_proven(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    control, tried = shop.control, list[str]()
    await shop.ship()
    joined = await control.join("shop-2")
    other = uuid4().hex
    await control.services.grants.check(joined.id, other)
    await execute(control, "UPDATE backups SET reached = 1")
    await shop.tell(drilled_at=control.clock.now() - timedelta(days=9))
    await execute(
        control, "UPDATE backups SET drilled_at = $2 WHERE lineage = $1", other, control.clock.now() - timedelta(days=8)
    )

    async def drill(history: drills.HistoryToDrill) -> None:
        tried.append(history.lineage)
        raise ProblemError("store_unavailable", "the store answered 500")

    kept = keeper(control)
    monkeypatch.setattr(kept._drills, "drill", drill)
    for _ in range(2):
        with pytest.raises(ProblemError):
            await kept._drill_one()
    assert tried == [shop.lineage, other]
    assert not await kept._drill_one()
    kept._passed = dict.fromkeys(kept._passed, 0.0)
    with pytest.raises(ProblemError):
        await kept._drill_one()
    assert tried[2] == shop.lineage


async def test_one_replica_at_a_time_keeps_backups(shop: Shop) -> None:
    await shop.ship()
    one, other = keeper(shop.control), keeper(shop.control)
    assert await one.tick()
    await shop.tell(drilled_at=None)
    assert not await other.tick()
    assert (await shop.row())["drilled_at"] is None
    shop.control.clock.advance(61)
    assert await other.tick()


@pytest.mark.parametrize("every_ms", [20_000, 30 * 365 * DAY_MS])
async def test_the_retention_sweeps_what_no_state_needs(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, every_ms: int
) -> None:
    """Also of a node whose clock was ahead, and where drills use up the budget."""
    control = shop.control
    monkeypatch.setattr(drills, "SNAPSHOT_EVERY_MS", 0)
    await control.ok("PUT", "/v1/groups/default/backup", {"interval": 10, "retention": 8 * 86_400})
    for number in range(2, 6):
        shop.write(f"INSERT INTO generation VALUES ({number})")
    await shop.ship(every_ms)
    assert (await drill(shop))["proven"]
    before = set(await shop.files())
    control.clock.advance(9 * 86_400)
    await keeper(control).tick()
    assert set(await shop.files()) >= before, "the sweep waits for more"
    control.clock.advance(2 * 86_400)
    await execute(control, "UPDATE node_presence SET last_seen_at = $1", control.clock.now())
    poor = keeper(control, 1)
    poor._left.count = -1.0
    await poor._sweep_some()
    left = await shop.files()
    assert {file.last for file in left} == {5}
    async with control.services.builder.built(shop.node.id, shop.lineage) as built:
        assert built.path.read_bytes() == shop.states[-1]
    assert (await shop.row())["at_store"] > 0


async def test_a_history_that_ended_goes_once_another_one_is_proven(shop: Shop) -> None:
    control = shop.control
    await shop.ship()
    await shop.tell(proven=1)
    old = shop.lineage
    new = shop._replace(lineage=uuid4().hex)
    await control.services.grants.check(shop.node.id, new.lineage)
    control.clock.advance(40 * 86_400)
    await keeper(control)._sweep_some()
    assert await shop.files(), "nothing else can be brought back"
    await new.ship()
    assert await keeper(control)._drill_one()
    control.clock.advance(86_401)
    ordered = (
        "INSERT INTO restores (id, node_id, lineage, transaction_id, state_at, hold, state, made_by, made_at)"
        " VALUES ($1, $2::text::uuid, $3, 1, $4, true, 'ordered', 'test', $4)"
    )
    await execute(control, ordered, uuid4(), shop.node.id, old, control.clock.now())
    await keeper(control)._sweep_some()
    assert await shop.files(), "a node that is offline is to bring it back"
    await execute(control, "UPDATE restores SET state = 'done'")
    await keeper(control)._sweep_some()
    assert await shop.files() == []
    assert await shop.row() is None
    assert old != new.lineage
    assert await new.files()


async def test_a_copy_of_the_data_is_what_it_was(shop: Shop) -> None:
    control = shop.control
    shop.write("INSERT INTO generation VALUES (2)")
    await shop.ship()
    for at, number in (("latest", 2), ("2023-11-14T22:13:40Z", 1), (f"{shop.lineage}/1", 1)):
        reply = await control.call("GET", f"/v1/nodes/shop-1/data?at={at}")
        assert (reply.status, reply.body) == (200, shop.states[number - 1]), at
        assert reply.headers["skerry-position"] == f"{shop.lineage}/{number}"
        assert reply.headers["content-length"] == str(len(shop.states[number - 1]))
        assert "skerry-findings" not in reply.headers
    [audited, *_] = await control.items("/v1/audit?limit=5")
    assert (audited["action"], audited["target"]) == ("node.data", "shop-1")
    assert (await control.call("GET", "/v1/nodes/shop-1/data?at=noon")).code == "invalid_parameter"
    assert (await control.call("GET", "/v1/nodes/shop-1/data?at=before:1")).code == "backup_incomplete"
    assert (await control.call("GET", "/v1/nodes/nobody/data")).code == "unknown_node"
    assert (
        await control.call("GET", "/v1/nodes/shop-1/data", token=await control.operator("o", "deploy"))
    ).status == 403
    assert list(control.services.builder.folder.iterdir()) == []


async def test_the_commands_prove_a_backup_and_copy_it(shop: Shop, tmp_path: Path) -> None:
    to, file = shop.node.replica, tmp_path / "copy.db"
    shop.write("INSERT INTO generation VALUES (2)")
    await shop.ship()
    done = await skerry(to, "data", "drill", "shop-1")
    assert (done.status, b"it is whole, has release 1, and 1 probe passed" in done.out) == (0, True), done
    assert b"as of 2023-11-14 22:14:00 UTC" in done.out
    done = await skerry(to, "data", "copy", "shop-1", "--at", "2023-11-14T22:13:50Z", file, "--json")
    assert done.status == 0, done
    assert file.read_bytes() == shop.states[0]
    said = {"file": str(file), "bytes": len(shop.states[0]), "position": f"{shop.lineage}/1", "findings": ""}
    assert done.json() == {**said, "at": "2023-11-14T22:13:40.000Z"}
    # A file that is there stays as it is.
    done = await skerry(to, "data", "copy", "shop-1", file)
    assert (done.status, "is there already" in done.err) == (1, True), done
    assert file.read_bytes() == shop.states[0]
    done = await skerry(to, "data", "copy", "shop-1", tmp_path / "other.db", "--at", "before:1")
    assert (done.status, "[backup_incomplete]" in done.err) == (3, True), done
    done = await skerry(to, "data", "copy", "shop-2", tmp_path / "other.db")
    assert (done.status, "is shop-1 meant?" in done.err) == (3, True), done
    assert sorted(path.name for path in tmp_path.glob("*.db")) == ["copy.db"]
    assert not list(tmp_path.glob(".*.part"))
    await broken_probe(shop)
    await shop.ship()
    done = await skerry(to, "data", "drill", "shop-1")
    assert (done.status, "the backup of shop-1 doesn't work: The probe of asks@1 fails" in done.err) == (1, True), done


async def test_a_copy_that_arrives_otherwise_is_no_file(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shop.ship()
    monkeypatch.setattr(node_data, "_sha256", lambda path: bytes(32))
    done = await skerry(shop.node.replica, "data", "copy", "shop-1", tmp_path / "copy.db")
    assert (done.status, "isn't what control has sent" in done.err) == (1, True), done
    assert not list(tmp_path.glob("*.db")) + list(tmp_path.glob(".*.part"))
