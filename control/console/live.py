"""GET /live: the stream of a page's live parts, as server-sent events."""

import asyncio
from collections.abc import Callable, Hashable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope, Send

from control.api.operations import Reply
from control.console import rendering, visits
from control.console.hub import Parts, Stream
from control.console.visits import ConsolePage, Visit
from control.problems import ProblemError

Find = Callable[[str], tuple[ConsolePage, Mapping[str, str]] | None]
"""A function that returns the page at a path, with the path's parameters, or None."""

PATH = "/live"
HEADERS = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    # For proxies that would buffer events.
    (b"x-accel-buffering", b"no"),
)


@dataclass(frozen=True, kw_only=True)
class LiveReply(Reply):
    """An answer that continues until the reader leaves or loses access, or the replica stops."""

    visit: Visit
    key: Hashable
    stream: Stream

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send events; only the server's `receive`, not `send`, reports that the reader has left."""
        tasks = [asyncio.create_task(self._send(send)), asyncio.create_task(left(receive))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.visit.hub.leave(self.key, self.stream)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status, "headers": list(self.headers)})
        async with aclosing(self.stream.events()) as events:
            async for event in events:
                if not await self._may_look():
                    break
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _may_look(self) -> bool:
        """Return whether the operator is still signed in with the same rights, from memory, without the database."""
        visit = self.visit
        session = visit.visitor.session
        if session is not None:
            return visit.services.sessions.holds(session)
        try:
            return (await visits.visitor(visit.services, visit.scope)).operator.rights == visit.rights
        except ProblemError:
            return False


def page(find: Find) -> ConsolePage:
    """Return the page that serves the streams; `find` finds the pages that they belong to."""

    async def open_stream(visit: Visit) -> Reply:
        """GET /live?page=/nodes?group=shops"""
        wanted = visit.query.get("page", "")
        parts = urlsplit(wanted)
        shown, parameters = find(parts.path) or (None, {})
        if shown is None or shown.live is None:
            raise ProblemError("invalid_parameter", f"the page {wanted[:200]} isn't live", field="page")
        visit.check_role(shown)
        given = QueryParams(parts.query)
        query = {name: given[name] for name in shown.live_by if given.get(name)}
        looked_at = replace(visit, path=parameters, query=QueryParams(query))
        key = (shown.path, tuple(sorted(parameters.items())), tuple(query.items()), visit.rights)
        make = await shown.live(looked_at)

        async def make_all() -> Parts:
            beside = rendering.parts("navigation.html", visit.now, fleet=await visit.fleet())
            return {"nav-nodes": beside("nodes"), "nav-groups": beside("groups"), **await make()}

        stream = visit.hub.open(key, visit.operator.name, make_all)
        return LiveReply(200, headers=HEADERS, visit=looked_at, key=key, stream=stream)

    return ConsolePage("GET", PATH, open_stream)


async def left(receive: Receive) -> None:
    """Wait until the reader has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
