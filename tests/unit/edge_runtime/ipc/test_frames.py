"""Frames between the front and its children: what goes in comes out, however the bytes arrive."""

import socket
import threading

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.ipc import frames
from edge_runtime.ipc.frame_reader import FrameReader
from tests.support.deadlines import scaled

FRAME = st.tuples(
    st.integers(0, 2**32 - 1),
    st.integers(0, 999),
    st.binary(max_size=300),
    st.one_of(st.binary(max_size=2000), st.integers(60_000, 200_000).map(lambda size: b"z" * size)),
)


@settings(max_examples=60)
@given(st.lists(FRAME, max_size=8), st.integers(1, 70_000))
def test_a_reader_gives_the_frames_that_were_sent(sent: list[tuple[int, int, bytes, bytes]], step: int) -> None:
    ours, theirs = socket.socketpair()
    stream = b"".join(frames.pack(*frame) for frame in sent)
    # Small frames arrive byte by byte; large ones in at most 500 pieces, each of which may cost a change of thread.
    step = max(step, len(stream) // 500)

    def write() -> None:
        with ours:
            for start in range(0, len(stream), step):
                ours.sendall(stream[start : start + step])

    with theirs:
        writer = threading.Thread(target=write)
        writer.start()
        reader = FrameReader(theirs)
        got = [(f.request, f.kind, f.head, f.body) for f in iter(reader.next, None)]
        writer.join()
    assert got == sent


@given(st.integers(1, 40))
def test_a_stream_that_ends_inside_a_frame_is_an_error(cut: int) -> None:
    whole = frames.pack(1, frames.CALL, b"head", b"x" * 40)
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(whole[:cut])
        with pytest.raises(frames.ChildGone):
            FrameReader(theirs).next()


def test_a_reader_tells_when_it_is_quiet_after_a_large_frame() -> None:
    told = threading.Event()
    times: list[None] = []

    def quiet() -> None:
        times.append(None)
        told.set()

    ours, theirs = socket.socketpair()
    with theirs:
        reader = FrameReader(theirs, quiet)
        with ours:
            ours.sendall(frames.pack(1, 100))
            assert reader.next() == frames.Frame(1, 100, b"", b"")
            got: list[int] = []
            reading = threading.Thread(target=lambda: got.extend(f.request for f in iter(reader.next, None)))
            reading.start()
            # The rest of it comes when the reader waits for it.
            frames.send(ours, 2, 100, b"", b"z" * 200_000)
            assert told.wait(scaled(60))
            ours.sendall(frames.pack(3, 100))
        reading.join()
    assert got == [2, 3]
    assert len(times) == 1


def test_each_kind_of_frame_has_a_number_of_its_own() -> None:
    kinds = [
        number
        for name, number in vars(frames).items()
        if name.isupper() and isinstance(number, int) and name != "HEADER_BYTES"
    ]
    assert len(kinds) > 40
    assert len(kinds) == len(set(kinds))


@pytest.mark.parametrize("body", [b"", b"[]", b'{"code":"\xff","message":""}', b'{"a":' + b"[" * 100_000])
def test_an_answer_that_cannot_be_read_is_as_if_the_child_had_ended(body: bytes) -> None:
    decode = msgspec.json.Decoder(frames.ChildFailure).decode
    with pytest.raises(frames.ChildGone, match=f"{len(body)} bytes that can't be read"):
        frames.told(frames.Frame(0, frames.FAILED, b"", body), frames.FAILED, decode)
    with pytest.raises(frames.ChildGone, match="an answer of kind 25, and not 24"):
        frames.told(frames.Frame(0, frames.DONE, b"", body), frames.FAILED, decode)
