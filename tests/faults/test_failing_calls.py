"""System calls of a node fail one after the other: each call of an operation, with each error that it may have.

For every operation (a writing call, a release, a start, a download, a renewed credential, a log line) the calls of an
undisturbed run are counted, and then the n-th of them fails, for every n. After each: no answer lied (what was
acknowledged is there, what was said to be undone isn't), and the node serves again, or has said on one line why it
can't. The node runs what is built, its workers' loop too. SKERRY_TEST_CALLS says how many failures of each operation
there are (at a seeded share of the calls); 0: all.
"""

import asyncio
import contextlib
import errno
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from uuid import uuid4

import aiohttp
import msgspec
import pytest

from control.local.pki import Pki
from edge_runtime.built import parts
from edge_runtime.sync import identity
from tests.guests.build import guest
from tests.support.agents import Control, running_control
from tests.support.deadlines import deadline
from tests.support.failing_calls import SHORT, FailingCalls
from tests.support.node_process import LIMIT, NodeProcess

SHARE = int(os.environ.get("SKERRY_TEST_CALLS", "1"))
SEED = int(os.environ.get("SKERRY_TEST_SEED", "1"))
RENEWED = 3.0
"""Seconds after a failed call for a credential that is renewed at once, or not at all."""
DONE = ("200 ", "at target", "started", "renewed")
"""How the outcome of an operation begins that nothing disturbed."""
BACK = 60.0
"""Seconds within which the node serves again once the fault is over: its longest backoff, on a busy machine."""

ERRORS = {
    "open": (errno.EIO, errno.EMFILE, errno.ENOSPC),
    "read": (errno.EIO, SHORT),
    "write": (errno.EIO, errno.ENOSPC, SHORT),
    "pwrite": (errno.EIO, errno.ENOSPC, SHORT),
    "fsync": (errno.EIO, errno.ENOSPC),
    "fdatasync": (errno.EIO, errno.ENOSPC),
    "ftruncate": (errno.EIO, errno.ENOSPC),
    "rename": (errno.EIO, errno.ENOSPC),
    "mmap": (errno.ENOMEM,),
    "fork": (errno.EAGAIN, errno.ENOMEM),
    "accept": (errno.EMFILE, errno.ECONNABORTED, errno.ENOMEM),
    "socket": (errno.EMFILE, errno.ENOMEM),
}
"""The errors that each call is given."""
WITHOUT_PATH = ("fork", "accept", "socket")


class Node(NodeProcess):
    """A node some of whose system calls fail, and what its answers have promised."""

    def __init__(self, control: Control, folder: Path) -> None:
        self.failing = FailingCalls(folder.with_name("rules"))
        super().__init__(control, folder, self.failing.environment)
        self.rows: set[str] = set()
        self.undone: set[str] = set()

    async def write(self) -> str:
        """Make a writing call; return its outcome in words, and remember what it promised."""
        row = str(uuid4())
        body = msgspec.json.encode({"sql": "INSERT INTO written VALUES (?)", "params": [row]})
        try:
            async with self.http.post("/functions/sql", data=body) as answer:
                said = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            return f"no answer: {error!r}"
        if answer.status == 200:
            # The statement may have failed, and the function has told so.
            (self.undone if b'"error"' in said else self.rows).add(row)
        elif msgspec.json.decode(said)["code"] != "commit_unknown":
            self.undone.add(row)
        return f"{answer.status} {said[:200]!r}"

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Make the calls of the block on connections of their own."""
        kept = self.http
        async with aiohttp.ClientSession(kept._base_url, timeout=kept.timeout) as self.http:
            yield
        self.http = kept

    async def serves(self) -> str:
        """Wait until writing calls succeed and both numbers of the release agree; return what is wrong otherwise."""
        last = ""
        try:
            async with asyncio.timeout(BACK):
                while True:
                    if self.ended is not None:
                        return f"the program ended with status {self.ended}: {self.last_line()}"
                    async with self.connected():
                        last = await self.write()
                    if last.startswith("200") and "error" not in last:
                        return ""
                    await asyncio.sleep(0.02)
        except TimeoutError:
            return f"it serves no more after {BACK:g} s: {last}"

    async def lies(self) -> list[str]:
        """Return what is in the database and shouldn't be, or isn't and should; a line each."""
        async with self.http.post("/functions/sql", data=b'{"sql": "SELECT id FROM written"}') as answer:
            said = await answer.read()
        assert answer.status == 200, said
        there = {row[0] for row in msgspec.json.decode(said)["rows"]}
        found = []
        if lost := self.rows - there:
            found.append(f"{len(lost)} acknowledged rows are lost")
            self.rows &= there
        if wrong := self.undone & there:
            found.append(f"{len(wrong)} rows are there whose calls had said that nothing was changed")
            self.undone -= there
        async with self.http.get("/functions/version") as answer:
            said = await answer.read()
        if answer.status != 200 or (both := msgspec.json.decode(said))["schema"]["rows"] != [[both["version"]]]:
            found.append(f"code and schema are of two releases: {answer.status} {said!r}")
        return found

    def last_line(self) -> str:
        lines = self.log.read_text().splitlines()
        return lines[-1] if lines else "(it said nothing)"


@pytest.fixture
async def node(database_url: str, bucket_url: str, pki: Pki, tmp_path: Path) -> AsyncIterator[Node]:
    """A node at release 1 that serves."""
    folder = tmp_path / "node"
    folder.mkdir()
    # A new credential has taken its predecessor's place when a poll that was held is answered.
    async with running_control(database_url, bucket_url, pki, hold=1.0) as control:
        made = Node(control, folder)
        await made.join()
        made.functions["sql"] = await control.push("sql", guest("sql"), {"sql": "write"})
        made.functions["raw"] = await control.push("raw", guest("raw"), {"sql": "write"})
        assert await made.start(), made.log.read_text()
        async with made.http.get("/_skerry/status") as answer:
            runs = {name: part["compiled"] for name, part in (await answer.json())["built"].items()}
        assert runs == {name: part["compiled"] for name, part in parts.document().items()}
        try:
            await made.at_release(await made.release())
            yield made
        finally:
            made.failing.clear()
            await made.end(kill=True)


Operation = Callable[[Node], Awaitable[str]]


async def write(node: Node) -> str:
    """A call that writes, on a connection of its own."""
    async with node.connected():
        return await node.write()


async def log(node: Node) -> str:
    """A call whose function logs a line."""
    try:
        async with node.http.post("/functions/raw?log=1", data=b"Content-Type: text/plain\n\nlogged") as answer:
            return f"{answer.status} {(await answer.read())[:200]!r}"
    except (aiohttp.ClientError, TimeoutError) as error:
        return f"no answer: {error!r}"


async def release(node: Node) -> str:
    """A release's application, with the download of its artifact."""
    number = await node.release()
    async with deadline(LIMIT):
        while True:
            seen = await node.control.node()
            if seen["at_target"] and seen["schema_version"] == number:
                return "at target"
            if node.ended is not None:
                return "ended"
            if seen["error"]:
                return str(seen["error"])
            await asyncio.sleep(0.02)


async def restart(node: Node) -> str:
    """A start, behind an end in order, up to the first call that is answered."""
    await node.end()
    return (await node.serves() or "started") if await node.start() else "not started"


async def renewal(node: Node) -> str:
    """A start at which the node gets another credential, and uses it."""
    await node.end()
    before = identity.read(node.state)
    if not await node.start(rotate_days=0):
        return "not started"
    loop = asyncio.get_running_loop()
    until = loop.time() + LIMIT
    while loop.time() < until:
        if (now := identity.read(node.state)).credential != before.credential and not now.next_credential:
            return "renewed"
        if node.failing.concerned:
            # Where it fails, the node tries again after an hour.
            until = min(until, loop.time() + RENEWED)
        await asyncio.sleep(0.02)
    return "not renewed"


OPERATIONS: dict[str, tuple[Operation, str, tuple[str, ...]]] = {
    "write": (write, "edge/", ("open", "read", "write", "pwrite", "fsync", "fdatasync", "ftruncate", "mmap")),
    "write's connection": (write, "", ("accept", "socket", "fork")),
    "log": (log, "node.log", ("write",)),
    "release": (release, "edge/", tuple(call for call in ERRORS if call not in WITHOUT_PATH)),
    "release's processes": (release, "", ("fork", "socket")),
    "download": (release, "edge/artifacts/", ("open", "read", "write", "fsync", "ftruncate", "rename")),
    "start": (restart, "edge/", tuple(call for call in ERRORS if call not in WITHOUT_PATH)),
    "start's processes": (restart, "", WITHOUT_PATH),
    "renewal": (renewal, "edge/", ("open", "read", "write", "fsync", "rename")),
}
"""What is done, the files that its failing calls are on, and the calls."""


async def undisturbed(node: Node, operation: Operation, path: str, calls: tuple[str, ...]) -> dict[str, int]:
    """Count the operation's calls."""
    rules = {call: node.failing.fail(call, path, 0, times=0) for call in calls}
    outcome = await operation(node)
    assert outcome.startswith(DONE), outcome
    counts = {call: rule.seen for call, rule in rules.items()}
    node.failing.clear()
    return counts


async def back(node: Node, what: str, operation: Operation) -> list[str]:
    """See that the node serves again after a failure, is at its target, and didn't lie."""
    found = []
    if node.ended is not None:
        said = node.last_line()
        if operation not in (restart, renewal):
            found.append(f"{what}: the program ended: {said}")
        elif "Traceback" in said or not said.strip():
            found.append(f"{what}: the program ended and didn't say why on one line: {said}")
        await node.end()
        if not await node.start():
            return [*found, f"{what}: it doesn't start again: {node.last_line()}"]
    if wrong := await node.serves():
        return [*found, f"{what}: {wrong}"]
    seen = await node.control.node()
    if seen["schema_version"] != node.released:
        # What failed is tried again at an operator's word.
        try:
            await node.control.call("POST", "nodes/edge-1/retry")
            await node.at_release(node.released)
        except AssertionError as error:
            return [*found, f"{what}: it doesn't come to its target: {error}"]
    return found + [f"{what}: {lie}" for lie in await node.lies()]


TOGETHER = [[*OPERATIONS]] if SHARE == 1 else [[name] for name in OPERATIONS]
"""The operations that one node goes through: all of them where each fails only once."""


@pytest.mark.timeout(1500 if SHARE else 36_000)
@pytest.mark.parametrize("names", TOGETHER, ids=lambda names: names[0] if len(names) == 1 else "once")
async def test_each_call_fails(node: Node, names: list[str]) -> None:
    failures = [failure for name in names for failure in await each_fails(node, name)]
    # And what the file says after the last start.
    await restart(node)
    failures += [f"after another start: {lie}" for lie in await node.lies()]
    assert not failures, "\n".join(failures)


async def each_fails(node: Node, name: str) -> list[str]:
    """Have the calls of an operation fail, one after the other; return what was wrong then."""
    operation, path, calls = OPERATIONS[name]
    counts = await undisturbed(node, operation, path, calls)
    points = [(call, at, error) for call in calls for at in range(counts[call]) for error in ERRORS[call]]
    assert points, "the operation makes none of these calls"
    if SHARE:
        random.Random(f"{SEED} {name}").shuffle(points)
    failures: list[str] = []
    reached = 0
    for call, at, error in points:
        if SHARE and reached == SHARE:
            break
        rule = node.failing.fail(call, path, error, first=at)
        outcome = await operation(node)
        node.failing.clear()
        reached += bool(rule.concerned)
        shown = "SHORT" if error == SHORT else errno.errorcode[error]
        came = "failed" if rule.concerned else "not reached"
        what = f"{name}: {call} {at} of {counts[call]}, {shown}, {came}, {outcome}"
        failures += await back(node, what, operation)
        if node.ended is not None:
            pytest.fail("\n".join([*failures, node.log.read_text()[-3000:]]))
    assert reached, "none of the calls that were to fail was made"
    return failures
