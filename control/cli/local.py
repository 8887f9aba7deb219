"""The processes of a local installation: control and one edge, as children that end with us."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from control import embedded
from control.pki import Pki
from control.service import Service, ServiceError, choose_port, read_settings, write_settings

CONTROL_PORT = 8443
EDGE_PORT = 8087
OTHER_PORTS = range(20100, 29900)
"""Where the usual ports are taken."""
NODE = "edge-1"


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
        """The folder, for this user alone; for root, PostgreSQL's user may pass through it."""
        self.folder.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)

    def read(self) -> dict[str, Any]:
        """What an earlier start kept: the ports, and whether the example was deployed."""
        return read_settings(self.folder / "up.json")

    def keep(self, **values: object) -> None:
        write_settings(self.folder / "up.json", self.read() | values)


def outside_services() -> tuple[str, str] | None:
    """SKERRY_METADATA_URL and SKERRY_ARTIFACTS_URL where they are set; raises `ServiceError` where one is missing."""
    metadata, artifacts = (os.environ.get(f"SKERRY_{name}_URL", "") for name in ("METADATA", "ARTIFACTS"))
    if bool(metadata) != bool(artifacts):
        raise ServiceError("set both SKERRY_METADATA_URL and SKERRY_ARTIFACTS_URL, or none of them for local ones")
    return (metadata, artifacts) if metadata else None


@asynccontextmanager
async def children_lock(home: Home) -> AsyncIterator[int]:
    """What control and the edge hold while they live, so that a start after our kill -9 waits for their end."""
    message = f"control or the edge of an earlier run still ends; try again, or see {home.logs}"
    async with embedded.locked(home.folder / "children.lock", embedded.ORPHANS_LIMIT, message) as held:
        yield held


class Child(Service):
    """Control or the edge; the environment is ours with `settings` over it."""

    def start_process(self, arguments: list[str], settings: Mapping[str, str], cwd: Path) -> Any:
        # SKERRY_TOKEN and SKERRY_URL are the person's, none of the children's business.
        kept = {name: value for name, value in os.environ.items() if name not in ("SKERRY_TOKEN", "SKERRY_URL")}
        environment = {**kept, "PYTHONUNBUFFERED": "1", **settings}
        return self.spawn([sys.executable, *arguments], cwd=cwd, env=environment)

    async def start(
        self, arguments: list[str], settings: Mapping[str, str], cwd: Path, ready: Callable[[], Awaitable[bool]]
    ) -> None:
        await self.run_until_ready(self.start_process(arguments, settings, cwd), ready)


def control_settings(home: Home, pki: Pki, port: int, metadata_url: str, artifacts_url: str) -> dict[str, str]:
    """The environment of `skerry serve` in a local installation."""
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
    """Control's and the edge's: those of the last start where they are free, else the usual or other ones."""
    kept = home.read()
    control = choose_port(kept.get("control_port", CONTROL_PORT), OTHER_PORTS)
    edge = choose_port(kept.get("edge_port", EDGE_PORT), OTHER_PORTS)
    home.keep(control_port=control, edge_port=edge)
    return control, edge


def point_edge(home: Home, control_url: str) -> bool:
    """Whether the edge has joined; it is told where control is now, whose port may have been taken meanwhile."""
    file = home.edge / "identity.json"
    identity = read_settings(file)
    if identity and identity["control_url"] != control_url:
        write_settings(file, identity | {"control_url": control_url})
    return bool(identity)


async def watch(children: list[Service]) -> NoReturn:
    """Raises `ServiceError` as soon as one of the children has ended by itself; the list may grow meanwhile."""
    while True:
        for child in children:
            child.check()
        await asyncio.sleep(0.25)
