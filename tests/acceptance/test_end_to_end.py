"""The main job: a function and a schema go in at the centre, and the edge answers from its own libsql database."""

from pathlib import Path

import pytest

from control.local.pki import Pki
from tests.guests.build import EXAMPLES, example
from tests.support import repeating
from tests.support.programs import command, control_program, edge_program, join, skerry, until
from tests.support.replica import Replica, Site, prepare
from tests.support.services import LIKE_COCKROACHDB, OwnServers, fresh_bucket, with_errors

# Each starts several programs, one after the other.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The example `visits` as a developer has it: its module built, its manifest and its schema beside."""
    folder = tmp_path / "visits"
    folder.mkdir()
    (folder / "visits.wasm").write_bytes(example("visits"))
    for name in ("manifest.json", "schema.sql"):
        (folder / name).write_bytes((EXAMPLES / "visits" / name).read_bytes())
    return folder


@pytest.fixture
async def own_site(own_services: OwnServers, pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """As `control_site`, on servers that the test may kill."""
    monkeypatch.setattr(repeating, "REPEATS", LIKE_COCKROACHDB)
    url = await own_services.fresh_database()
    return (await prepare(url, await fresh_bucket(own_services.artifacts_url), pki, tmp_path)).at(with_errors(url))


async def deploy(control: Replica, files: Path) -> None:
    """Schema and function, each by the command that waits until the node runs it."""
    added = await skerry(control, "schema", "add", files / "schema.sql", "--name", "visits", "--wait", "--json")
    assert added.json()["change"]["number"] == 1
    pushed = await skerry(
        control,
        "function",
        "push",
        "visits",
        files / "visits.wasm",
        "--manifest",
        files / "manifest.json",
        "--wait",
        "--json",
    )
    [node] = pushed.json()["release"]["nodes"]
    assert (node["name"], node["at_target"], node["schema_version"]) == ("edge-1", True, 1)


@pytest.mark.usefixtures("programs_by_exec")
async def test_from_a_push_to_an_answer_at_the_edge(control_site: Site, files: Path, tmp_path: Path) -> None:
    state = tmp_path / "edge"
    async with control_program(control_site, tmp_path / "control") as (_, control):
        assert (await join(control, state, "edge-1")).status == 0
        async with edge_program(state) as edge:
            assert (await edge.call("visits/ada"))[0] == 404
            await deploy(control, files)

            visit = await command("control.cli", "invoke", "visits", "ada", "-X", "POST", "--edge", edge.url)
            assert visit.json() == {"name": "ada", "count": 1}
            assert await edge.call("visits/ada", "POST") == (200, b'{"name":"ada","count":2}\n')
            assert await edge.call("visits/ada") == (200, b'{"name":"ada","count":2}\n')
            # Out of the edge's own database.
            assert await edge.file("SELECT name, count FROM visits") == [[["ada", 2]]]
            status = await command(
                "edge_runtime.cli.main", "status", "--listen", edge.url.removeprefix("http://"), "--json"
            )
            told = status.json()
            assert (told["node"]["name"], told["at_target"], told["schema_version"]) == ("edge-1", True, 1)
            assert [(f["name"], f["version"]) for f in told["functions"]] == [("visits", 1)]
            assert (await skerry(control, "status", "--check")).status == 0

            # A rollback is a release like any other.
            done = await skerry(control, "release", "create", "--rollback-to", "1", "--wait", "--json")
            assert done.json()["functions"] == []
            assert (await edge.call("visits/ada"))[0] == 404
            assert await edge.file("SELECT name, count FROM visits") == [[["ada", 2]]]


async def test_the_edge_answers_without_control_store_and_database(
    own_services: OwnServers, own_site: Site, files: Path, tmp_path: Path
) -> None:
    state = tmp_path / "edge"
    async with control_program(own_site, tmp_path / "control") as (program, control):
        assert (await join(control, state, "edge-1")).status == 0
        async with edge_program(state) as edge:
            await deploy(control, files)
            assert await edge.call("visits/ada", "POST") == (200, b'{"name":"ada","count":1}\n')

            servers = (own_services.processes.metadata, own_services.processes.artifacts)
            try:
                for gone in (program, *servers, edge):
                    await gone.kill()
                await edge.again()
                # The release that it had, from its own disk; writes are kept over another restart.
                assert await edge.call("visits/ada") == (200, b'{"name":"ada","count":1}\n')
                assert await edge.call("visits/ada", "POST") == (200, b'{"name":"ada","count":2}\n')
                await edge.kill()
                await edge.again()
                assert await edge.call("visits/ada") == (200, b'{"name":"ada","count":2}\n')

                async def unreachable() -> bool:
                    return (await edge.status())["control"]["error"] is not None

                await until(unreachable, "the node says that it can't reach control")
                status = await edge.status()
                assert (status["release"]["number"], status["control"]["reachable"]) == (2, False)
            finally:
                for server in servers:
                    await server.start()
            await program.again()

            async def at_target() -> bool:
                status = await edge.status()
                return bool(status["control"]["reachable"] and status["at_target"])

            await until(at_target, "the node has found control again, and is at its target")

            async def well() -> bool:
                # Not yet where the node was away for so long that it counts as offline.
                return (await skerry(control, "status", "--check")).status == 0

            await until(well, "all is well for control")
