"""One local server process: its start, its log, its ports and settings, its shutdown."""

import asyncio
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

START_LIMIT = 60.0
"""Seconds within which a server must be ready; recovery after a crash takes some of them."""
LOG_LIMIT = 16 * 1024 * 1024
"""Bytes of a log above which the next start renames it to ``.1``."""

_LAUNCH = Path(__file__).with_name("launch.py")


def ending_with_us(
    argv: Sequence[str | Path], stop: signal.Signals = signal.SIGTERM, user: tuple[int, int] | None = None
) -> list[str]:
    """Return a command that runs a program so that the kernel sends it `stop` when the thread that started it ends.

    The program is given by its whole path; `user` is the uid and gid that it runs as.
    """
    uid, gid = user or (os.geteuid(), os.getegid())
    launch = [sys.executable, "-I", "-S", _LAUNCH, os.getpid(), uid, gid, int(stop), *argv]
    return [str(part) for part in launch]


class ServiceError(Exception):
    """A local service didn't start, or exited unexpectedly; the message says which, why, and where its log is."""


class EndedEarly(ServiceError):
    """The server's process exited before it was ready."""


class Service:
    """A server that runs as a child of this process, in its own session so that Ctrl-C doesn't reach it.

    The kernel stops it when the thread that started it ends, so start it from the main thread.
    """

    STOP: tuple[tuple[signal.Signals, float], ...] = ((signal.SIGTERM, 10.0),)
    """Signals that shut down the server, each with the seconds to wait; SIGKILL follows."""
    DEATH: signal.Signals = STOP[0][0]
    """The signal that the kernel sends to the server when this process dies."""

    def __init__(self, name: str, log: Path, inherit: int) -> None:
        """Let the server keep the file descriptor `inherit` open while it lives: a lock on its files."""
        self.name = name
        self.log = log
        self._inherit = inherit
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = False

    @property
    def pid(self) -> int:
        """Return the running server's process id.

        Raises: ServiceError, when it isn't running.
        """
        if self._process is None or self._process.poll() is not None:
            raise ServiceError(f"{self.name} isn't running")
        return self._process.pid

    def check(self) -> None:
        """Check that the server still runs, if it should.

        Raises: ServiceError, when it exited without `stop` or `kill`.
        """
        if self._wanted and self._process is not None and self._process.poll() is not None:
            raise ServiceError(self._ended(self._process.returncode))

    async def stop(self) -> None:
        """Shut down the server; do nothing if it has exited."""
        self._wanted = False
        process = self._process
        if process is None:
            return
        for number, seconds in (*self.STOP, (signal.SIGKILL, 10.0)):
            if process.poll() is None:
                process.send_signal(number)
            if await _until(lambda: process.poll() is not None, seconds):
                break
        self._process = None

    async def kill(self) -> None:
        """Kill the server at once with SIGKILL, as in a crash."""
        self._wanted = False
        if self._process is not None:
            self._process.kill()
            await _until(lambda: self._process is None or self._process.poll() is not None, 10.0)
            self._process = None

    def spawn(
        self, argv: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str], user: tuple[int, int] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program that writes to the log and exits with this process; `user` is the uid and gid it runs as."""
        self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > LOG_LIMIT:
            self.log.replace(self.log.with_name(self.log.name + ".1"))
        handle = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            return subprocess.Popen(  # noqa: S603
                ending_with_us(argv, self.DEATH, user),
                cwd=cwd,
                env={"PATH": os.defpath, "LANG": "C", "TZ": "UTC", **env},
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=handle,
                start_new_session=True,
                pass_fds=(self._inherit,),
            )
        finally:
            os.close(handle)

    async def run_until_ready(self, process: subprocess.Popen[bytes], ready: Callable[[], Awaitable[bool]]) -> None:
        """Use `process` as the server and wait until `ready` returns true.

        Raises: EndedEarly, when it exits before; ServiceError, when it isn't ready after `START_LIMIT` seconds.
        """
        self._process = process
        deadline = time.monotonic() + START_LIMIT
        while not await ready():
            if process.poll() is not None:
                self._process = None
                raise EndedEarly(self._ended(process.returncode))
            if time.monotonic() > deadline:
                await self.kill()
                raise ServiceError(f"{self.name} wasn't ready after {START_LIMIT:.0f} s; its log: {self.log}")
            await asyncio.sleep(0.02)
        self._wanted = True

    async def run_to_end(self, process: subprocess.Popen[bytes], what: str) -> None:
        """Wait until a short program exits.

        Raises: ServiceError, when it fails or takes longer than `START_LIMIT` seconds.
        """
        try:
            if not await _until(lambda: process.poll() is not None, START_LIMIT):
                raise ServiceError(f"{what} took longer than {START_LIMIT:.0f} s; its log: {self.log}")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode != 0:
            raise ServiceError(f"{what} ended with status {process.returncode}; {self._last_words()}")

    def _ended(self, status: int) -> str:
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"{self.name} {how}; {self._last_words()}"

    def _last_words(self) -> str:
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 2000))
            lines = file.read().decode(errors="replace").strip().splitlines()
        return f"its log {self.log} ends with:\n" + "\n".join(lines[-5:])


async def _until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True


def port_is_free(port: int) -> bool:
    """Return whether a server could listen on 127.0.0.1 at `port` now."""
    with socket.socket() as probe:
        # Like servers do, so that a port whose old connections are still closing counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def choose_port(kept: int | None, ports: range, free: Callable[[int], bool] = port_is_free) -> int:
    """Return the port `kept` from the last start if it is free, else a free one of `ports`.

    Raises: ServiceError, when none is free.
    """
    if kept is not None and free(kept):
        return kept
    for _ in range(200):
        port = random.choice(ports)  # noqa: S311
        if free(port):
            return port
    raise ServiceError(f"no free port between {ports.start} and {ports.stop} on 127.0.0.1")


def secret() -> str:
    """Return 256 random bits as hex digits, which need no quoting in a URL."""
    return secrets.token_hex(32)


def read_settings(path: Path) -> dict[str, Any]:
    """Return what `write_settings` wrote; {} if the file doesn't exist yet.

    Raises: ServiceError, when the file isn't JSON.
    """
    try:
        settings: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        raise ServiceError(f"{path} is damaged: it holds the ports and passwords of a local service") from None
    return settings


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Replace the file with these settings, atomically and readable only to this user."""
    write_private(path, json.dumps(settings, indent=2))


def write_private(path: Path, text: str) -> None:
    """Replace a file atomically (mode 0600); its content is on disk before it has its name."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
