"""Any function of WASI with any arguments: an errno, nothing outside the guest's memory; what hostile calls cost."""

import struct
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.guests.abi.imports import WASI_SIGNATURES
from edge_runtime.guests.wasi import BADF, INVAL, NOTCAPABLE, NOTSUP, SUCCESS, Exit, OutputTooLarge, Strings
from tests.support.draws import examples
from tests.unit.edge_runtime.guests.test_wasi import SIZE, Bytes, begun, subscription

LAST_ERRNO = 76
EDGES = [0, 1, 2, 3, 4, 8, 16, 1023, 1024, 1025, SIZE - 8, SIZE - 1, SIZE, 2**31 - 1, 2**31, 2**32 - 8, 2**32 - 1]


def number(letter: str) -> st.SearchStrategy[int]:
    bits = 64 if letter == "I" else 32
    return st.sampled_from([*EDGES, 2**bits - 1]) | st.integers(0, 2**bits - 1)


calls = st.sampled_from(sorted(WASI_SIGNATURES)).flatmap(
    lambda name: st.tuples(st.just(name), st.tuples(*[number(letter) for letter in WASI_SIGNATURES[name][0]]))
)
content = st.binary(max_size=400) | st.lists(
    st.builds(
        lambda user, tag, clock, timeout, flags: struct.pack("<QB7xI4xQQH6x", user, tag, clock, timeout, 0, flags),
        st.integers(0, 9),
        st.integers(0, 4),
        st.integers(0, 5),
        st.sampled_from([0, 1, 10**9, 2**63, 2**64 - 1]),
        st.integers(0, 3),
    ),
    max_size=8,
).map(b"".join)


@given(st.lists(calls, max_size=6), content)
@settings(max_examples=examples(100))
def test_any_calls_with_any_arguments(asked: list[tuple[str, tuple[int, ...]]], held: bytes) -> None:
    slept: list[float] = []
    memory = Bytes()
    memory.buffer[: len(held)] = held
    started = begun(memory, args=["a"], environ=["A=1"], stdin=b"input", stdout=10_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", slept.append)
        for name, arguments in asked:
            try:
                answer = getattr(started, name)(*arguments)
            except (IndexError, Exit, OutputTooLarge):
                # EFAULT to the guest; the guest's end; the end of its call.
                continue
            assert 0 <= answer <= LAST_ERRNO, name
    assert len(memory.buffer) == SIZE
    assert len(started.stdout) <= 10_000
    # What the platform's own sleep takes.
    assert all(0 <= seconds <= 3600 for seconds in slept)


@pytest.mark.parametrize("timeout", [2**63, 2**64 - 1])
@pytest.mark.parametrize("flags", [0, 1])
def test_a_sleep_of_centuries_is_one_of_an_hour(monkeypatch: pytest.MonkeyPatch, timeout: int, flags: int) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    memory = Bytes()
    memory.write(0, subscription(1, 0, timeout=timeout, flags=flags))
    assert begun(memory).poll_oneoff(0, 1000, 1, 2000) == SUCCESS
    assert slept == [3600.0]


@pytest.mark.parametrize(("clock", "flags"), [(4, 0), (9, 0), (1, 2)])
def test_poll_refuses_a_clock_that_does_not_exist(clock: int, flags: int) -> None:
    memory = Bytes()
    memory.write(0, subscription(1, 1, clock=0) + subscription(2, 0, clock=clock, timeout=1, flags=flags))
    assert begun(memory).poll_oneoff(0, 1000, 2, 2000) == INVAL
    assert memory.u32(2000) == 0


def test_poll_refuses_a_subscription_of_no_kind() -> None:
    memory = Bytes()
    memory.write(0, subscription(1, 3))
    assert begun(memory).poll_oneoff(0, 1000, 1, 2000) == INVAL


def test_closing_what_is_not_open_costs_nothing() -> None:
    started = begun(Bytes())
    tracemalloc.start()
    try:
        for fd in range(3, 50_000):
            assert started.fd_close(fd) == BADF
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_rights_stay_as_they_are() -> None:
    memory = Bytes()
    started = begun(memory)
    for fd in range(3):
        assert started.fd_fdstat_get(fd, 0) == SUCCESS
        base, inheriting = struct.unpack_from("<QQ", memory.buffer, 8)
        assert base == inheriting == (64 if fd else 2)
        assert started.fd_fdstat_set_rights(fd, base, base) == SUCCESS
        assert started.fd_fdstat_set_rights(fd, 0, 0) == NOTSUP
        assert started.fd_fdstat_set_rights(fd, base, 0) == NOTSUP
        assert started.fd_fdstat_set_rights(fd, base | 1 << 40, base) == NOTCAPABLE
        assert started.fd_fdstat_set_rights(fd, base, 1) == NOTCAPABLE
        assert started.fd_fdstat_get(fd, 0) == SUCCESS
        assert struct.unpack_from("<QQ", memory.buffer, 8) == (base, base)
    assert started.fd_fdstat_set_rights(3, 0, 0) == BADF


def test_a_descriptor_that_is_renumbered_takes_its_stream_along() -> None:
    memory = Bytes()
    memory.write(100, b"text")
    memory.write(0, struct.pack("<II", 100, 4))
    started = begun(memory)
    assert [started.fd_renumber(*fds) for fds in ((1, 1), (1, 3), (3, 1), (2, 1))] == [SUCCESS, BADF, BADF, SUCCESS]
    assert [started.fd_write(fd, 0, 1, 50) for fd in range(3)] == [BADF, SUCCESS, BADF]
    assert (started.stdout, started.stderr) == (b"", b"text")
    assert started.fd_renumber(1, 2) == BADF
    started.begin(Strings(()), Strings(()), b"", 100, 100)
    assert [started.fd_write(fd, 0, 1, 50) for fd in range(3)] == [BADF, SUCCESS, SUCCESS]


def test_flags_of_streams() -> None:
    started = begun(Bytes())
    assert [started.fd_fdstat_set_flags(*asked) for asked in ((0, 0), (1, 4), (3, 0))] == [SUCCESS, NOTSUP, BADF]
