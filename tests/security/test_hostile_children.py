"""What a node makes of a compiler, an applier or another child that is in the hands of others: what it answers is a
claim, and none ends the node, which serves on and does what was to be done with the next one."""

import errno
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from edge_runtime import front
from edge_runtime.aot_cache import BEST
from edge_runtime.errors import SyncFailed
from edge_runtime.ipc import frames
from edge_runtime.ipc.frames import ChildGone
from edge_runtime.ipc.zygote_client import Child
from edge_runtime.release import applier_process, compiler, stored_release
from edge_runtime.release.manager import ReleaseManager
from edge_runtime.release.stored_release import DatabaseUnfit
from tests.guests.build import guest
from tests.support.edge import Node, node, until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("real_compilation")]

ECHO = guest("echo")
SHA256 = hashlib.sha256(ECHO).hexdigest()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def edge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    async with node(tmp_path_factory.mktemp("node"), workers=1) as edge:
        await edge.release({"echo": ECHO})
        yield edge


@pytest.fixture
def lies(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[int, bytes]]:
    """By kind: of which kind and with which body answers come instead."""
    lies: dict[int, tuple[int, bytes]] = {}
    honest = Child._frame

    async def frame(child: Child) -> frames.Frame:
        said = await honest(child)
        kind, body = lies.get(said.kind, (said.kind, said.body))
        return msgspec.structs.replace(said, kind=kind, body=body)

    monkeypatch.setattr(Child, "_frame", frame)
    return lies


async def compiled(edge: Node) -> None:
    await edge.front.compiler.compilations.make(SHA256, 1, background=False)


async def applied(edge: Node) -> None:
    await edge.release({"echo": ECHO, "other": ECHO})
    await edge.release({"echo": ECHO})


async def moved(edge: Node) -> None:
    checkpoints = edge.front.checkpoints
    child = await checkpoints._new()
    try:
        await checkpoints._ask(child, frames.Checkpoint("passive"))
    finally:
        child.close()


async def counted(edge: Node) -> None:
    if await applier_process.count_rows(edge.front.processes) is None:
        raise ChildGone("nobody knows how many")


async def asked(edge: Node) -> None:
    await stored_release.stored(edge.front.processes, edge.front.pool.named)


async def checked(edge: Node) -> None:
    await edge.front.verification.check()


@pytest.mark.parametrize(
    ("kind", "does", "fails", "why"),
    [
        (frames.COMPILED, compiled, SyncFailed, "the compiler died of artifact"),
        (frames.TRIED, applied, SyncFailed, "The process that loaded the function other ended, 3 times"),
        (frames.PREPARED, applied, SyncFailed, "The process that applied release \\d+ died"),
        (frames.CHECKPOINTED, moved, ChildGone, "it gave an answer of"),
        (frames.COUNTED, counted, ChildGone, "nobody knows"),
        (frames.RELEASE_IS, asked, DatabaseUnfit, "it gave an answer of"),
        (frames.VERIFIED, checked, ChildGone, "it gave an answer of"),
    ],
)
async def test_an_answer_that_no_child_gives_is_as_if_it_had_ended(
    edge: Node,
    lies: dict[int, tuple[int, bytes]],
    kind: int,
    does: Callable[[Node], Awaitable[None]],
    fails: type[Exception],
    why: str,
) -> None:
    for said in ((kind, b"{"), (frames.DONE, b"{}")):
        lies[kind] = said
        with pytest.raises(fails, match=why):
            await does(edge)
        assert (await edge.call("echo", b"well"))[2] == b"well"
    lies.clear()
    await does(edge)


async def test_files_that_nobody_asked_of_are_not_damaged(edge: Node, lies: dict[int, tuple[int, bytes]]) -> None:
    lies[frames.VERIFIED] = (frames.VERIFIED, b'{"damaged":["/etc/passwd"]}')
    await edge.front.verification.check()
    assert edge.front.verification.status()["damaged"] == []


async def test_better_code_of_a_compiler_that_lies_is_given_up(
    edge: Node, lies: dict[int, tuple[int, bytes]], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edge.front.compiler, "best", BEST)
    lies[frames.COMPILED] = (frames.COMPILED, b'{"digest":"../other"}')
    edge.front.manager._changed.set()
    await until(lambda: "echo@" in caplog.text and "stays at the quick level: the compiler died" in caplog.text)
    assert (await edge.call("echo", b"well"))[2] == b"well"


async def test_damaged_code_that_cannot_be_removed_ends_no_node(
    edge: Node, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that takes no more writes since it failed."""

    def discard(*_: Any) -> bool:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(compiler, "discard_damaged", discard)
    edge.front.manager.damaged(SHA256)
    await until(lambda: "its damaged code can't be removed: [Errno 30] Read-only file system" in caplog.text)
    assert "Traceback" not in caplog.text
    assert (await edge.call("echo", b"well"))[2] == b"well"


async def test_a_mistake_beside_the_calls_ends_no_node(
    tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    async def watch(_: ReleaseManager) -> None:
        tries.append(1)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(front, "AGAIN", 0.01)
    monkeypatch.setattr(ReleaseManager, "watch", watch)
    async with node(tmp_path_factory.mktemp("node"), workers=1) as edge:
        await until(lambda: len(tries) > 1)
        await edge.release({"echo": ECHO})
        assert (await edge.call("echo", b"well"))[2] == b"well"
    assert "the node made a mistake in what it does beside the calls" in caplog.text
