"""A replica that is lent: what a test leaves behind is found, and the next test gets another one."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from control.local.pki import Pki
from tests.support import returned
from tests.support.control import Control
from tests.support.lent import Lender
from tests.support.services import ServerUrls


@pytest.fixture
async def lender(
    services: ServerUrls, pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Lender]:
    monkeypatch.setattr(returned, "RETURN_LIMIT", 0.3)

    async def make(control: Control) -> str:
        return str((await control.ok("POST", "/v1/groups", {"name": "made"}))["name"])

    made = Lender(services, pki, tmp_path, make, written={"operators"})
    yield made
    await made.end()


Leaves = Callable[[Control, Path, AsyncExitStack], Awaitable[object]]


async def a_row(control: Control, _: Path, __: AsyncExitStack) -> object:
    return await control.ok("POST", "/v1/groups", {"name": "left"})


async def no_row(control: Control, _: Path, __: AsyncExitStack) -> object:
    return await control.ok("DELETE", "/v1/groups/made")


async def a_transaction(control: Control, _: Path, stack: AsyncExitStack) -> object:
    connection = await asyncpg.connect(control.services.settings.metadata_url)
    stack.push_async_callback(connection.close)
    await connection.execute("BEGIN")
    return await connection.fetch("SELECT * FROM nodes FOR UPDATE")


async def a_connection(control: Control, _: Path, stack: AsyncExitStack) -> object:
    parts = urlsplit(control.url)
    tls = ssl.create_default_context(cafile=control.services.settings.ca_cert)
    _, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=tls)
    return stack.callback(writer.close)


async def a_descriptor(_: Control, folder: Path, stack: AsyncExitStack) -> object:
    return stack.enter_context((folder.parent / f"{folder.name}-open").open("w"))


async def a_process(_: Control, __: Path, stack: AsyncExitStack) -> object:
    process = stack.enter_context(subprocess.Popen(["sleep", "60"]))
    return stack.callback(process.kill)


async def a_file(_: Control, folder: Path, __: AsyncExitStack) -> object:
    return (folder / "left").write_text("x")


async def a_later_clock(control: Control, _: Path, __: AsyncExitStack) -> object:
    return control.clock.advance(minutes=1)


@pytest.mark.parametrize(
    ("leaves", "told"),
    [
        (a_row, "row of groups: "),
        (no_row, "no more row of groups: "),
        (a_transaction, "transaction: "),
        (a_connection, "connection: "),
        (a_descriptor, "descriptor "),
        (a_process, "process: "),
        (a_file, "file: "),
        (a_later_clock, "clock: "),
    ],
)
async def test_what_is_left_behind_is_told(
    services: ServerUrls, lender: Lender, tmp_path: Path, leaves: Leaves, told: str
) -> None:
    if leaves is a_transaction and not services.postgresql_url:
        pytest.skip("transactions are looked for in a PostgreSQL that is ours")
    async with AsyncExitStack() as stack:
        with pytest.raises(pytest.fail.Exception, match=f"^the test left behind:\n{told}"):
            async with lender.lent() as control:
                await leaves(control, tmp_path, stack)
        assert lender.control is None


async def test_one_replica_is_lent_until_something_is_left(lender: Lender) -> None:
    urls = []
    for number in range(2):
        async with lender.lent() as control:
            assert lender.made == "made"
            assert [group["name"] for group in await control.items("/v1/groups")] == ["default", "made"]
            # What is refused leaves nothing but a note.
            assert (await control.call("POST", "/v1/groups", {"name": "no name"})).status == 422
            # What it makes in a table that the tests write has a name of its own.
            await control.operator(f"operator-{number}", "read")
            urls.append(control.url)
    assert urls[0] == urls[1]
    with pytest.raises(pytest.fail.Exception):
        async with lender.lent() as control:
            await control.ok("POST", "/v1/groups", {"name": "left"})
    async with lender.lent() as control:
        assert control.url != urls[0]
        assert [group["name"] for group in await control.items("/v1/groups")] == ["default", "made"]
