"""`skerry up` itself: its steps, what it says, and what ends and comes back."""

import asyncio
import json
import re
import shlex
import signal
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import psutil
import pytest

from control.access.sessions import COOKIE
from control.cli.up import installation
from control.cli.up.example import GREETINGS
from control.local.process import ServiceError
from tests.support.cookies_and_forms import ConsoleBrowser
from tests.support.deadlines import scaled
from tests.support.engines import give_engine
from tests.support.up import LIMIT, Shell, Up, make_home


@pytest.fixture
def home() -> Iterator[Path]:
    yield from make_home()


@pytest.fixture
def new_home() -> Iterator[Path]:
    yield from make_home(filled=False)


def test_every_step_has_a_line_and_a_time(up: Up) -> None:
    lines = [line.split() for line in up.output.splitlines() if " s  " in line]
    assert all(float(line[0]) >= 0 for line in lines)
    steps = " ".join(" ".join(line[2:4]) for line in lines)
    for step in ("services", "certificates", "migrate", "control", "join", "edge", "schema change", "function",
                 "release", "sync", "call"):  # fmt: skip
        assert step in steps
    assert 'answers {"message":"こんにちは, Ada!","language":"ja"}' in up.output


def test_no_secret_is_shown_or_logged(up: Up) -> None:
    kept = json.loads((up.home / "cli.json").read_text())
    told = up.output + "".join(file.read_text("utf-8", "replace") for file in (up.home / "logs").iterdir())
    assert kept["token"] not in told
    assert "PRIVATE KEY" not in told
    assert "skj_" not in told
    assert "skn_" not in told
    assert (up.home / "cli.json").stat().st_mode & 0o077 == 0


def test_the_commands_that_it_prints_work(up: Up, skerry: Shell) -> None:
    commands = [shlex.split(line)[2:] for line in up.output.splitlines() if line.startswith("  SKERRY_HOME=")]
    assert len(commands) == 6
    outputs = [skerry(*command) for command in commands]
    assert "edge-1" in outputs[0]
    assert outputs[1] == '{"message":"Bonjour, Grace!","language":"fr"}\n'
    assert "edge-1 runs release" in outputs[2]
    assert outputs[4] == '{"name":"ada","count":1}\n'
    assert "- visits@1 is removed" in outputs[5]


def test_the_code_that_it_prints_signs_in_at_the_console(up: Up) -> None:
    line = r"the console is at (https://127\.0\.0\.1:\d+)/sign-in\?by=code: type the code (\S+) there"
    found = re.search(line, up.output)
    assert found, up.output

    async def sign_in(url: str, code: str) -> ConsoleBrowser:
        context = ssl.create_default_context(cafile=str(up.home / "pki" / "ca.pem"))
        connector, jar = aiohttp.TCPConnector(ssl=context), aiohttp.DummyCookieJar()
        async with aiohttp.ClientSession(connector=connector, cookie_jar=jar) as session:
            browser = ConsoleBrowser(url, session)
            await browser.open("/sign-in?by=code")
            await browser.send("/sign-in", code=code)
            return browser

    browser = asyncio.run(sign_in(found[1], found[2]))
    assert COOKIE in browser.cookies
    assert "edge-1" in browser.shown.text or "1 node" in browser.shown.words


def test_a_second_up_is_told_that_it_is_the_second(up: Up) -> None:
    second = Up(up.home, "--demo", log="second.log")
    assert second.process.wait(scaled(LIMIT)) == 1
    assert "another" in second.output


def test_each_server_that_is_killed_comes_back(up: Up) -> None:
    """Each in turn, while a client calls: the edge answers on unless it is itself the one that was killed."""
    url = f"{json.loads((up.home / 'cli.json').read_text())['edge']}/functions/hello?language=fr"
    servers = {
        "PostgreSQL": lambda line: "postgres" in line[0] and "-D" in line,
        "SeaweedFS": lambda line: line[0].endswith("weed"),
        "control": lambda line: "control.cli" in line and "serve" in line,
        "edge": lambda line: "edge_runtime.cli.main" in line and "run" in line,
    }
    for name, is_it in servers.items():
        (server,) = [child for child in up.process.children() if is_it(child.cmdline())]
        server.kill()
        deadline = time.monotonic() + scaled(LIMIT)
        while f"{name} is back after" not in up.output:
            assert time.monotonic() < deadline, up.output
            if name != "edge":
                with urllib.request.urlopen(url, timeout=scaled(LIMIT)) as response:
                    assert b"Bonjour" in response.read()
            time.sleep(0.01)
        assert f"{name} was ended by signal 9; it is started again" in up.output
    with urllib.request.urlopen(url, timeout=scaled(LIMIT)) as response:
        assert b"Bonjour" in response.read()


def test_killed_and_started_again(
    up: Up, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """kill -9 leaves no process; the next start finds its data, on the same ports where they are free; Ctrl-C ends
    everything in order. It is the last test of the module's `up`, which it kills."""
    home, family = up.home, up.family()
    assert len(family) > 5
    up.process.kill()
    _, alive = psutil.wait_procs(family, timeout=scaled(60))
    assert alive == []
    kept = json.loads((home / "cli.json").read_text())
    with socket.socket() as other:
        # Control's port is another's meanwhile: it takes a new one, and the edge finds it.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", int(kept["url"].rpartition(":")[2])))
        other.listen()
        second = Up(home, log="again.log")
        try:
            second.wait_ready()
            assert "the schema has all of this version" in second.output
            assert "こんにちは, Ada!" in second.output
            assert " join " not in second.output
            now = json.loads((home / "cli.json").read_text())
            assert now["url"] != kept["url"]
            assert {**now, "url": ""} == {**kept, "url": ""}
            monkeypatch.setenv("SKERRY_HOME", str(home))
            skerry = Shell(capsys, home / "logs")
            (tmp_path / "again.sql").write_text("CREATE TABLE again (name TEXT);")
            skerry("schema", "add", str(tmp_path / "again.sql"), "--wait", "--timeout", "60")

            skerry("release", "create", "--remove", "hello", "--wait")

            family = second.family()
            # As somebody who is impatient does.
            deadline = time.monotonic() + scaled(LIMIT)
            while second.process.poll() is None:
                assert time.monotonic() < deadline
                second.process.send_signal(signal.SIGINT)
                time.sleep(0.01)
            assert second.process.wait() == 0
            _, alive = psutil.wait_procs(family, timeout=scaled(60))
            assert alive == []
            *_, ending, ended = second.output.splitlines()
            assert (ending.partition(":")[0], ended) == ("everything is ending already", "everything has ended")
            assert second.output.count("is ending already") == 1
            assert "Traceback" not in second.output
        finally:
            second.end()
    # The example is gone: a demo doesn't say that it went well.
    third = Up(home, "--demo", log="demo.log")
    assert third.process.wait(scaled(LIMIT)) == 1
    assert "Error: call: http" in third.output
    assert "answered 404" in third.output
    assert "succeeded" not in third.output


def test_on_services_that_the_environment_names(new_home: Path, empty_database_url: str, bucket_url: str) -> None:
    asyncio.run(give_engine(new_home / "edge"))
    running = Up(new_home, "--demo", SKERRY_METADATA_URL=empty_database_url, SKERRY_ARTIFACTS_URL=bucket_url)
    try:
        assert running.process.wait(scaled(LIMIT)) == 0, running.output
    finally:
        running.end()
    assert "that the environment names" in running.output
    assert "こんにちは, Ada!" in running.output
    assert f"/functions/greetings answers {GREETINGS.answer}" in running.output
    assert not (new_home / "metadata").exists()
    for url in (empty_database_url, bucket_url):
        assert urlsplit(url).password not in running.output


def test_the_first_step_that_fails_is_named(home: Path) -> None:
    running = Up(home, "--demo", SKERRY_METADATA_URL="postgresql://u:secret@127.0.0.1:1/d")
    assert running.process.wait(scaled(LIMIT)) == 1
    assert "Error: services: set both SKERRY_METADATA_URL and SKERRY_ARTIFACTS_URL" in running.output
    assert "secret" not in running.output


async def test_one_that_ends_again_and_again_is_given_up(tmp_path: Path) -> None:
    child = installation.PythonService(installation.Home(tmp_path), 0, "brief", ["this"], {})

    async def start() -> None:
        await child.start(ready)

    async def ready() -> bool:
        return True

    told: list[str] = []
    await start()
    with pytest.raises(ServiceError, match="brief ended with status 0"):
        await installation.watch([installation.SupervisedServer(child, start)], lambda: True, told.append)
    assert len(told) == 2 * installation.RESTARTS
