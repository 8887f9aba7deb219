"""Steps of `skerry up` that look at what others did."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import web

from control.cli.support import options
from control.cli.support.client import Client, ConnectionSettings, Failure
from control.cli.up import installation, up_steps
from control.cli.up.example import HELLO
from control.local.process import ServiceError


@asynccontextmanager
async def edge(*answers: tuple[int, str]) -> AsyncIterator[str]:
    """A server that answers the calls of the example so, one after the other; its last answer again and again."""
    left = list(answers)

    async def answer(request: web.Request) -> web.Response:
        status, text = left.pop(0) if len(left) > 1 else left[0]
        return web.Response(status=status, text=text)

    app = web.Application()
    app.router.add_get(f"/functions/{HELLO.function}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("answer", "known", "must", "told"),
    [
        ((200, HELLO.answer), True, True, None),
        ((200, "of a later version"), False, True, None),
        ((200, "of a later version"), True, True, "answered 200 of a later version, and not {"),
        ((404, "gone"), False, True, "answered 404 gone"),
        ((404, "gone"), False, False, None),
    ],
)
async def test_a_wrong_answer_of_the_example_is_a_failure_of_the_demo(
    answer: tuple[int, str], known: bool, must: bool, told: str | None
) -> None:
    async with edge(answer) as url:
        if told is None:
            assert answer[1] in await up_steps.called(url, HELLO, known=known, must=must)
            return
        with pytest.raises(Failure) as failed:
            await up_steps.called(url, HELLO, known=known, must=must)
    assert told in str(failed.value)


async def test_a_node_that_has_just_started_may_not_be_ready_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    async with edge((503, "starts"), (200, HELLO.answer)) as url:
        assert "answers {" in await up_steps.called(url, HELLO, known=False, must=True)
    monkeypatch.setattr(up_steps, "CALL_LIMIT", 0.0)
    async with edge((503, "stuck")) as url:
        with pytest.raises(Failure, match="answered 503 stuck"):
            await up_steps.called(url, HELLO, known=False, must=True)


async def test_a_home_of_before_gets_its_example_no_second_time(tmp_path: Path) -> None:
    """An operator may have released something else since."""
    files = installation.Home(tmp_path)
    files.keep(example=True)
    async with Client(ConnectionSettings("https://127.0.0.1:1", "token", None)) as client:
        assert not await up_steps.Up(files)._deploy(client, HELLO)


def test_further_signals_do_not_interrupt_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    """Nor what Python does behind the loop: the command has ended in order then."""
    ended = []

    async def serve() -> None:
        options.end_once()
        signal.raise_signal(signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(4):
                signal.raise_signal(signal.SIGINT)
                await asyncio.sleep(0)
            ended.append(True)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(serve())
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        pytest.fail("interrupted after its end")
    assert ended == [True]
    assert capsys.readouterr().err.count("is ending already") == 1


def test_root_by_sudo_makes_no_home_in_another_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users, stat = tmp_path / "users", Path.stat
    users.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(
        Path, "stat", lambda path, **how: SimpleNamespace(st_uid=1234) if path == users else stat(path, **how)
    )
    home = installation.Home(users / "clone" / ".skerry")
    monkeypatch.setenv("SUDO_UID", "1234")
    with pytest.raises(ServiceError, match=f"{users} is the user 1234's, and this runs as root: run it as"):
        home.make()
    assert not home.folder.parent.exists()
    # Whoever is root by itself knows what it does.
    monkeypatch.delenv("SUDO_UID")
    home.make()
    assert home.folder.is_dir()
