"""A worker's side of HTTP, and what it counts of denied uses."""

import socket
import threading
from collections.abc import Iterator

import orjson
import pytest

from edge_runtime.children.worker_services import Denials, FrontHttp
from edge_runtime.guests import http_json
from edge_runtime.ipc import frames, http_messages
from edge_runtime.ipc.frame_reader import FrameReader
from tests.support.deadlines import scaled

ASKED = b'{"url": "https://a.example/", "body": "b"}'


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    front, worker = socket.socketpair()
    with front, worker:
        front.settimeout(scaled(60))
        worker.settimeout(scaled(60))
        yield front, worker


def test_what_comes_while_an_answer_is_waited_for_is_kept_in_its_order(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    front, worker = pair
    reader = FrameReader(worker)
    big = b"x" * 300_000
    answer = http_messages.answer(200, [], big)

    def answering() -> None:
        asked = FrameReader(front).next()
        assert asked is not None
        assert (asked.request, asked.kind, asked.body) == (7, frames.HTTP, http_json.to_front(ASKED)[2])
        frames.send(front, 8, frames.CALL, b"h", big)
        # An answer to another request is none to this one.
        frames.send(front, 9, frames.HTTP_ANSWER, b"", b"other")
        frames.send(front, 7, frames.HTTP_ANSWER, b"", answer)
        frames.send(front, 10, frames.CALL)

    thread = threading.Thread(target=answering)
    thread.start()
    http = FrontHttp(worker, reader, 7)
    assert orjson.loads(http.fetch(ASKED))["body"] == big.decode()
    # What is no request at all doesn't get to the front.
    assert orjson.loads(http.fetch(b"asked"))["error"]["code"] == "http_request_invalid"
    thread.join()
    front.close()
    kept = []
    while (frame := reader.next()) is not None:
        kept.append((frame.request, frame.kind, len(frame.body)))
    assert kept == [(8, frames.CALL, len(big)), (9, frames.HTTP_ANSWER, 5), (10, frames.CALL, 0)]


def test_a_front_that_has_gone_ends_the_wait(pair: tuple[socket.socket, socket.socket]) -> None:
    front, worker = pair
    http = FrontHttp(worker, FrameReader(worker), 7)
    frames.send(front, 8, frames.CALL)
    front.shutdown(socket.SHUT_WR)
    with pytest.raises(frames.ChildGone):
        http.fetch(ASKED)


def test_denials_are_taken_once() -> None:
    denials = Denials()
    assert denials.take(None) == b""
    for _ in range(2):
        assert orjson.loads(denials.sql.execute(b"{}"))["error"]["code"] == "not_granted"
    assert "http" in orjson.loads(denials.http.fetch(b"{}"))["error"]["message"]
    assert orjson.loads(denials.take(None)) == {"sql": 2, "http_host": 1}
    assert denials.take(None) == b""
