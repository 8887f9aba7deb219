"""The files and processes of `skerry up`: control and one edge, which end when it ends."""

import asyncio
import os
import pwd
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from control.local import embedded
from control.local.pki import Pki
from control.local.process import Service, ServiceError, choose_port, read_settings, write_settings

CONTROL_PORT = 8443
EDGE_PORT = 8087
OTHER_PORTS = range(20100, 29900)
"""Ports to choose from if the usual ones are taken."""
NODE = "edge-1"
"""The name of the one node."""
RESTARTS = 5
"""Restarts of a server within `RESTARTS_WITHIN` before `skerry up` gives up."""
RESTARTS_WITHIN = 60.0
"""Seconds."""


@dataclass(frozen=True)
class Home:
    """The files of a local installation, all in one folder."""

    folder: Path

    @property
    def pki(self) -> Path:
        return self.folder / "pki"

    @property
    def edge(self) -> Path:
        return self.folder / "edge"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def spool(self) -> Path:
        return self.folder / "spool"

    def make(self) -> None:
        """Make the folder, accessible only to this user; if that is root, PostgreSQL's own user may traverse it.

        Raises: ServiceError, when it is another user's, or would be root's in another user's folder, as with sudo.
        """
        there = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())
        owner = there.stat().st_uid
        by_sudo = os.geteuid() == 0 and "SUDO_UID" in os.environ and owner != 0
        if by_sudo or not os.access(there, os.W_OK | os.X_OK):
            whose, user = _name(owner), _name(os.geteuid())
            cure = f"run it as {whose}, or set SKERRY_HOME to another folder"
            raise ServiceError(f"{there} is {whose}'s, and this runs as {user}: {cure}")
        self.folder.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)

    def read(self) -> dict[str, Any]:
        """Return what an earlier start stored: the ports, and whether the example was deployed."""
        return read_settings(self.folder / "up.json")

    def keep(self, **values: object) -> None:
        """Add these values to those that `read` returns."""
        write_settings(self.folder / "up.json", self.read() | values)


def outside_services() -> tuple[str, str] | None:
    """Return SKERRY_METADATA_URL and SKERRY_ARTIFACTS_URL, or None if neither is set.

    Raises: ServiceError, when only one of them is set.
    """
    metadata, artifacts = (os.environ.get(f"SKERRY_{name}_URL", "") for name in ("METADATA", "ARTIFACTS"))
    if bool(metadata) != bool(artifacts):
        raise ServiceError("set both SKERRY_METADATA_URL and SKERRY_ARTIFACTS_URL, or none of them for local ones")
    return (metadata, artifacts) if metadata else None


@asynccontextmanager
async def children_lock(home: Home) -> AsyncIterator[int]:
    """Hold the lock that control and the edge inherit and hold while they run.

    So after a kill -9 of `skerry up`, a new start waits until the processes of the previous run have exited.

    Raises: ServiceError, when they haven't exited after `embedded.ORPHANS_LIMIT` seconds.
    """
    message = f"control or the edge of an earlier run still ends; try again, or see {home.logs}"
    async with embedded.locked(home.folder / "children.lock", embedded.ORPHANS_LIMIT, message) as held:
        yield held


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"the user {uid}"


Ready = Callable[[], Awaitable[bool]]
"""Returns whether a server accepts requests."""


class PythonService(Service):
    """A Python module run as a process. Its environment is this process's, with `settings` added."""

    def __init__(self, home: Home, held: int, name: str, arguments: list[str], settings: Mapping[str, str]) -> None:
        super().__init__(name, home.logs / f"{name}.log", held)
        self._folder = home.folder
        self._arguments = arguments
        # SKERRY_TOKEN and SKERRY_URL are for the user's own commands.
        kept = {name: value for name, value in os.environ.items() if name not in ("SKERRY_TOKEN", "SKERRY_URL")}
        self._environment = {**kept, "PYTHONUNBUFFERED": "1", **settings}

    async def start(self, ready: Ready) -> None:
        """Start the process and wait until it is ready.

        Raises: ServiceError, when it exits before that, or isn't ready in time.
        """
        await self.run_until_ready(self._spawn(), ready)

    async def run(self) -> None:
        """Run the process until it exits.

        Raises: ServiceError, when it fails or takes too long.
        """
        await self.run_to_end(self._spawn(), self.name)

    def _spawn(self) -> subprocess.Popen[bytes]:
        return self.spawn([sys.executable, "-m", *self._arguments], cwd=self._folder, env=self._environment)


@dataclass(frozen=True)
class SupervisedServer:
    """A server that runs as long as `skerry up` does, and how to start it again."""

    server: Service
    start: Callable[[], Awaitable[None]]


def control_settings(home: Home, pki: Pki, port: int, metadata_url: str, artifacts_url: str) -> dict[str, str]:
    """Return the settings of `skerry serve` in a local installation, as environment variables."""
    return {
        "SKERRY_METADATA_URL": metadata_url,
        "SKERRY_ARTIFACTS_URL": artifacts_url,
        "SKERRY_BIND": "127.0.0.1",
        "SKERRY_PORT": str(port),
        "SKERRY_TLS_CERT": str(pki.certificate),
        "SKERRY_TLS_KEY": str(pki.key),
        "SKERRY_CA_CERT": str(pki.ca),
        "SKERRY_SPOOL": str(home.spool),
    }


def ports(home: Home) -> tuple[int, int]:
    """Choose the ports of control and of the edge: those of the last start if they are free, else others."""
    kept = home.read()
    control = choose_port(kept.get("control_port", CONTROL_PORT), OTHER_PORTS)
    edge = choose_port(kept.get("edge_port", EDGE_PORT), OTHER_PORTS)
    home.keep(control_port=control, edge_port=edge)
    return control, edge


def point_edge(home: Home, control_url: str) -> bool:
    """Return whether the edge has joined; write `control_url`, whose port may have changed, to its identity."""
    file = home.edge / "identity.json"
    identity = read_settings(file)
    if identity and identity["control_url"] != control_url:
        write_settings(file, identity | {"control_url": control_url})
    return bool(identity)


async def watch(children: list[SupervisedServer], again: Callable[[], bool], tell: Callable[[str], None]) -> NoReturn:
    """Restart servers that exit by themselves, until cancelled. The list may grow meanwhile.

    Raises: ServiceError, when one exits and `again()` is False, when it exits more than `RESTARTS` times within
    `RESTARTS_WITHIN` seconds, or when it can't be started.
    """
    ends: dict[str, list[float]] = {}
    while True:
        for child in children:
            try:
                child.server.check()
            except ServiceError as error:
                now = time.monotonic()
                name = child.server.name
                ends[name] = [end for end in ends.get(name, []) if now - end < RESTARTS_WITHIN] + [now]
                if not again() or len(ends[name]) > RESTARTS:
                    raise
                tell(f"{str(error).partition(';')[0]}; it is started again")
                await child.start()
                tell(f"{name} is back after {time.monotonic() - now:.1f} s")
        await asyncio.sleep(0.1)
