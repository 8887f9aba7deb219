"""WASI preview 1 over a memory that is a bytearray: what each function writes and answers."""

import struct
import time
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_runtime.guests.abi.imports import WASI_SIGNATURES
from edge_runtime.guests.wasi import BADF, INVAL, NOTDIR, NOTSOCK, SPIPE, SUCCESS, Exit, OutputTooLarge, Strings, Wasi
from edge_runtime.ipc import log_lines

SIZE = 65536


class Bytes:
    """A guest's memory without a guest."""

    def __init__(self):
        self.buffer = bytearray(SIZE)
        self.size = SIZE

    def need(self, end):
        if end > self.size:
            raise IndexError(end)

    def read(self, start, length):
        self.need(start + length)
        return bytes(self.buffer[start : start + length])

    def write(self, start, data):
        self.need(start + len(data))
        self.buffer[start : start + len(data)] = data

    def u32(self, at):
        return struct.unpack_from("<I", self.buffer, at)[0]

    def u64(self, at):
        return struct.unpack_from("<Q", self.buffer, at)[0]


@pytest.fixture
def memory():
    return Bytes()


def begun(memory, *, args=(), environ=(), stdin=b"", stdout=10_000, stderr=100):
    started = Wasi(memory)
    started.begin(Strings(args), Strings(environ), stdin, stdout, stderr)
    return started


def vectors(memory, at, *pieces):
    """iovecs for these (start, length) pairs."""
    for position, piece in enumerate(pieces):
        struct.pack_into("<II", memory.buffer, at + 8 * position, *piece)


texts = st.lists(st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=20), max_size=10)


@given(texts)
def test_arguments_come_back_as_they_were(given_texts):
    memory = Bytes()
    started = begun(memory, args=given_texts)
    assert started.args_sizes_get(0, 4) == SUCCESS
    count, size = memory.u32(0), memory.u32(4)
    assert (count, size) == (len(given_texts), sum(len(text) + 1 for text in given_texts))
    assert started.args_get(1000, 4096) == SUCCESS
    starts = [memory.u32(1000 + 4 * position) for position in range(count)]
    read = [memory.buffer[start : memory.buffer.index(0, start)].decode("latin-1") for start in starts]
    assert read == given_texts
    assert memory.buffer[4096 + size] == 0


def test_environment_is_apart_from_arguments(memory):
    started = begun(memory, args=["a"], environ=["A=1", "BB=22"])
    assert started.environ_sizes_get(0, 4) == SUCCESS
    assert (memory.u32(0), memory.u32(4)) == (2, 10)
    assert started.environ_get(0, 100) == SUCCESS
    assert memory.read(100, 10) == b"A=1\0BB=22\0"
    assert memory.u32(4) == 104


@given(st.binary(max_size=400), st.lists(st.integers(0, 50), max_size=8))
def test_stdin_is_read_in_order_and_once(stdin, lengths):
    memory = Bytes()
    started = begun(memory, stdin=stdin)
    got = b""
    for _ in range(20):
        vectors(memory, 0, *[(1000 + 100 * position, length) for position, length in enumerate(lengths)])
        assert started.fd_read(0, 0, len(lengths), 900) == SUCCESS
        size, piece = memory.u32(900), b""
        for position, length in enumerate(lengths):
            piece += memory.read(1000 + 100 * position, length)[: max(0, size - len(piece))]
        assert len(piece) == size
        got += piece
    assert got == stdin[: 20 * sum(lengths)]


def test_writes_go_to_stdout_and_stderr(memory):
    started = begun(memory)
    memory.write(100, b"onetwothree")
    vectors(memory, 0, (100, 3), (0, 0), (103, 3))
    assert started.fd_write(1, 0, 3, 50) == SUCCESS
    assert memory.u32(50) == 6
    assert started.fd_write(2, 0, 1, 50) == SUCCESS
    assert (started.stdout, started.stderr) == (b"onetwo", b"one")


def test_stderr_is_cut_and_goes_on(memory):
    started = begun(memory, stderr=5)
    vectors(memory, 0, (100, 4))
    for _ in range(3):
        assert started.fd_write(2, 0, 1, 50) == SUCCESS
        assert memory.u32(50) == 4
    assert started.stderr == log_lines.with_loss(bytes(5), 7)


def test_stdout_has_a_limit_that_is_exact(memory):
    started = begun(memory, stdout=8)
    vectors(memory, 0, (100, 8))
    assert started.fd_write(1, 0, 1, 50) == SUCCESS
    vectors(memory, 0, (100, 1))
    with pytest.raises(OutputTooLarge):
        started.fd_write(1, 0, 1, 50)


def test_a_vector_written_over_and_over_costs_no_more_than_the_limit(memory):
    started = begun(memory, stdout=3 * SIZE)
    vectors(memory, 0, *[(0, SIZE)] * 1024)
    with pytest.raises(OutputTooLarge):
        started.fd_write(1, 0, 1024, 0)
    assert len(started.stdout) <= 3 * SIZE


def test_what_is_dropped_of_stderr_is_not_read(memory):
    """1,024 vectors over the whole memory would be gigabytes, of which 100 bytes are kept."""
    started = begun(memory)
    vectors(memory, 0, *[(0, SIZE)] * 1024)
    tracemalloc.start()
    try:
        assert started.fd_write(2, 0, 1024, SIZE - 4) == SUCCESS
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert memory.u32(SIZE - 4) == 1024 * SIZE
    kept, told = log_lines.without_loss(started.stderr)
    assert len(kept) == 100
    assert b"%d bytes" % (1024 * SIZE - 100) in told


def test_small_pieces_cost_little_more_than_their_bytes(memory):
    started = begun(memory, stdout=1_000_000)
    vectors(memory, 0, *[(40_000, 2)] * 1000)
    tracemalloc.start()
    try:
        for _ in range(30):
            assert started.fd_write(1, 0, 1000, 50_000) == SUCCESS
        assert tracemalloc.get_traced_memory()[0] < 150_000
    finally:
        tracemalloc.stop()
    assert len(started.stdout) == 60_000


@pytest.mark.parametrize("fd", [0, 3, 0xFFFFFFFF])
def test_only_stdout_and_stderr_are_written(memory, fd):
    assert begun(memory).fd_write(fd, 0, 0, 0) == BADF


@pytest.mark.parametrize("fd", [1, 2, 3])
def test_only_stdin_is_read(memory, fd):
    assert begun(memory, stdin=b"x").fd_read(fd, 0, 0, 0) == BADF


def test_too_many_vectors_are_refused(memory):
    assert begun(memory).fd_write(1, 0, 1025, 0) == INVAL
    assert begun(memory).fd_read(0, 0, 1025, 0) == INVAL


def test_a_closed_stream_is_closed(memory):
    started = begun(memory, stdin=b"x")
    for fd in (0, 1):
        assert started.fd_close(fd) == SUCCESS
        assert started.fd_close(fd) == BADF
    assert started.fd_write(1, 0, 0, 0) == BADF
    assert started.fd_read(0, 0, 0, 0) == BADF
    assert started.fd_fdstat_get(0, 0) == BADF
    assert started.fd_write(2, 0, 0, 0) == SUCCESS
    started.begin(Strings(()), Strings(()), b"", 0, 0)
    assert started.fd_write(1, 0, 0, 0) == SUCCESS


OUTSIDE = [
    ("args_sizes_get", (SIZE - 3, 0)),
    ("args_get", (SIZE, 0)),
    ("args_get", (0, SIZE)),
    ("environ_get", (0xFFFFFFFF, 0)),
    ("clock_time_get", (0, 0, SIZE - 7)),
    ("clock_res_get", (0, SIZE - 7)),
    ("random_get", (SIZE - 1, 2)),
    ("random_get", (0, 0xFFFFFFFF)),
    ("fd_read", (0, SIZE - 7, 1, 0)),
    ("fd_read", (0, 0, 1, SIZE - 3)),
    ("fd_write", (1, 0xFFFFFFF8, 1, 0)),
    ("fd_write", (1, 0, 0, SIZE)),
    ("fd_fdstat_get", (0, SIZE - 23)),
    ("fd_filestat_get", (1, SIZE - 63)),
    ("poll_oneoff", (SIZE, 0, 1, 0)),
    ("poll_oneoff", (0, SIZE - 1, 1, 0)),
    ("poll_oneoff", (0, 0, 1, SIZE - 3)),
]


@pytest.mark.parametrize(("name", "arguments"), OUTSIDE, ids=[f"{n}{a}" for n, a in OUTSIDE])
def test_an_address_outside_the_memory_is_told_and_nothing_read(memory, name, arguments):
    started = begun(memory, args=["a"], environ=["A=1"], stdin=b"x")
    with pytest.raises(IndexError):
        getattr(started, name)(*arguments)
    assert started.stdout == b""


@example("fd_write", SIZE + 1, 0)
@example("fd_read", SIZE + 1, 0)
@given(st.sampled_from(["fd_read", "fd_write"]), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_vectors_that_point_outside_are_never_followed(name, start, length):
    memory = Bytes()
    started = begun(memory, stdin=b"12345678", stdout=2**33)
    vectors(memory, 0, (start, length))
    before = bytes(memory.buffer)
    touched = length if name == "fd_write" else min(length, 8)
    if start + touched > SIZE and touched:
        with pytest.raises(IndexError):
            getattr(started, name)(int(name == "fd_write"), 0, 1, 16)
        assert bytes(memory.buffer) == before
    else:
        assert getattr(started, name)(int(name == "fd_write"), 0, 1, 16) == SUCCESS


def test_what_is_written_before_a_vector_that_points_outside_is_told(memory):
    started = begun(memory)
    memory.write(100, b"onetwo")
    vectors(memory, 0, (100, 3), (SIZE - 1, 2), (103, 3))
    assert started.fd_write(1, 0, 3, 50) == SUCCESS
    assert (memory.u32(50), started.stdout) == (3, b"one")


def test_clocks(memory):
    started = begun(memory)
    assert started.clock_time_get(0, 0, 0) == SUCCESS
    assert abs(memory.u64(0) - time.time_ns()) < 60e9
    readings = []
    for _ in range(3):
        assert started.clock_time_get(1, 0, 0) == SUCCESS
        readings.append(memory.u64(0))
    assert readings == sorted(readings)
    # From the call's begin: not the host's uptime.
    assert 0 < readings[0] < 60e9
    assert started.clock_time_get(4, 0, 0) == INVAL
    assert started.clock_res_get(1, 0) == SUCCESS
    assert memory.u64(0) == 1


def test_random_bytes_fill_the_range_and_no_more(memory):
    started = begun(memory)
    assert started.random_get(100, 3000) == SUCCESS
    first = memory.read(100, 3000)
    assert first.count(0) < 100
    assert memory.read(0, 100) == bytes(100)
    assert memory.read(3100, 100) == bytes(100)
    assert started.random_get(100, 3000) == SUCCESS
    assert memory.read(100, 3000) != first


@pytest.mark.parametrize(
    ("given", "code"), [(0, 0), (7, 7), (2**31 - 1, 2**31 - 1), (2**32 - 1, -1), (2**31, -(2**31))]
)
def test_proc_exit_ends(memory, given, code):
    with pytest.raises(Exit) as ended:
        begun(memory).proc_exit(given)
    assert ended.value.code == code


def subscription(user, tag, *, clock=1, timeout=0, flags=0):
    return struct.pack("<QB7xI4xQQH6x", user, tag, clock, timeout, 0, flags)


def events(memory, at, count):
    return [struct.unpack_from("<QHB5xQH", memory.buffer, at + 32 * position) for position in range(count)]


def test_poll_sleeps_until_the_first_timer(memory):
    started = begun(memory)
    memory.write(0, subscription(7, 0, timeout=20_000_000) + subscription(8, 0, timeout=10_000_000_000))
    before = time.monotonic()
    assert started.poll_oneoff(0, 1000, 2, 2000) == SUCCESS
    assert 0.02 <= time.monotonic() - before < 9
    assert memory.u32(2000) == 1
    assert events(memory, 1000, 1) == [(7, 0, 0, 0, 0)]


def test_poll_with_an_absolute_time_that_has_passed_returns_at_once(memory):
    started = begun(memory)
    memory.write(0, subscription(1, 0, clock=0, timeout=1, flags=1))
    assert started.poll_oneoff(0, 1000, 1, 2000) == SUCCESS
    assert memory.u32(2000) == 1


def test_poll_finds_stdio_ready_and_does_not_sleep(memory):
    started = begun(memory, stdin=b"abc")
    asked = [subscription(1, 0, timeout=3_600_000_000_000), subscription(2, 1, clock=0), subscription(3, 2, clock=1)]
    memory.write(0, b"".join([*asked, subscription(4, 1, clock=9)]))
    assert started.poll_oneoff(0, 1000, 4, 2000) == SUCCESS
    assert memory.u32(2000) == 3
    assert events(memory, 1000, 3) == [(2, 0, 1, 3, 0), (3, 0, 2, 1, 0), (4, BADF, 1, 0, 0)]


def test_poll_of_nothing_or_too_much_is_refused(memory):
    assert begun(memory).poll_oneoff(0, 0, 0, 0) == INVAL
    assert begun(memory).poll_oneoff(0, 0, 1025, 0) == INVAL


NO_FILES = {
    "fd_seek": SPIPE,
    "fd_tell": SPIPE,
    "fd_pread": SPIPE,
    "fd_pwrite": SPIPE,
    "fd_advise": SPIPE,
    "fd_allocate": SPIPE,
    "fd_sync": INVAL,
    "fd_datasync": INVAL,
    "fd_filestat_set_size": INVAL,
    "fd_filestat_set_times": INVAL,
    "fd_readdir": NOTDIR,
    "path_create_directory": NOTDIR,
    "path_filestat_get": NOTDIR,
    "path_filestat_set_times": NOTDIR,
    "path_link": NOTDIR,
    "path_open": NOTDIR,
    "path_readlink": NOTDIR,
    "path_remove_directory": NOTDIR,
    "path_rename": NOTDIR,
    "path_unlink_file": NOTDIR,
    "sock_accept": NOTSOCK,
    "sock_recv": NOTSOCK,
    "sock_send": NOTSOCK,
    "sock_shutdown": NOTSOCK,
    "fd_prestat_get": BADF,
    "fd_prestat_dir_name": NOTDIR,
}


@pytest.mark.parametrize(("name", "errno"), NO_FILES.items())
def test_there_are_no_files_and_sockets(memory, name, errno):
    started = begun(memory)
    rest = [0] * (len(WASI_SIGNATURES[name][0]) - 1)
    assert getattr(started, name)(0, *rest) == errno
    assert getattr(started, name)(3, *rest) == BADF
    assert bytes(memory.buffer) == bytes(SIZE)


def test_path_symlink_has_its_folder_third(memory):
    assert begun(memory).path_symlink(0, 0, 0, 0, 0) == NOTDIR
    assert begun(memory).path_symlink(0, 0, 3, 0, 0) == BADF


def test_no_stream_is_a_terminal(memory):
    for fd in range(3):
        assert begun(memory).fd_fdstat_get(fd, 0) == SUCCESS
        assert memory.buffer[0] != 2, "a character device is a terminal to libc, which then writes line by line"


def test_every_function_of_preview_1_is_there():
    assert len(WASI_SIGNATURES) == 46
    functions = Wasi(Bytes()).functions()
    assert set(functions) == set(WASI_SIGNATURES)
    assert all(callable(function) for _, function in functions.values())
