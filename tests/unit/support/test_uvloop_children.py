"""What a forked program starts in uvloop is forked too, and is to it what a start by exec makes."""

import subprocess
import sys

import pytest

from control.local.process import ending_with_us
from tests.support import forked_programs

PROGRAM = forked_programs.may_be_forked(
    """
import asyncio, sys, uvloop
from subprocess import DEVNULL, PIPE

async def main():
    command = [sys.executable, "-m", "edge_runtime.oneshot.check", "schema"]
    check = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    with open(f"/proc/{check.pid}/maps") as maps:
        print("_cffi_backend" in maps.read())
    print(await check.communicate(b'{"earlier": [], "sql": "CREATE TABLE t (a);"}'), check.returncode)
    check = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=DEVNULL)
    check.kill()
    print(await check.wait())

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
""",
    starts_others=True,
)


def ran() -> list[str]:
    command = ending_with_us([sys.executable, "-c", PROGRAM])
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()


def test_it_is_forked_and_says_and_ends_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    is_fork, *said = ran()
    assert (is_fork, said[-1]) == ("True", "-9")
    monkeypatch.setattr(forked_programs, "by_exec", True)
    assert ran()[1:] == said
