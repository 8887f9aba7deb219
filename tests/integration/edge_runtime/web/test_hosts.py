"""Routes for certain hosts, over real HTTP: the Host header decides, and what a host that isn't the node's reaches."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio

from edge_runtime.dispatch.pool import Pool
from tests.guests.build import guest
from tests.support.edge import Node, node, until
from tests.support.lent_node import NodeLender
from tests.support.raw_http import post, raw

TOKEN = "a-long-enough-secret"


def at(path: str, *hosts: str, **more: Any) -> tuple[bytes, dict[str, Any]]:
    """A function that answers its environment, at this path of these hosts."""
    return guest("env"), {"route": {"path": path, "hosts": list(hosts), **more}}


FUNCTIONS = {
    "shop": at("/page", "shop.example", "10.0.0.1"),
    "below": at("/page", "*.shop.example"),
    "orders": at("/orders/{id}", "shop.example", methods=["GET"]),
    "every": at("/page"),
    "rest": at("/all/{rest...}"),
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def lenders(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, NodeLender]]:
    """By token: who has a node with it, and without one, on loopback."""
    folder = tmp_path_factory.mktemp("nodes")
    made = {token: NodeLender(folder / (token or "open"), FUNCTIONS, token=token) for token in (TOKEN, "")}
    yield made
    for lender in made.values():
        await lender.end()


@pytest_asyncio.fixture(loop_scope="module")
async def behind_token(lenders: dict[str, NodeLender]) -> AsyncIterator[Node]:
    async with lenders[TOKEN].lent() as edge:
        yield edge


@pytest_asyncio.fixture(loop_scope="module")
async def open_node(lenders: dict[str, NodeLender]) -> AsyncIterator[Node]:
    """A node without a token, on loopback."""
    async with lenders[""].lent() as edge:
        yield edge


async def asked(edge: Node, path: str, host: str | None, line: str = "") -> tuple[int, str]:
    """The status, and the function that answered or the code of the refusal."""
    hosts = "" if host is None else f"host: {host}\r\n"
    head = f"GET {path} {line or 'HTTP/1.1'}\r\n{hosts}authorization: Bearer {TOKEN}\r\n\r\n"
    async with raw(edge) as connection:
        await connection.send(head.encode())
        status, _, body = await connection.answer()
        if status == 200:
            return status, re.search(r"(?m)^SKERRY_FUNCTION=(.*)$", body.decode())[1]  # type: ignore[index]
        return status, orjson.loads(body)["code"]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("host", "function"),
    [
        ("shop.example", "shop"),
        ("Shop.Example:8080", "shop"),
        ("shop.example.", "shop"),
        ("shop.example.:80", "shop"),
        ("10.0.0.1:80", "shop"),
        ("www.shop.example", "below"),
        ("a.b.SHOP.example:80", "below"),
        ("myshop.example", "every"),
        ("example", "every"),
        ("localhost", "every"),
        ("[::1]:80", "every"),
        ("", "every"),
    ],
)
async def test_the_nearest_host_decides(behind_token: Node, host: str, function: str) -> None:
    assert await asked(behind_token, "/page", host) == (200, function)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_route_without_hosts_is_for_every_host(behind_token: Node) -> None:
    for host in ("shop.example", "www.shop.example", "other.example"):
        assert await asked(behind_token, "/all/x", host) == (200, "rest")
        assert await asked(behind_token, "/functions/orders", host) == (200, "orders")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_request_in_http_1_0_may_have_no_host_and_a_url_in_its_line_has_one(behind_token: Node) -> None:
    assert await asked(behind_token, "/page", None, "HTTP/1.0") == (200, "every")
    assert await asked(behind_token, "http://shop.example:80/page", "other.example") == (200, "shop")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_path_that_no_route_of_the_host_has_is_said_with_the_host(behind_token: Node) -> None:
    assert await asked(behind_token, "/orders/7", "shop.example") == (200, "orders")
    assert await asked(behind_token, "/orders/7", "www.shop.example") == (404, "path_unknown")
    async with raw(behind_token) as connection:
        await connection.send(post("/orders/7", host="www.shop.example:81", more=f"authorization: Bearer {TOKEN}\r\n"))
        status, _, body = await connection.answer()
        assert status == 404
        assert "No function's route is this path for the host www.shop.example:81." in orjson.loads(body)["detail"]
        await connection.send(post("/orders/7", host="shop.example", more=f"authorization: Bearer {TOKEN}\r\n"))
        status, headers, _ = await connection.answer()
        assert (status, headers["allow"]) == (405, "get, head")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "hosts", ["", "host: shop.example\r\nhost: shop.example\r\n", "host: shop.example/x\r\n", "host: a b\r\n"]
)
async def test_no_host_two_hosts_and_what_is_none_are_no_http(behind_token: Node, hosts: str) -> None:
    async with raw(behind_token) as connection:
        await connection.send(f"GET /page HTTP/1.1\r\n{hosts}authorization: Bearer {TOKEN}\r\n\r\n".encode())
        status, _, body = await connection.answer()
        assert (status, orjson.loads(body)["code"]) == (400, "request_invalid")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("path", "host", "ended"),
    [
        ("/page", "shop.example", (200, "shop")),
        ("/page", "www.shop.example", (200, "below")),
        ("/orders/7", "shop.example:80", (200, "orders")),
        ("/page", "localhost", (200, "every")),
        # Neither by a host that no route names, nor by one that is another route's.
        ("/page", "other.example", (403, "host_refused")),
        ("/page", "", (403, "host_refused")),
        ("/all/x", "shop.example", (403, "host_refused")),
        ("/functions/shop", "shop.example", (403, "host_refused")),
        ("/functions/rest", "www.shop.example", (403, "host_refused")),
        ("/_skerry/status", "shop.example", (403, "host_refused")),
        ("/orders/7", "www.shop.example", (404, "path_unknown")),
    ],
)
async def test_without_a_token_a_host_is_for_the_routes_that_name_it(
    open_node: Node, path: str, host: str, ended: tuple[int, str]
) -> None:
    assert await asked(open_node, path, host) == ended


async def test_a_call_that_waits_while_its_route_loses_the_host_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # These calls only read, and would go on until the release is there.
    monkeypatch.setattr(Pool, "hold_writes", lambda self, *_: None)
    async with node(tmp_path / "state") as edge:
        await edge.release({"f": at("/page", "shop.example"), "g": at("/other", "shop.example")})
        edge.front.pool.hold_all()
        waiting = [asyncio.ensure_future(asked(edge, path, "shop.example")) for path in ("/page", "/other")]
        await until(lambda: edge.front.pool.waiting == 2)
        changed = {"f": at("/page", "other.example"), "g": at("/other", "www.example", "shop.example")}
        await edge.release(changed)
        edge.front.pool.let_go()
        assert await asyncio.gather(*waiting) == [(503, "release_changing"), (200, "g")]
