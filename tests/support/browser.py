"""A real browser, Debian's Chromium without a window, and web pages for it from several origins of this machine."""

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
from aiohttp import web

from control.local.process import Service
from tests.support.deadlines import deadline
from tests.support.programs import runs

DEADLINE = 60.0
HOSTS = (
    "--host-resolver-rules=MAP *.example 127.0.0.1, MAP * ~NOTFOUND, "
    "EXCLUDE localhost, EXCLUDE *.localhost, EXCLUDE 127.0.0.1"
)
"""Chromium's option by which every name of .example is this machine, and nothing else is reached."""
FLAGS = (
    "--headless=new",
    # Root has none of its sandbox, and it opens nothing but the tests' own pages.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-popup-blocking",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--password-store=basic",
    HOSTS,
)


def program() -> str:
    """The path of Chromium."""
    found = shutil.which("chromium")
    assert found is not None, "Debian's package chromium isn't installed: `scripts/browser` does it"
    return found


class Browser(Service):
    """Chromium. It ends with the process that started it, also where that is killed."""

    STOP = ((signal.SIGKILL, 10.0),)


@asynccontextmanager
async def browser(folder: Path, url: str) -> AsyncIterator[Browser]:
    """Have a browser open a page until the block ends; `folder` has its profile and its log."""
    with open(folder / "browser.lock", "w") as lock:
        made = Browser("browser", folder / "browser.log", lock.fileno())
        home = {"HOME": str(folder), "XDG_RUNTIME_DIR": str(folder)}
        argv = [program(), *FLAGS, f"--user-data-dir={folder / 'profile'}", url]
        process = made.spawn(argv, cwd=folder, env=home)

        async def there() -> bool:
            return True

        await made.run_until_ready(process, there)
        try:
            yield made
        finally:
            children = processes(made.pid) if process.poll() is None else []
            await made.stop()
            async with deadline(DEADLINE):
                while any(map(runs, children)):
                    await asyncio.sleep(0.01)


def processes(pid: int) -> list[psutil.Process]:
    """The processes that a browser has started."""
    return psutil.Process(pid).children(recursive=True)


class Pages:
    """A server of pages, under each name of this machine, and of what they tell it: POST /told/NAME, any body."""

    def __init__(self) -> None:
        self.port = 0
        self.pages: dict[str, str] = {}
        """Text of the pages by path."""
        self._told: dict[str, asyncio.Future[str]] = {}

    def url(self, host: str, path: str = "/") -> str:
        return f"http://{host}:{self.port}{path}"

    async def told(self, name: str) -> str:
        """What a page has told by this name, once it has."""
        async with deadline(DEADLINE):
            return await self._future(name)

    def _future(self, name: str) -> asyncio.Future[str]:
        return self._told.setdefault(name, asyncio.get_running_loop().create_future())

    async def handle(self, request: web.Request) -> web.Response:
        """Answer a request."""
        _, _, name = request.path.partition("/told/")
        if name:
            future, text = self._future(name), await request.text()
            if not future.done():
                future.set_result(text)
            return web.Response(status=204)
        text = self.pages.get(request.path, "")
        return web.Response(status=200 if text else 404, text=text, content_type="text/html")


@asynccontextmanager
async def pages() -> AsyncIterator[Pages]:
    """Serve pages until the block ends."""
    made = Pages()
    runner = web.ServerRunner(web.Server(made.handle))
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        made.port = runner.addresses[0][1]
        yield made
    finally:
        await runner.cleanup()
