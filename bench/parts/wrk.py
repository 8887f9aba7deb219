"""Load by wrk, which takes a few microseconds per request on the cores that it shares with the servers.

It counts unsuccessful answers but doesn't check bodies: `check` does, before and after.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .load import Client, Expected, WrongAnswer, request

MOST_SECONDS = 10
_CHECKED = 0.1
"""Seconds of load in which every answer is checked."""

_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/octet-stream"
wrk.body = "%s"
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('{"requests":%%d,"us":%%d,"errors":%%d,"p50":%%d,"p99":%%d}\\n', summary.requests,
    summary.duration, e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(50),
    latency:percentile(99)))
end
"""
_ANOTHER_HEAD = """
local first = "POST " .. wrk.path .. (wrk.path:find("?", 1, true) and "&n=" or "?n=")
local second = " HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\nContent-Type: application/octet-stream\\r\\nContent-Length: "
  .. #wrk.body .. "\\r\\nX-Request-Id: 00000000-"
local third = "\\r\\n\\r\\n" .. wrk.body
local n
function init(arguments)
  n = tonumber(arguments[1])
end
function request()
  n = n + 1
  return first .. n .. second .. n .. third
end
"""
"""Added to the script, it gives each request a different query and header value, with numbers from the argument."""
_NUMBERS = 100_000_000
"""A process's first number is this times its own number: 1, 2 ... A run has far fewer requests per process."""


@dataclass(frozen=True)
class Target:
    """A server's port, and the requested path."""

    port: int
    path: str


@dataclass(frozen=True)
class Load:
    """The result of a load, over all of its targets."""

    answers: int
    rate: float
    """Answers a second."""
    p50: float
    """Seconds within which half of the answers came, at the slowest target."""
    p99: float
    """The same for 99 % of the answers."""


class Wrk:
    """Sends one body to targets, over and over, on this many connections."""

    def __init__(self, folder: Path, body: bytes, connections: int) -> None:
        script = _SCRIPT % "".join(f"\\{byte:03d}" for byte in body)
        self._script = folder / "wrk.lua"
        self._script.write_text(script)
        self._other_heads = folder / "wrk-other-heads.lua"
        self._other_heads.write_text(script + _ANOTHER_HEAD)
        self._body = body
        self._connections = connections

    async def check(self, targets: Sequence[Target], expected: bytes) -> None:
        """Check that each target gives this answer. Raises: WrongAnswer, when one doesn't."""
        for target in targets:
            sent = request(target.path, self._body, [("Content-Type", "application/octet-stream")])
            async with Client(target.port, [(sent, Expected(200, expected))]) as client:
                await client.run(_CHECKED)

    async def run(self, targets: Sequence[Target], seconds: int, *, other_heads: bool = False) -> Load:
        """Load all targets at once, each with its share of the connections; `other_heads`: no two heads are the same.

        Raises: WrongAnswer, when an answer isn't a success.
        """
        assert seconds <= MOST_SECONDS
        share = self._connections // len(targets)
        script = self._other_heads if other_heads else self._script
        runs = [self._one(target, script, number, share, seconds) for number, target in enumerate(targets, 1)]
        found = await asyncio.gather(*runs)
        for each in found:
            if each["errors"] or not each["requests"]:
                raise WrongAnswer(f"{each['errors']} of {each['requests']} requests failed")
        return Load(
            sum(each["requests"] for each in found),
            sum(each["requests"] / each["us"] * 1e6 for each in found),
            max(each["p50"] for each in found) / 1e6,
            max(each["p99"] for each in found) / 1e6,
        )

    async def _one(self, target: Target, script: Path, number: int, connections: int, seconds: int) -> dict[str, int]:
        url = f"http://127.0.0.1:{target.port}{target.path}"
        arguments = ("-t1", f"-c{connections}", f"-d{seconds}", "-s", str(script), url, "--", str(number * _NUMBERS))
        child = await asyncio.create_subprocess_exec("wrk", *arguments, stdout=asyncio.subprocess.PIPE)
        output, _ = await child.communicate()
        if child.returncode:
            raise WrongAnswer(f"wrk ended with the status {child.returncode}: {output.decode()}")
        made: dict[str, int] = json.loads(output.splitlines()[-1])
        return made
