"""A node is restarted under load on a socket that somebody else keeps open, as systemd does: no call fails."""

import asyncio
import signal
import socket
import ssl
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from control.local.pki import Pki
from tests.support.agents import Control, joined
from tests.support.callers_load import answered, calling
from tests.support.deadlines import deadline
from tests.support.handed_node import log_of, node_on, start
from tests.support.programs import DEADLINE
from tests.support.releases import first_release
from tests.support.told_manager import told_manager


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_no_call_fails_while_a_node_is_restarted(
    control: Control, pki: Pki, tmp_path: Path, secure: bool
) -> None:
    state = tmp_path / "state"
    await joined(control, state)
    await first_release(control)
    more = ("--tls-cert", pki.certificate, "--tls-key", pki.key) if secure else ()
    tls = ssl.create_default_context(cafile=str(pki.ca)) if secure else None
    async with AsyncExitStack() as stack:
        handed = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
        first = await stack.enter_async_context(node_on(handed, state, *more))
        await control.until(lambda node: node["at_target"])
        async with calling(handed.getsockname()[1], "/functions/hello", tls=tls) as made:
            await answered(made, 50)
            first.send_signal(signal.SIGTERM)
            async with deadline(DEADLINE):
                await first.wait()
            # Every client that keeps its connection was told to come again on another one.
            async with deadline(DEADLINE):
                while made.told_to_move + made.ended_idle < 4 and not made.failed:
                    await asyncio.sleep(0.01)
            assert made.failed == []
            await stack.enter_async_context(node_on(handed, state, *more))
            await answered(made, 100)
        print(f"{made.answered} calls, the longest took {made.longest:.2f} s")
        assert made.failed == []
        assert made.longest < DEADLINE


async def test_the_socket_and_listen_agree_or_nothing_starts(control: Control, tmp_path: Path) -> None:
    state = tmp_path / "state"
    await joined(control, state)

    async def refused(*more: str, **environment: str) -> str:
        process = await start(handed, state, *more, **environment)
        async with deadline(DEADLINE):
            await process.wait()
        told = log_of(state).read_text()
        log_of(state).unlink()
        assert process.returncode == 2, told
        return told

    with socket.create_server(("127.0.0.1", 0)) as handed:
        port = handed.getsockname()[1]
        told = f"the socket that systemd hands over has the address 127.0.0.1:{port}"
        assert told in await refused("--listen", "127.0.0.1:1")
        assert told in await refused(SKERRY_EDGE_LISTEN="nonsense")
        async with (
            told_manager(tmp_path) as manager,
            node_on(handed, state, "--listen", f"localhost:{port}", **manager.environment),
        ):
            await manager.is_told_of_the_start()
            async with calling(port, "/functions/none", keeping=1, others=0) as made:
                await answered(made, 1)
            assert made.failed[0] == "status 404"
            await manager.is_told_of_work()
    with socket.create_server(("0.0.0.0", 0)) as handed:
        # The address is judged as that of --listen is.
        assert "which others can reach" in await refused()
