"""`skerry status --watch` in a real terminal: redrawn, also while control is away, until Ctrl-C."""

import asyncio
import signal
import sys
from contextlib import AsyncExitStack

import pytest

from control.cli import status_watch
from control.cli.support import output
from tests.support import numbers, seeds
from tests.support.deadlines import deadline
from tests.support.ports import free_port
from tests.support.replica import Site
from tests.support.terminals import LIMIT, in_terminal


def environment(site: Site, url: str) -> dict[str, str]:
    return {"SKERRY_URL": url, "SKERRY_TOKEN": site.admin, "SKERRY_CA": str(site.ca)}


async def test_it_shows_what_comes_also_after_control_was_away_and_ends_by_ctrl_c(control_site: Site) -> None:
    port = free_port()
    async with AsyncExitStack() as stack:
        async with control_site.running(port=port) as replica:
            made = await replica.join("one")
            await seeds.function(replica, "hello")
            await seeds.release(replica, functions={"hello": 1})
            await made.sync()
            terminal = await stack.enter_async_context(
                in_terminal(environment(control_site, replica.url), "status", "--watch")
            )
            await terminal.until("AT TARGET", "default")
            await numbers.tell(made, numbers.message([numbers.function(0, calls=1234, guest_trap=1234)]))
            await replica.services.numbers.resolve()
            await terminal.until("1,234 (100.0 %)")
        terminal.forget()
        await terminal.until("control doesn't answer, and is asked again", "1,234 (100.0 %)")
        async with control_site.running(port=port) as again:
            assert (await again.call("POST", "/v1/groups", {"name": "west-coast"})).status == 201
            await terminal.until("west-coast")
            terminal.forget()
            await terminal.until("west-coast")
            assert "doesn't answer" not in terminal.shown
            terminal.process.send_signal(signal.SIGINT)
            async with deadline(LIMIT):
                assert await terminal.process.wait() == 0
            assert "Traceback" not in terminal.shown


async def test_an_ended_token_ends_it(control_site: Site) -> None:
    async with control_site.running() as replica:
        made = (await replica.call("POST", "/v1/operators", {"name": "guard", "role": "read"})).json()
        async with in_terminal(
            environment(control_site, replica.url) | {"SKERRY_TOKEN": made["token"]}, "status", "--watch"
        ) as terminal:
            await terminal.until("AT TARGET")
            await replica.call("DELETE", "/v1/operators/guard")
            async with deadline(LIMIT):
                assert await terminal.process.wait() == 3
            await terminal.until("credentials_invalid")


@pytest.mark.parametrize(
    ("arguments", "text"), [((), "--watch redraws a terminal, and this is none"), (("--json",), "with --group alone")]
)
async def test_what_can_not_be_redrawn_is_refused(arguments: tuple[str, ...], text: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "control.cli", "status", "--watch", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode == 2
    assert text in " ".join(out.decode().split())


def test_how_a_release_does_is_said_in_a_line() -> None:
    release = {"release": 3, "nodes": 1, "calls": 0, "errors": 0, "p99": None}
    assert status_watch.release_line(release, 10) == "release 3: 1 node, no calls in 10 min"
    release |= {"nodes": 1200, "calls": 12_345, "errors": 12_345, "p99": 0.0123}
    line = "release 3: 1,200 nodes, 12,345 calls in 10 min, errors 12,345 (100.0 %), p99 12 ms"
    assert status_watch.release_line(release, 10) == line
    assert [output.latency(time) for time in (None, 0.00034, 0.0034, 0.99, 3.21)] == [
        *("-", "340 µs", "3.4 ms", "990 ms", "3.2 s")
    ]
    cause = {"code": "disk_full", "text": "no room", "nodes": 7, "examples": ["a", "b"]}
    assert status_watch.cause_line("shops", cause) == "shops: 7 nodes fail: no room [disk_full] (a, b, …)"
