"""What systemd is told, as it hears it."""

import os
import socket
from pathlib import Path

import pytest

from control.protocol import service_manager
from control.protocol.service_manager import ServiceManager


@pytest.mark.parametrize("abstract", [False, True])
def test_each_word_is_systemds(tmp_path: Path, abstract: bool) -> None:
    address = f"@skerry-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind("\0" + address[1:] if abstract else address)
        environment = {"NOTIFY_SOCKET": address, "WATCHDOG_PID": str(os.getpid()), "WATCHDOG_USEC": "3000000", "A": "b"}
        manager = service_manager.taken(environment)
        assert environment == {"A": "b"}
        assert manager.period == 1.0
        manager.starting(90)
        manager.up()
        manager.works()
        told = [heard.recv(100) for _ in range(3)]
    assert told == [b"EXTEND_TIMEOUT_USEC=90000000", b"READY=1", b"WATCHDOG=1"]
    # Nobody hears it any more.
    manager.works()


def test_a_watchdog_for_another_process_is_none() -> None:
    manager = service_manager.taken({"WATCHDOG_PID": "1", "WATCHDOG_USEC": "3000000"})
    assert manager.period == service_manager.PERIOD
    manager.up()
    ServiceManager().up()
