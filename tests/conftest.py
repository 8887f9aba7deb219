"""Fixtures that all tests share: real servers, once for the session, and fresh things in them for each test."""

import functools
import gc
import os
import resource
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from control.local.pki import Pki, ensure
from control.storage import migrations
from control.web import lifespan
from edge_runtime.built import parts
from edge_runtime.native import library
from edge_runtime.redaction import redact
from edge_runtime.telemetry import ring
from tests.guests import build
from tests.support import (
    ci_minutes,
    disturbed,
    draws,
    failing_calls,
    flaked_file,
    flaked_runs,
    forked_programs,
    limit_of_a_test,
    long_files,
    program_start,
    replica,
    rewritten,
    store_clients,
)
from tests.support import services as servers
from tests.support.control import Control, running
from tests.support.kept_checks import KeptChecks
from tests.support.shared_services import SharedServices

draws.settle()


def pytest_configure(config: pytest.Config) -> None:
    """Raise the limit of open files, as `skerry serve` does: both ends of a thousand polls are in one process.

    A shell that starts this in the background has SIGINT ignored. Programs would inherit that, which tests end by it.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if built := os.environ.get("SKERRY_TEST_NATIVE"):
        # The C library as `native_build.sanitized` has built it, in place of the one that is built for use.
        library.BUILT = Path(built)  # type: ignore[misc]
    config.pluginmanager.register(limit_of_a_test)
    flaked_runs.join(config)
    disturbed.join(config)


_SHARED = pytest.StashKey[SharedServices]()
_SECONDS = pytest.StashKey[dict[str, float]]()
_measured: Counter[str] = Counter()
"""By file: seconds that its tests took, with their set-up."""


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker process of pytest-xdist, before it starts, where it gets the servers that all of them share.

    What all of them import is rewritten before the first one starts.
    """
    if _SHARED not in node.config.stash:
        node.config.stash[_SHARED] = SharedServices()
        node.config.stash[_SECONDS] = long_files.kept()
        rewritten.keep(node.config)
    node.workerinput["servers"] = node.config.stash[_SHARED].socket
    node.workerinput["seconds"] = node.config.stash[_SECONDS]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Worker processes of pytest-xdist begin with the files that take longest."""
    if (seconds := getattr(config, "workerinput", {}).get("seconds")) is not None:
        long_files.sort(items, seconds)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _measured[long_files.file_of(report.nodeid)] += report.duration


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keep how long each file took, after a whole run whose tests were in worker processes."""
    config = session.config
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not config.option.keyword
    if whole and _SHARED in config.stash and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        long_files.keep(_measured)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the servers that the worker processes shared."""
    if _SHARED in config.stash:
        config.stash[_SHARED].end()


def pytest_report_header() -> list[str]:
    """Say what the tests run on."""
    return [parts.told(name, part) for name, part in parts.document().items()]


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how long each step of `.ci/run` took, as its last one, and what flaked here and isn't in the tree."""
    if hasattr(config, "workerinput"):
        return
    if lines := ci_minutes.told():
        terminalreporter.section("minutes of .ci/run")
        for line in lines:
            terminalreporter.line(line)
    for line in flaked_file.notice(config.rootpath):
        terminalreporter.write_line(line)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Have the compiler of the test guests build its C libraries, before any test's time runs: a loop that has a
    control in it stands meanwhile."""
    if not hasattr(session.config, "workerinput"):
        if not build.CACHE.exists():
            print("building the C library of the test guests (once, half a minute)", flush=True)
        build.guest("echo")
        failing_calls.library()


def pytest_collection_finish() -> None:
    """Have no collection of garbage look at the two million objects that all test modules have made."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _kept_checks() -> Iterator[None]:
    """Replicas in the tests' own process start no child for a check that was made before."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lifespan, "Checks", KeptChecks)
        yield


@pytest.fixture(scope="session", autouse=True)
def _read_migrations() -> Iterator[None]:
    """Replicas in the tests' own process read the files of migrations once for all of them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(migrations, "migrations", functools.cache(migrations.migrations))
        yield


@pytest.fixture(scope="session", autouse=True)
def _described_once() -> Iterator[None]:
    """Clients of the store in the tests' own process share what botocore makes of S3's description."""
    with pytest.MonkeyPatch.context() as patched:
        store_clients.share_descriptions(patched)
        yield


@pytest.fixture(scope="session", autouse=True)
def _forked_programs(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Our programs are forked from a process that has imported them, where that is the same as a start by exec."""
    if os.environ.get("SKERRY_TEST_EXEC"):
        yield
        return
    shared = getattr(pytestconfig, "workerinput", {}).get("servers", "")
    code = Path(shared).with_name("code") if shared else tmp_path_factory.mktemp("code") / "code"
    with forked_programs.used(str(code)):
        yield


@pytest.fixture(scope="session", autouse=True)
def _whole_records() -> Iterator[None]:
    """Nodes' records in the tests' own process are all there at an end, however slow the thread is that writes them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ring, "CLOSE_LIMIT", 60.0)
        yield


@pytest.fixture
def programs_by_exec(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our programs are started as they are in production: for tests of that start, of imports and of memory."""
    monkeypatch.setattr(forked_programs, "by_exec", True)


@pytest.fixture
def real_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes and commands compile whatever they need code of: for tests of what that takes."""
    monkeypatch.setattr(forked_programs, "real_compilation", True)


@pytest.fixture(scope="session")
def services(pytestconfig: pytest.Config) -> Iterator[servers.ServerUrls]:
    """The metadata database and the artifact store, started once for all tests of a run, in whatever process they are.

    Other tests use them at the same time: one that kills or fills a server has `own_services`.
    """
    shared = getattr(pytestconfig, "workerinput", {}).get("servers", "")
    with servers.used_services(shared) as used, disturbed.late(used) as found:
        yield found


@pytest.fixture(scope="module")
def own_services() -> Iterator[servers.OwnServers]:
    """A metadata database and an artifact store that are the module's own, to kill and to start again."""
    with servers.own_services() as own:
        yield own


@pytest.fixture
async def database_url(services: servers.ServerUrls) -> AsyncIterator[str]:
    """A metadata database of the test's own, migrated; see `replica.prepare` for its admin."""
    url = await services.fresh_database()
    yield url
    await services.give_back(url)


@pytest.fixture
async def empty_database_url(services: servers.ServerUrls) -> AsyncIterator[str]:
    """One in which there is nothing at all."""
    url = await servers.fresh_database(services.metadata_url)
    yield url
    await servers.drop_database(services.metadata_url, url)


@pytest.fixture
async def bucket_url(services: servers.ServerUrls) -> AsyncIterator[str]:
    """A fresh, empty bucket of the artifact store."""
    url = await servers.fresh_bucket(services.artifacts_url)
    yield url
    await servers.drop_bucket(url)


@pytest.fixture
def served_url(database_url: str) -> str:
    """The URL of `database_url` that control is given; the tests of a folder may give it another one."""
    return database_url


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """An authority and a server certificate for localhost and 127.0.0.1."""
    folder: Path = tmp_path_factory.mktemp("pki")
    return ensure(folder)


@pytest.fixture(autouse=True)
def _signals_stay() -> Iterator[None]:
    """A command that a test runs in this process, such as `skerry-edge run`, leaves none of its signals ignored or
    handled: all programs would inherit the first, and be started by exec for the rest of the run."""
    before = {number: signal.getsignal(number) for number in program_start.IGNORED}
    yield
    for number, handler in before.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _silent_replicas(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas in the test's own process do nothing by themselves, but for what its marks `background` name."""
    replica.silence(monkeypatch, {name for mark in request.node.iter_markers("background") for name in mark.args})


@pytest.fixture
def long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas wait longer for what a busy machine may hold up."""
    replica.wait_longer(monkeypatch)


@pytest.fixture
async def control(
    long_waits: None, database_url: str, served_url: str, bucket_url: str, pki: Pki
) -> AsyncIterator[Control]:
    """One replica of control, over TLS, with an admin and a clock that the test can move on."""
    async with running(database_url, bucket_url, pki, metadata_url=served_url) as found:
        yield found


@pytest.fixture
async def control_site(
    long_waits: None, database_url: str, served_url: str, bucket_url: str, pki: Pki, tmp_path: Path
) -> replica.Site:
    """A migrated database with an admin, an empty bucket: `async with control_site.running()` is a replica on them."""
    return (await replica.prepare(database_url, bucket_url, pki, tmp_path)).at(served_url)


@pytest.fixture(autouse=True, scope="module")
def no_known_secrets() -> Iterator[None]:
    """No text of a test has `[secret NAME]` in it because of another module's node."""
    yield
    redact.forget()
