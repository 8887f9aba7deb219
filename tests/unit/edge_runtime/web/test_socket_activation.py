"""The socket that a service manager hands over is taken where it is one for this process, and suits."""

import os
import socket
from collections.abc import Iterator

import pytest

from edge_runtime.settings import EdgeSettingsError
from edge_runtime.web import socket_activation

OURS = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "skerry-edge.socket"}


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        monkeypatch.setattr(socket_activation, "FIRST", os.dup(made.fileno()))
        yield made


def test_a_socket_is_taken_and_no_child_takes_it_again(listening: socket.socket) -> None:
    environment = {**OURS, "HOME": "/"}
    os.set_inheritable(socket_activation.FIRST, True)
    taken = socket_activation.taken(environment)
    assert taken is not None
    with taken:
        port = listening.getsockname()[1]
        assert socket_activation.address(taken) == f"127.0.0.1:{port}"
        assert socket_activation.has(taken, "localhost", port)
        assert not socket_activation.has(taken, "localhost", 1)
        assert not socket_activation.has(taken, "no such name", port)
        assert not taken.get_inheritable()
    assert environment == {"HOME": "/"}


@pytest.mark.parametrize("environment", [{}, {**OURS, "LISTEN_PID": "1"}, {"LISTEN_FDS": "1"}])
def test_without_one_for_this_process_none_is_taken(environment: dict[str, str]) -> None:
    before = dict(environment)
    assert socket_activation.taken(environment) is None
    assert environment == before


def test_the_address_of_ipv6_has_brackets() -> None:
    with socket.socket(socket.AF_INET6) as made:
        try:
            made.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        assert socket_activation.address(made) == f"[::1]:{made.getsockname()[1]}"


@pytest.mark.parametrize("count", ["", "0", "2", "some"])
def test_another_number_of_sockets_is_refused(count: str) -> None:
    with pytest.raises(EdgeSettingsError, match="a node takes one"):
        socket_activation.taken({**OURS, "LISTEN_FDS": count})


@pytest.mark.parametrize("kind", ["unix", "connected", "file"])
def test_what_is_no_listening_socket_is_refused(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "file":
        number = os.open("/dev/null", os.O_RDONLY)
    else:
        made = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
        if kind == "unix":
            made.bind("")
            made.listen()
        number = made.detach()
    monkeypatch.setattr(socket_activation, "FIRST", number)
    with pytest.raises(EdgeSettingsError, match=r"can't be used|ListenStream=HOST:PORT"):
        socket_activation.taken(dict(OURS))
