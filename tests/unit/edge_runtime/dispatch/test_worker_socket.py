"""What comes from a worker's socket: every frame comes out whole and once, however it is cut."""

import socket

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_runtime.dispatch.outcomes import whole
from edge_runtime.dispatch.worker_socket import AT_ONCE, BUFFER, LONGEST, FrameUnfit, IncomingFrames
from edge_runtime.ipc import frames

SIZES = st.one_of(st.integers(0, 300), st.sampled_from([BUFFER + n for n in range(-40, 40)]), st.just(3 * BUFFER + 7))
Sent = tuple[int, bytes, bytes]
"""Kind, head and body."""


class Sock:
    """Gives what was sent in pieces of these sizes, as far as there is room for them."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self.left = memoryview(data)
        # Much that comes byte by byte takes seconds, and shows what little does.
        self.sizes = [*sizes[:-1], max(sizes[-1], len(data) // 1000)]

    def recv_into(self, room: memoryview) -> int:
        assert room
        got = min(len(room), len(self.left), self.sizes[0] if len(self.sizes) == 1 else self.sizes.pop(0))
        room[:got], self.left = self.left[:got], self.left[got:]
        return got


def received(data: bytes, sizes: list[int]) -> list[tuple[int, int, bytes, bytes]]:
    incoming, sock, found = IncomingFrames(), Sock(data, sizes), list[tuple[int, int, bytes, bytes]]()
    while (came := incoming.receive(sock)) is not None:  # type: ignore[arg-type]
        for request, kind, head, body in came:
            if not isinstance(body, bytes):
                assert kind >= frames.FIRST_STATUS
                assert all(0 < len(piece) <= BUFFER for piece in body)
            found.append((request, kind, head, whole(body)))
    return found


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.sampled_from([frames.LOG, 200]), st.binary(max_size=40), SIZES), max_size=5),
    st.lists(st.integers(1, 2 * BUFFER), min_size=1, max_size=20),
)
@example([(200, b"", BUFFER)], [BUFFER])
@example([(200, b"h" * 40, BUFFER), (200, b"", 3)], [12, 40, BUFFER])
def test_frames_come_out_as_they_were_sent(sent: list[tuple[int, bytes, int]], sizes: list[int]) -> None:
    made = [
        # Only an answer has a head.
        (number, kind, head if kind >= frames.FIRST_STATUS else b"", bytes([number + 1]) * size)
        for number, (kind, head, size) in enumerate(sent, start=1)
    ]
    data = b"".join(frames.pack(request, kind, head, body) for request, kind, head, body in made)
    assert received(data, sizes) == made


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(frames.HEADER.pack(LONGEST + 1, 1, 200, 0), id="longer than any"),
        # The rest of the head would be whatever the buffer has there.
        pytest.param(frames.HEADER.pack(4, 1, 200, 5) + b"abcd", id="a head beyond its end"),
        pytest.param(frames.pack(1, 200) + frames.pack(1, 199), id="an unknown kind"),
        pytest.param(frames.pack(1, frames.LOG) * (AT_ONCE + 1), id="too many at once"),
    ],
)
def test_a_frame_that_no_honest_worker_sends_is_refused(sent: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        # What was said before it counts: it may be the answer to another function's call.
        answer = frames.pack(1, 204)
        theirs.send(answer + sent)
        incoming = IncomingFrames()
        (first, *_) = incoming.receive(ours) or ()
        assert first[:2] == (1, 204)
        assert isinstance(incoming.unfit, FrameUnfit)
