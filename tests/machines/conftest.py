"""A box with both packages, which serves: systemd runs its units. Its metadata database is Debian's PostgreSQL."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.machines.box import booted
from tests.machines.units import wait
from tests.packages import built as packages
from tests.packages import machine as machines
from tests.packages.built import Package
from tests.packages.fleet import CA, NAME, Fleet, block, set_up
from tests.packages.machine import ROOT, Machine
from tests.support import services as servers
from tests.support.ports import free_port


class BoxFleet(Fleet):
    """Control and a node that systemd runs."""

    def start(self, unit: str) -> None:
        """Start a unit. It answers once systemd says that it is started."""
        self.machine.run("systemctl", "start", unit)
        self.answers(unit)

    def stop(self, unit: str) -> None:
        self.machine.run("systemctl", "stop", unit)

    def answers(self, unit: str) -> None:
        """Check that the service of a unit answers, at the first request."""
        self.call(*self._ready(unit))

    def is_there(self, unit: str) -> bool:
        """Whether the service of a unit answers now."""
        return self.machine.attempt("curl", "-sS", "--fail", *self._ready(unit)).returncode == 0

    def _ready(self, unit: str) -> tuple[str, ...]:
        if unit == "skerry":
            return ("--cacert", CA, f"https://{NAME}:{self.port}/readyz")
        return (f"http://127.0.0.1:{self.node_port}/_skerry/healthz",)

    def edge_says(self, *command: str) -> str:
        """What a command of the node prints, as its user, whatever its status."""
        asked = ("runuser", "-u", "skerry-edge", "--", "skerry-edge", *command, "--state", "/var/lib/skerry-edge")
        return self.machine.attempt(*asked).stdout

    def edge(self, command: str) -> Any:
        """What a command of the node says in JSON."""
        return json.loads(self.edge_says(command, "--json"))

    def at_target(self, after: int = 0) -> None:
        """Wait until the node is at its target, at a later release than `after`."""

        def there() -> bool:
            told = self.edge("status")
            return bool(told["at_target"]) and told["release"]["number"] > after

        wait(there, "the node doesn't come to its target", 120)


@pytest.fixture(scope="session")
def built() -> dict[str, Package]:
    """The packages that were built, by name."""
    return packages.built()


@pytest.fixture(scope="session")
def box(built: dict[str, Package], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A box on which both packages are installed."""
    log = tmp_path_factory.mktemp("box") / "log"
    with machines.running() as bare, log.open("wb") as out:
        bare.apt("update")
        # What is there is this machine's, and read-only; Debian's PostgreSQL writes there.
        bare.shell("cp -a /etc/apt/apt.conf.d /root/apt; mount --bind /root/apt /etc/apt/apt.conf.d")
        paths = [package.give(bare) for package in built.values()]
        bare.apt("install", "systemd", "systemd-sysv", "curl", "postgresql", *paths)
        # The box has this machine's network, and so its ports.
        bare.shell(f"sed -i 's/^port = .*/port = {free_port()}/' /etc/postgresql/*/main/postgresql.conf")
        with booted(bare, out) as box:
            yield box


@pytest.fixture(scope="session")
def database(box: Machine) -> str:
    """The URL of the database that docs/how-to/set-up-control.md has its administrator make."""
    page = (ROOT / "docs" / "how-to" / "set-up-control.md").read_text("utf-8")
    box.write("/root/statements.sql", block(page, "CREATE DATABASE"))
    box.shell("runuser -u postgres -- psql --set ON_ERROR_STOP=1 </root/statements.sql")
    port = box.shell("sed -n 's/^port = //p' /etc/postgresql/*/main/postgresql.conf").split()[0]
    return f"postgresql://skerry:{quote('…')}@127.0.0.1:{port}/skerry"


@pytest.fixture(scope="session")
def fleet(
    box: Machine, database: str, services: servers.ServerUrls, tmp_path_factory: pytest.TempPathFactory
) -> BoxFleet:
    """Control and a node in the box, set up as docs/how-to say, with a function that a release has brought."""
    bucket = asyncio.run(servers.fresh_bucket(services.artifacts_url))
    made = set_up(box, database, bucket, tmp_path_factory.mktemp("fleet"), BoxFleet)
    assert isinstance(made, BoxFleet)
    return made
