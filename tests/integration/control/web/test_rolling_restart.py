"""Two replicas are restarted one after the other, behind one address: no poll and no operator's call fails."""

import logging
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from control.cli.support.client import ConnectionSettings
from edge_runtime.sync.join import join
from tests.guests.version import version
from tests.support import deploy
from tests.support.agents import Edge, edge
from tests.support.balancer import balancing
from tests.support.operators_load import OperatorsCalls
from tests.support.programs import control_program, until
from tests.support.replica import Site

NODES = 2


async def test_no_poll_and_no_call_fails(control_site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with AsyncExitStack() as stack:
        one, other = [
            await stack.enter_async_context(control_program(control_site, tmp_path / name)) for name in ("one", "other")
        ]
        to = one[1]
        ports = [int(replica.url.rpartition(":")[2]) for _, replica in (one, other)]
        url = f"https://127.0.0.1:{await stack.enter_async_context(balancing(ports))}"
        nodes: list[Edge] = []
        for number in range(NODES):
            state = tmp_path / f"edge-{number}"
            token = (await deploy.ok(to, "POST", "/v1/join-tokens", {"group": "default"}))["token"]
            await join(state, url, token, f"edge-{number}", {}, pause=0.01)
            nodes.append(await stack.enter_async_context(edge(state)))
        versions = [(await deploy.push(to, "hello", version(number), sql="none"))["version"] for number in (1, 2)]
        operator = OperatorsCalls(
            ConnectionSettings(url, to.admin, to.ca), [{"functions": {"hello": number}} for number in versions]
        )
        await stack.enter_async_context(operator.going_on())

        async def all_go_on() -> None:
            """The operator's calls are answered, and nodes come to the newest release."""
            await operator.go_on()
            wanted = operator.released

            async def there() -> bool:
                served = [node.front.manager.release for node in nodes]
                return all(release is not None and release.number >= wanted for release in served)

            await until(there, f"nodes are at release {wanted}")

        def asked_the_next() -> bool:
            return any("the next replica is asked" in record.getMessage() for record in caplog.records)

        await all_go_on()
        with caplog.at_level(logging.INFO, "skerry.agent"):
            # Once more where it so happened that no poll was held by a replica that stopped.
            for number in range(10):
                if number >= 2 and asked_the_next():
                    break
                program, _ = (one, other)[number % 2]
                await program.stop()
                await all_go_on()
                await program.again()
                await all_go_on()
                assert [node.agent.status()["control"]["error"] for node in nodes] == [None] * NODES
        told = [record for record in caplog.records if record.name == "skerry.agent"]
        assert [record.getMessage() for record in told if record.levelno >= logging.WARNING] == []
        assert asked_the_next()
