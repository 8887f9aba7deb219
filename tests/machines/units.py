"""What systemd of a box knows of a unit, and runs it with."""

import time
from collections.abc import Callable
from typing import Any

from tests.packages.machine import Machine
from tests.support.deadlines import scaled


def shown(box: Machine, unit: str, name: str) -> str:
    """What systemd knows of a unit."""
    return box.run("systemctl", "show", "--value", "--property", name, unit).strip()


def drop_in(box: Machine, unit: str, *lines: str) -> None:
    """Have a unit run with these lines besides; without lines, as it is packaged."""
    folder = f"/run/systemd/system/{unit}.service.d"
    box.shell(f"rm -rf {folder}; mkdir -p {folder}")
    if lines:
        box.write(f"{folder}/test.conf", "\n".join(lines) + "\n")
    box.run("systemctl", "daemon-reload")


def until(box: Machine, unit: str, name: str, value: str, within: float = 60.0) -> None:
    deadline = time.monotonic() + scaled(within)
    while (is_now := shown(box, unit, name)) != value:
        assert time.monotonic() < deadline, f"{unit}: {name} is {is_now}, not {value}"
        time.sleep(0.2)


def wait(true: Callable[[], Any], what: str, within: float = 60.0) -> Any:
    """Return what `true` returns once that is true; `what` is what is wrong until then."""
    deadline = time.monotonic() + scaled(within)
    while not (found := true()):
        assert time.monotonic() < deadline, what
        time.sleep(0.2)
    return found


def said(box: Machine, unit: str, text: str) -> int:
    """How often a unit's processes have said something."""
    return box.run("journalctl", "--unit", unit, "--no-pager").count(text)
