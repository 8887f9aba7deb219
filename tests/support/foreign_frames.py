"""Frames as a worker's, and some that no worker sends: real ones with a part changed, cut, or put in twice."""

import json
import random
import struct

import msgspec

from edge_runtime.ipc import call_times, frames, progress_page

TIMES = msgspec.msgpack.encode(call_times.CallTimes(5, [call_times.Step(1, 0, 3, 0)], [], ["SELECT 1"]))
HONEST = (
    (200, b"content-type: text/plain\r\n", b"body"),
    (204, b"", b""),
    (304, b"etag: x\r\nlocation: /\r\n", b""),
    (599, b"a: b\r\nc: \xff\r\n", b"x" * 300),
    (frames.FAULT, b"", b'{"code":"guest_trap","message":"It trapped.","status":502}'),
    (frames.STALE, b"", b""),
    (frames.HELD, b"", b""),
    (frames.LOG, b"", b"one\ntwo"),
    (frames.DENIED, b"", b'{"sql":2,"http_host":1}'),
    (frames.TIMES, b"", TIMES),
    (frames.NEWLY_LOADED, b"", b""),
    (frames.DAMAGED, b"", b""),
    (frames.HTTP, b"", b"\0\0\0\2[]"),
    (frames.LOADED, b"", b'{"failures":[{"code":"function_unloadable","message":"x"}]}'),
    (frames.DONE, b"", b""),
    (frames.READY, b"", b""),
    (frames.FAILED, b"", b'{"code":"database_unfit","message":"x"}'),
)
LINES = (
    b"content-length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"connection: close\r\n", b"\r\n", b"x: y\n",
    b" z\r\n", b"a: \0\r\n", b"skerry-release: 9\r\n", b"\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
)  # fmt: skip
NUMBERS = (0, 1, 2, 11, 12, 255, 256, 65_535, 2**16, 2**27, 2**27 + 1, 2**31 - 1, 2**31, 2**32 - 1)
WORDS = (0, 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
VALUES = ("0", "-1", "18446744073709551615", "1e400", "null", '"x"', "[]", "{}", "[" * 2000, '"\\ud800"', "NaN")


def frame(source: random.Random, request: int) -> bytes:
    """A frame, most often about this request."""
    kind, head, body = source.choice(HONEST)
    about = source.choice((request, request, request, request + 1, 0, progress_page.NONE))
    match source.randrange(9):
        case 0:
            kind = source.choice((*range(128), *range(190, 210), 599, 600, 65_535))
        case 1:
            head += source.choice(LINES)
        case 2:
            body = source.randbytes(source.randrange(64))
        case 3 if body[:1] in b"{[":
            text = body.decode("latin-1")
            known = [str(value) for value in json.loads(text).values()] if body[:1] == b"{" else []
            for value in known[:1]:
                text = text.replace(value, source.choice(VALUES))
            body = text.encode("latin-1")
        case 4 if body:
            at = source.randrange(len(body))
            body = body[:at] + bytes([source.randrange(256)]) + body[at + 1 :]
        case 5:
            length, size = source.choice(NUMBERS), source.choice(NUMBERS) & 0xFFFF
            return struct.pack("<IIHH", length, about, kind, size) + head + body
        case 6:
            made = frames.pack(about, kind, head, body)
            return made[: source.randrange(len(made))]
        case 7:
            return frames.pack(about, kind, head, body) * source.randrange(2, 700)
        case _:
            pass
    return frames.pack(about, kind, head, body)


def data(source: random.Random, request: int) -> bytes:
    """What comes in one read: some frames."""
    return b"".join(frame(source, request) for _ in range(source.randrange(1, 4)))


def words(source: random.Random, request: int, now_ns: int) -> list[int]:
    """What is in the words of a page: three times, and state and request."""
    times = [source.choice((*WORDS, now_ns, now_ns - 10**9, now_ns + 10**9)) for _ in range(3)]
    state = source.choice((*range(9), 2**31, 2**32 - 1))
    return [*times, state << 32 | source.choice((request, request, request + 1, 0, progress_page.NONE))]
