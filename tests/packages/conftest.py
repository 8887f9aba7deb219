"""What the tests of the Debian packages share: a bare machine with both packages, and one that serves."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packages import built as packages
from tests.packages import machine as machines
from tests.packages.built import Package
from tests.packages.fleet import Fleet, set_up
from tests.packages.machine import Machine
from tests.support import services as servers


@pytest.fixture(scope="session")
def built() -> dict[str, Package]:
    """The packages that were built, by name."""
    return packages.built()


@pytest.fixture(scope="session")
def bare(built: dict[str, Package]) -> Iterator[Machine]:
    """A machine with nothing of Skerry's but the files of both packages, in /root."""
    with machines.running() as machine:
        machine.apt("update")
        for package in built.values():
            package.give(machine)
        yield machine


@pytest.fixture(scope="session")
def machine(bare: Machine, built: dict[str, Package]) -> Machine:
    """The machine with both packages installed, as docs/how-to say."""
    bare.apt("install", *(package.path for package in built.values()))
    return bare


@pytest.fixture(scope="session")
def fleet(machine: Machine, services: servers.ServerUrls, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Control and a node on the machine, set up as docs/how-to say, with a function that a release has brought."""
    with asyncio.Runner() as runner:
        database = runner.run(servers.fresh_database(services.metadata_url))
        bucket = runner.run(servers.fresh_bucket(services.artifacts_url))
    folder: Path = tmp_path_factory.mktemp("fleet")
    return set_up(machine, database, bucket, folder)
