"""`skerry-edge join` on an empty disk: the node has its data before it serves, or a person says that it needn't."""

import contextlib
import io
import json
import shutil
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from control.backups.objects import BackupFile
from control.protocol import ltx
from edge_runtime import wal
from edge_runtime.state import DATA_AWAITED
from edge_runtime.sync import identity
from edge_runtime.sync.restores import FOLDER
from tests.guests.build import guest
from tests.integration.edge_runtime.cli.test_node import command
from tests.integration.edge_runtime.sync.test_restores import NOTES, SQL, rows, texts, torn_at, write, written
from tests.support.agents import Control, edge, joined
from tests.support.programs import Faults
from tests.support.restoring import RestoringControl, restoring_control

pytestmark = pytest.mark.never_retry


@pytest.fixture
async def stand(control: Control) -> AsyncIterator[RestoringControl]:
    async with restoring_control(control) as running:
        yield running


@pytest.fixture
async def backup(control: Control, stand: RestoringControl, tmp_path: Path) -> dict[BackupFile, bytes]:
    """The backup of the node `edge-1`, which had the row `early`, and whose disk is lost."""
    lost = tmp_path / "lost"
    await joined(control, lost)
    stand.lead(lost)
    await control.call("POST", "schema-changes", {"name": "notes", "sql": NOTES})
    await control.release(functions={"sql": await control.push("sql", guest("sql"), SQL)}, now=True)
    async with written(lost, "late") as (_, files):
        pass
    shutil.rmtree(lost)
    return files


class Joining:
    """The command, again and again with the same token."""

    def __init__(self, stand: RestoringControl, state: Path, token: str) -> None:
        self.state = state
        self._arguments = ("join", "--state", str(state), "--control", stand.url, "--name", "edge-1")
        self._token = token

    async def run(self, *more: str, **environment: str) -> tuple[int, str, str]:
        return await command(*self._arguments, *more, SKERRY_JOIN_TOKEN=self._token, **environment)


@pytest.fixture
async def joining(
    control: Control, stand: RestoringControl, backup: dict[BackupFile, bytes], tmp_path: Path
) -> Joining:
    return Joining(stand, tmp_path / "state", await control.join_token(rejoin="edge-1"))


async def test_a_node_comes_back_with_its_data_and_its_release(
    control: Control, stand: RestoringControl, backup: dict[BackupFile, bytes], joining: Joining
) -> None:
    stand.order(backup, "latest")
    status, out, errors = await joining.run()
    assert status == 0, errors
    at = stand.orders["latest"].at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    size = (joining.state / wal.FILE).stat().st_size
    assert f"Its database is back as it was at {at}: {size:,} bytes, with release 1." in out
    assert "A backup has no files of secrets, callers, tokens and TLS" in out
    assert rows(joining.state / wal.FILE) == ["early"]
    assert len(list((joining.state / "artifacts").glob("*.wasm"))) == 1
    assert not (joining.state / DATA_AWAITED).exists()
    assert not (joining.state / FOLDER).exists()
    assert not list(joining.state.glob("db.before-*"))
    # It serves what it had without any control.
    identity.write(joining.state, replace(identity.read(joining.state), control_url="https://127.0.0.1:1"))
    async with edge(joining.state) as node:
        assert await texts(node.http) == ["early"]
        await write(node.http, "after")
        assert (await node.status())["restore"]["at"] == at


async def test_a_node_without_a_backup_begins_empty(joining: Joining) -> None:
    status, out, errors = await joining.run("--json")
    assert status == 0, errors
    assert json.loads(out)["restored"] is None
    assert not (joining.state / DATA_AWAITED).exists()
    assert not (joining.state / wal.FILE).exists()


async def test_the_answer_in_json(stand: RestoringControl, backup: dict[BackupFile, bytes], joining: Joining) -> None:
    stand.order(backup, "latest")
    stand.refuse["GET /v1/artifacts/"] = 404
    status, out, errors = await joining.run("--json")
    assert status == 0, errors
    told = json.loads(out)
    assert told["name"] == "edge-1"
    assert (told["restored"]["release"], told["restored"]["bytes"]) == (1, (joining.state / wal.FILE).stat().st_size)
    assert "function sql" in told["restored"]["functions_lacking"]


async def test_a_backup_that_is_damaged_keeps_the_node_from_starting_empty(
    control: Control, stand: RestoringControl, backup: dict[BackupFile, bytes], joining: Joining
) -> None:
    _, shipment = backup
    torn = {**backup, shipment: torn_at(backup[shipment], 120)}
    stand.order(torn, "latest")
    status, _, errors = await joining.run()
    assert status == 1
    assert "the node has joined, but its database isn't back" in errors
    assert "Run the same command again, which goes on where it was, or with --without-data" in errors
    assert "[backup_damaged]" in errors
    status, _, errors = await command("run", "--state", str(joining.state), "--listen", "127.0.0.1:0")
    assert status == 1
    assert "the database of edge-1 isn't back from its backup yet: run `skerry-edge join` as before" in errors
    status, found, _ = await command("doctor", "--state", str(joining.state))
    assert status == 1
    assert "database: the database isn't back from its backup yet, and the node doesn't start before. Do: " in found
    assert not (joining.state / wal.FILE).exists()
    # The same command goes on, though its token has been used.
    node_id = identity.read(joining.state).node_id
    stand.order(backup, "latest")
    status, out, errors = await joining.run()
    assert status == 0, errors
    assert "Its database is back" in out
    assert identity.read(joining.state).node_id == node_id
    assert rows(joining.state / wal.FILE) == ["early"]
    # From then on it is as before: a node that has joined.
    status, _, errors = await joining.run()
    assert (status, "[already_joined]" in errors) == (1, True)


async def test_a_person_may_begin_empty(
    stand: RestoringControl, backup: dict[BackupFile, bytes], joining: Joining
) -> None:
    stand.order(backup, "latest")
    stand.refuse["GET /v1/nodes/self/backup/latest"] = 503
    status, _, errors = await joining.run()
    assert status == 1
    assert "--without-data" in errors
    status, out, errors = await joining.run("--without-data")
    assert status == 0, errors
    assert "Its database is back" not in out
    assert not (joining.state / DATA_AWAITED).exists()
    assert not (joining.state / wal.FILE).exists()
    assert not stand.asked


async def test_a_database_that_a_person_has_put_there_stays(
    stand: RestoringControl, backup: dict[BackupFile, bytes], joining: Joining, tmp_path: Path
) -> None:
    stand.order(backup, "latest")
    stand.refuse["GET /v1/nodes/self/backup/latest"] = 409
    assert (await joining.run())[0] == 1
    other = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(tmp_path / "made.db")) as made:
        made.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT)")
        made.execute("INSERT INTO notes (text) VALUES ('mine')")
        made.commit()
        made.execute("VACUUM INTO ?", (str(other),))
    (joining.state / wal.FILE).parent.mkdir(exist_ok=True)
    shutil.copy(other, joining.state / wal.FILE)
    stand.refuse.clear()
    status, out, errors = await joining.run()
    assert status == 0, errors
    assert "Its database is back" not in out
    assert rows(joining.state / wal.FILE) == ["mine"]
    assert not (joining.state / DATA_AWAITED).exists()


async def test_a_person_may_restore_another_backup(
    stand: RestoringControl, backup: dict[BackupFile, bytes], joining: Joining, tmp_path: Path
) -> None:
    stand.order(backup, "latest")
    stand.refuse["GET /v1/nodes/self/backup/latest"] = 409
    assert (await joining.run())[0] == 1
    with (tmp_path / "other.db").open("w+b") as target:
        for data in backup.values():
            ltx.apply(ltx.Reader(io.BytesIO(data)), target)
    status, _, errors = await command("restore", str(tmp_path / "other.db"), "--state", str(joining.state))
    assert status == 0, errors
    assert not (joining.state / DATA_AWAITED).exists(), "it starts with that"
    assert rows(joining.state / wal.FILE) == ["early"]


async def test_a_download_that_breaks_off_goes_on(
    stand: RestoringControl, backup: dict[BackupFile, bytes], joining: Joining
) -> None:
    stand.order(backup, "latest")
    stand.cut = [100, 100, 100]
    status, _, errors = await joining.run()
    assert status == 0, errors
    assert [line for line in stand.asked if not line.endswith(" 0")]
    assert rows(joining.state / wal.FILE) == ["early"]


@pytest.mark.parametrize(
    "point", ["edge.restoring.fetched", "edge.restoring.assembled", "edge.join.made", "edge.join.exchanged"]
)
async def test_a_command_that_is_killed_is_run_again(
    stand: RestoringControl, backup: dict[BackupFile, bytes], joining: Joining, tmp_path: Path, point: str
) -> None:
    faults = Faults(tmp_path / "faults")
    faults.arm(point, "kill")
    stand.order(backup, "latest")
    status, _, _ = await joining.run(SKERRY_FAULTS=str(faults.folder))
    assert status == -9
    status, _, _ = await command("run", "--state", str(joining.state), "--listen", "127.0.0.1:0")
    assert status == 1
    status, out, errors = await joining.run()
    assert status == 0, errors
    assert "Its database is back as it was at " in out
    assert rows(joining.state / wal.FILE) == ["early"]
    async with edge(joining.state) as node:
        assert node.front.manager.error() is None
        assert await texts(node.http) == ["early"]


async def test_a_node_that_has_data_keeps_it(
    control: Control, stand: RestoringControl, backup: dict[BackupFile, bytes], joining: Joining
) -> None:
    stand.order(backup, "latest")
    status, _, errors = await joining.run()
    assert status == 0, errors
    async with edge(joining.state) as node:
        await write(node.http, "after")
    asked = len(stand.asked)
    again = Joining(stand, joining.state, await control.join_token(rejoin="edge-1"))
    status, out, errors = await again.run("--again")
    assert status == 0, errors
    assert "Its database is back" not in out
    assert len(stand.asked) == asked
    async with edge(joining.state) as node:
        assert await texts(node.http) == ["early", "after"]
