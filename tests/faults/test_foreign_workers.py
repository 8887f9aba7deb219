"""Frames and words of the shared page that no honest worker writes, at random: the front believes none of them.

SKERRY_TEST_FRAMES says how many are read in process, SKERRY_TEST_ATTACKS by how many a whole node is attacked, and
SKERRY_TEST_SEED makes others.
"""

import asyncio
import os
import random
import time
from typing import Any

import msgspec
import orjson
import pytest

from control.protocol.manifest import Manifest
from edge_runtime.dispatch import worker_socket
from edge_runtime.dispatch.breaker import Breaker
from edge_runtime.dispatch.outcomes import Answer, whole
from edge_runtime.dispatch.worker_socket import FrameUnfit, IncomingFrames
from edge_runtime.errors import CODES
from edge_runtime.ipc import frames, log_lines, progress_page
from edge_runtime.ipc.zygote_client import ZygoteClient
from tests.guests.build import guest
from tests.support import foreign_frames
from tests.support.deadlines import deadline
from tests.support.edge import node, until

pytestmark = pytest.mark.never_retry

SEED = int(os.environ.get("SKERRY_TEST_SEED", "1"))
FRAMES = int(os.environ.get("SKERRY_TEST_FRAMES", "3000"))
ATTACKS = int(os.environ.get("SKERRY_TEST_ATTACKS", "12"))
OWN = (
    b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"skerry-release", b"date",
    b"x-request-id", b"status",
)  # fmt: skip
MANIFEST = Manifest(response_limit=250)


class Sock:
    """Gives what was sent."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def recv_into(self, room: memoryview) -> int:
        got = min(len(room), len(self._data))
        room[:got], self._data = self._data[:got], self._data[got:]
        return got


def judge(kind: int, head: bytes, body: Any, method: str) -> None:
    """Read a frame as a link does, and look at what is believed."""
    if kind == frames.DENIED:
        assert all(1 <= times <= 2**32 for times in worker_socket.denials(whole(body)).values())
    elif kind == frames.TIMES:
        worker_socket.times(whole(body))
    elif kind == frames.LOADED:
        worker_socket.check_order(frames.RELEASE, kind, whole(body))
        assert all(failure.code in CODES for failure in worker_socket.loaded(whole(body)).failures)
    elif kind == frames.FAILED:
        assert frames.decode_failure(whole(body)).code in CODES
    elif kind not in worker_socket.MEANWHILE:
        outcome, fault = worker_socket.outcome(kind, head, body, 1, MANIFEST, method)
        assert 200 <= outcome.status <= 599
        if fault is not None:
            assert fault.code in CODES
        elif isinstance(outcome, Answer):
            *lines, end = outcome.head.split(b"\r\n")
            assert end == b""
            for line in lines:
                name, colon, value = line.partition(b":")
                assert name
                assert colon
                assert not name.lower().startswith(OWN) or name.lower() not in OWN
                assert name.lower() != b"content-length" or (method == "HEAD" and not body)
                assert not set(name + value) & set(b"\r\n\0")
            assert len(whole(outcome.body)) <= 250


@pytest.mark.timeout(60 + FRAMES // 500)
def test_no_frame_is_believed_that_no_worker_sends() -> None:
    source, incoming, read = random.Random(SEED), IncomingFrames(), 0
    for number in range(FRAMES):
        data = foreign_frames.data(source, 7)
        try:
            for _, kind, head, body in incoming.receive(Sock(data)) or ():  # type: ignore[arg-type]
                judge(kind, head, body, source.choice(("GET", "HEAD")))
                read += 1
            whole_frames = incoming.unfit is None and not incoming._have and not incoming._missing
        except FrameUnfit:
            whole_frames = False
        except BaseException:
            print(f"SKERRY_TEST_SEED={SEED}: read {number}: {data[:500]!r}")
            raise
        if not whole_frames:
            incoming = IncomingFrames()
    assert read > FRAMES // 4


def test_no_word_of_a_page_is_believed_that_cannot_be() -> None:
    source, opened = random.Random(SEED), progress_page.open_page(progress_page.create())
    for number in range(FRAMES):
        for place, word in enumerate(foreign_frames.words(source, 7, time.monotonic_ns())):
            opened[place] = word
        opened[progress_page.LOG_AT // 8] = source.choice(foreign_frames.WORDS)
        since = time.monotonic() - 1
        seen = progress_page.read(opened, 0, since)
        now = time.monotonic_ns()
        assert 0 <= seen.started_ns <= now, f"SKERRY_TEST_SEED={SEED}: read {number}: {seen}"
        assert 0 <= seen.waited_ns <= now - seen.started_ns
        assert 0 <= seen.since_ns <= now
        assert seen.state <= progress_page.SENT
        assert len(progress_page.log(opened, 0)) <= progress_page.LOG_BYTES + 2 * log_lines.LONGEST


@pytest.mark.timeout(60 + ATTACKS)
async def test_a_node_whose_workers_are_in_the_hands_of_others_serves_everybody_else(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ZygoteClient, "PROGRAM", "tests.support.hostile_workers")
    async with node(tmp_path / "state", workers=3) as edge:
        limited = {"time_limit_ms": 100, "sql": "write"}
        await edge.release({"echo": guest("echo"), "evil": (guest("echo"), limited)})
        over, answered, lost = False, 0, 0

        async def others() -> None:
            nonlocal answered, lost
            while not over:
                async with deadline(60):
                    status, _, body = await edge.call("echo", b"well")
                if status == 200:
                    assert body == b"well"
                    answered += 1
                else:
                    # A worker may answer, be given this call, say that it runs, and end or stay: that is told.
                    assert orjson.loads(body)["code"] in ("worker_crashed", "time_limit")
                    lost += 1
                await asyncio.sleep(0.002)

        async with asyncio.TaskGroup() as group:
            group.create_task(others())
            for number in range(ATTACKS):
                edge.front.pool.functions["evil"].breaker = Breaker()
                seed = SEED * 1_000_000 + number
                async with deadline(60):
                    status, headers, body = await edge.call("evil", msgspec.json.encode(["at_random", seed]))
                if headers.get("content-type") == "application/problem+json":
                    assert orjson.loads(body)["code"] in CODES, f"at_random {seed}"
                assert 200 <= status <= 599, f"at_random {seed}"
            # On a busy machine a call may take as long as an attack.
            await until(lambda: len(edge.workers()) == 3 and answered > ATTACKS)
            over = True
        assert lost <= 1 + ATTACKS // 100
        for page in ("status", "metrics"):
            async with edge.http.get(f"/_skerry/{page}") as got:
                assert got.status == 200
        assert set(edge.front.pool.tallies["evil"].outcomes) <= {*CODES, "ok", "answer_5xx"}
