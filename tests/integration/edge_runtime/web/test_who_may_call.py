"""A node's local HTTP: who may call, and what is refused before a function is asked."""

from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
import pytest_asyncio

from tests.guests.build import guest
from tests.support.edge import Node, node, until
from tests.support.lent_node import NodeLender
from tests.support.raw_http import post, raw

FUNCTIONS = {"echo": guest("echo"), "env": guest("env")}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def lender(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NodeLender]:
    made = NodeLender(tmp_path_factory.mktemp("named"), FUNCTIONS, hosts=("Node.internal",))
    yield made
    await made.end()


@pytest_asyncio.fixture(loop_scope="module")
async def named(lender: NodeLender) -> AsyncIterator[Node]:
    """A node that is also called `node.internal`."""
    async with lender.lent() as edge:
        yield edge


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:1234", 200),
        ("LOCALHOST", 200),
        ("LOCALHOST:80", 200),
        ("localhost ", 200),
        ("127.0.0.1", 200),
        ("[::1]:99", 200),
        ("node.internal:5", 200),
        ("evil.example", 403),
        ("localhost.evil.example:80", 403),
        ("", 403),
    ],
)
async def test_on_loopback_the_host_is_checked(named: Node, host: str, status: int) -> None:
    async with raw(named) as connection:
        await connection.send(post("/functions/echo", b"x", host))
        answered, _, body = await connection.answer()
        assert answered == status
        assert status == 200 or orjson.loads(body)["code"] == "host_refused"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost", 200),
        ("http://localhost:3000", 403),
        ("https://node.internal", 403),
        ("http://[::1]:80", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("", 403),
    ],
)
async def test_a_web_page_must_be_of_the_nodes_origin(named: Node, origin: str, status: int) -> None:
    async with raw(named) as connection:
        await connection.send(post("/functions/echo", b"x", more=f"origin: {origin}\r\n"))
        answered, _, body = await connection.answer()
        assert answered == status
        assert status == 200 or orjson.loads(body)["code"] == "origin_refused"


async def test_a_page_that_the_manifest_names_is_answered_by_cors(tmp_path: Path) -> None:
    """The preflight by the node alone, and each answer, errors too, with the headers that let the page read it."""
    page, token = "https://app.example", "a-long-enough-secret"
    headers = {"Origin": page, "Sec-Fetch-Site": "cross-site", "Authorization": f"Bearer {token}"}
    cors = {"origins": [page], "methods": ["POST"], "headers": ["Authorization"], "credentials": True, "max_age": 9}
    async with node(tmp_path / "state", token=token, body_limit=100) as edge:
        # This guest's answer is its body, header lines and all.
        await edge.release({"raw": (guest("raw"), {"cors": cors}), "none": guest("raw")})
        asked = {**headers, "Access-Control-Request-Method": "POST"}
        del asked["Authorization"]
        status, told, body = await edge.call("raw", method="OPTIONS", headers=asked)
        assert (status, body) == (204, b"")
        assert {
            name.lower(): value for name, value in told.items() if name.lower() not in ("date", "x-request-id")
        } == {
            "access-control-allow-origin": page,
            "access-control-allow-credentials": "true",
            "access-control-allow-methods": "POST",
            "access-control-allow-headers": "Authorization",
            "access-control-max-age": "9",
            "vary": "origin, access-control-request-method, access-control-request-headers",
        }
        assert edge.front.pool.tallies["raw"].outcomes == {}
        assert (await edge.call("none", method="OPTIONS", headers=asked))[0] == 403
        own = b"Content-Type: text/plain\nAccess-Control-Allow-Origin: *\n\nanswer"
        for sent, code in ((headers, 200), ({**headers, "Authorization": "Bearer x"}, 401)):
            status, told, _ = await edge.call("raw", own, headers=sent)
            assert status == code
            assert told.getall("access-control-allow-origin") == [page]
            assert told.getall("vary") == ["origin"]
        status, told, _ = await edge.call("raw", b"x" * 101, headers=headers)
        assert (status, told["access-control-allow-origin"]) == (413, page)
        # Another method is refused, and so are those to whom the page doesn't belong.
        assert (await edge.call("raw", method="PUT", headers=headers))[0] == 403
        assert (await edge.call("none", headers=headers))[0] == 403
        # A program's answer may be kept by a cache, which must not give it to that page.
        status, told, _ = await edge.call("raw", own, headers={"Authorization": f"Bearer {token}"})
        assert (status, told.getall("access-control-allow-origin"), told["vary"]) == (200, ["*"], "origin")


async def test_a_node_with_a_token_asks_for_it(tmp_path: Path) -> None:
    token = "a-long-enough-secret"
    async with node(tmp_path / "state", token=token) as edge:
        await edge.release(FUNCTIONS)
        assert await edge.problem("echo") == (401, "token_needed")
        status, headers, _ = await edge.call("echo", headers={"Authorization": "Bearer a-long-enough-secreT"})
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert (await edge.call("echo", headers={"Authorization": f"bearer  {token}"}))[0] == 200
        for wrong in (token, f"Basic {token}", "Bearer", f"Bearer {token} x"):
            assert (await edge.call("echo", headers={"Authorization": wrong}))[0] == 401
        status, _, body = await edge.call("env", headers={"Authorization": f"Bearer {token}"})
        assert status == 200
        # The node's own secret is none of a guest's business.
        assert token not in body.decode()
        for page, expected in (("status", 401), ("metrics", 401), ("healthz", 200)):
            async with edge.http.get(f"/_skerry/{page}") as answer:
                assert answer.status == expected


@pytest.mark.usefixtures("programs_by_exec")
async def test_no_secret_reaches_the_processes_that_run_guests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKERRY_EDGE_TOKEN", "a-long-enough-secret")
    async with node(tmp_path / "state", token="a-long-enough-secret") as edge:
        for pid in (edge.front.processes.pid, *edge.workers()):
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            assert b"PATH=" in environment
            assert b"a-long-enough-secret" not in environment
            assert b"a-long-enough-secret" not in Path(f"/proc/{pid}/cmdline").read_bytes()


async def test_children_die_with_their_parents_and_have_limits(tmp_path: Path) -> None:
    async with node(tmp_path / "state") as edge:
        worker = next(iter(edge.workers()))
        limits = Path(f"/proc/{worker}/limits").read_text()
        rows = {line[:26].strip(): line[26:47].strip() for line in limits.splitlines()}
        assert rows["Max core file size"] == "0"
        assert rows["Max open files"] == "256"
        # Else a guest could leave its sandbox.
        assert rows["Max address space"] == "unlimited"
        assert "NoNewPrivs:\t1" in Path(f"/proc/{worker}/status").read_text()
        family = [edge.front.processes.pid, *edge.workers()]
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family))


@pytest.mark.asyncio(loop_scope="module")
async def test_without_a_token_an_authorization_is_the_functions(named: Node) -> None:
    _, _, body = await named.call("env", headers={"Authorization": "Bearer of-the-application"})
    assert "HTTP_AUTHORIZATION=Bearer of-the-application" in body.decode()


@pytest.mark.asyncio(loop_scope="module")
async def test_other_paths_and_methods(named: Node) -> None:
    for method, path, expected in (
        ("GET", "/", 404),
        ("GET", "/functions", 404),
        ("GET", "/_skerry/secret", 404),
        ("POST", "/_skerry/status", 405),
        ("DELETE", "/functions/echo", 200),
    ):
        async with named.http.request(method, path) as answer:
            assert answer.status == expected, (method, path)
