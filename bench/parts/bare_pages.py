"""The floor under the console's pages: the same templates, filled from memory by bare Starlette.

``python -m bench.parts.bare_pages`` is a replica with `skerry serve`'s settings, on a separate port. It answers the
first request to each address as a replica does, and keeps the template's context; from then on Starlette only fills the
template with that again, behind control's own server class.
"""

import asyncio
import os
from typing import Any

import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from control.console import rendering
from control.settings import ControlSettings, from_environment
from control.web.server import ControlServer


class BarePages(ControlServer):
    def __init__(self, settings: ControlSettings) -> None:
        super().__init__(settings, tame=True)
        self._filled: dict[str, tuple[Any, ...]] = {}
        self._text = rendering.text
        self._bare = Starlette(routes=[Route("/{path:path}", self._page)])
        self.config.app = self._answer

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        address = self._address(scope)
        if address in self._filled:
            await self._bare(scope, receive, send)
            return

        def kept(*arguments: Any) -> str:
            self._filled[address] = arguments
            return self._text(*arguments)

        rendering.text = kept
        try:
            await self.app(scope, receive, send)
        finally:
            rendering.text = self._text

    async def _page(self, request: Request) -> HTMLResponse:
        return HTMLResponse(self._text(*self._filled[self._address(request.scope)]))

    def _address(self, scope: Any) -> str:
        return f"{scope['path']}?{scope['query_string'].decode()}"


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(BarePages(from_environment(os.environ)).serve())
