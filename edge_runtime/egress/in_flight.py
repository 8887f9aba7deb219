"""The HTTP requests under way for running calls: begun when a worker asks, given up when the worker ends."""

import asyncio
import logging

from edge_runtime.dispatch.call import Call
from edge_runtime.dispatch.worker_link import WorkerLink
from edge_runtime.egress.http_client import HttpClient
from edge_runtime.ipc import frames, http_messages
from edge_runtime.ipc.http_messages import NotFetched

log = logging.getLogger("skerry.egress")


class RequestsInFlight:
    """Makes requests while `run` is running."""

    def __init__(self, egress: HttpClient) -> None:
        self._egress = egress
        self._group: asyncio.TaskGroup | None = None
        self._waiting: set[WorkerLink] = set()
        """The workers that wait for an answer, each for one."""

    async def run(self) -> None:
        """Serve until cancelled; requests that are under way then are given up."""
        async with self._egress, asyncio.TaskGroup() as group:
            self._group = group
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._group = None

    def begin(self, link: WorkerLink, call: Call, request: bytes) -> None:
        """Begin an HTTP request for a running call; its answer is sent to the worker later. Never raises."""
        if self._group is None or link in self._waiting:
            # An honest worker asks for one request at a time.
            why = "The node is being stopped." if self._group is None else "The last request isn't answered yet."
            link.send(call.id, frames.HTTP_ANSWER, b"", _refused("http_failed", why))
            return
        self._waiting.add(link)
        task = self._group.create_task(self._answer(link, call, call.id, request))

        def give_up(_: object) -> None:
            task.cancel()

        def ended(_: object) -> None:
            link.ended.remove_done_callback(give_up)
            self._waiting.discard(link)

        # A worker does nothing else while it waits: its call can end before the answer only if the worker ends.
        link.ended.add_done_callback(give_up)
        task.add_done_callback(ended)

    async def _answer(self, link: WorkerLink, call: Call, id: int, request: bytes) -> None:
        served = call.served
        try:
            traceparent = call.traced.request() if call.traced is not None else ""
            answer = await self._egress.fetch(served.function.manifest.http, request, call.sends, traceparent)
        except NotFetched as error:
            if error.denied:
                served.tally.deny(error.denied)
            answer = _refused(error.code, str(error))
        except Exception:
            log.exception("a request of %s failed in a way that nobody foresaw", served.function.name)
            answer = _refused("http_failed", "The edge runtime made a mistake; the node's log has more.")
        # Before the answer is sent: the next request may come before this task's end is known.
        self._waiting.discard(link)
        if not link.ended.done():
            link.send(id, frames.HTTP_ANSWER, b"", answer)


def _refused(code: str, message: str) -> bytes:
    return http_messages.parcel(http_messages.refused(code, message))
