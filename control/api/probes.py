"""What anybody may ask: is it alive, is it ready, its counters, its CA."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from uuid import uuid4

from control import metrics as counters
from control.api import responses
from control.api.operations import Answer, Call
from control.clock import Clock
from control.problems import ProblemError
from control.storage.bucket_owner import Ownership
from control.storage.database import Database

KNOWN_FOR = 1.0
"""Seconds for which a service's answer is given to whoever asks."""
PATIENCE = 2.0
"""Seconds that an answer to /readyz waits for a service."""
BELIEVED_FOR = 10.0
"""Seconds for which a service's last answer counts while the next one is late."""
ANSWER_LIMIT = 3.0
"""Seconds after which a question is given up, and another one is asked."""

log = logging.getLogger("skerry.readiness")


async def healthz(call: Call) -> Answer:
    """GET /healthz: the process answers; nothing else is looked at."""
    return Answer(200, responses.Health("ok"))


class Probe:
    """Whether one service answers: asked in the background, by one question at a time, and known for a second."""

    def __init__(self, name: str, ask: Callable[[], Awaitable[None]]) -> None:
        self._name = name
        self._ask = ask
        self._asking: asyncio.Task[None] | None = None
        self._answered_at = -math.inf
        self._wrong = ""

    async def wrong(self) -> str:
        """What is wrong with the service, or ''. Waits for `PATIENCE` at most."""
        if time.monotonic() - self._answered_at < KNOWN_FOR:
            return self._wrong
        if self._asking is None:
            self._asking = asyncio.create_task(self._question())
        await asyncio.wait({self._asking}, timeout=PATIENCE)
        if time.monotonic() - self._answered_at > BELIEVED_FOR:
            return f"{self._name} hasn't answered yet"
        return self._wrong

    async def close(self) -> None:
        """End a question that is under way."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _question(self) -> None:
        try:
            async with asyncio.timeout(ANSWER_LIMIT):
                await self._ask()
            wrong = ""
        except ProblemError as error:
            wrong = error.detail
        except TimeoutError:
            wrong = f"{self._name} doesn't answer within {ANSWER_LIMIT:g} s"
        finally:
            self._asking = None
        if wrong != self._wrong:
            log.warning("not ready: %s", wrong) if wrong else log.info("%s answers again", self._name)
        self._wrong, self._answered_at = wrong, time.monotonic()


class Readiness:
    """Whether the services answer. Anybody may ask us, so they are asked once a second at most."""

    def __init__(self, db: Database, ownership: Ownership, clock: Clock) -> None:
        row = f"ready {uuid4()}"
        self._probes = (
            Probe("the metadata database", lambda: db.ready(row, clock.now())),
            Probe("the artifact store", ownership.ready),
        )

    async def check(self) -> None:
        """Raises `ProblemError` for what is wrong with the services, within `PATIENCE` seconds."""
        wrong = [text for text in await asyncio.gather(*(probe.wrong() for probe in self._probes)) if text]
        if wrong:
            raise ProblemError("not_ready", "; ".join(wrong))

    async def close(self) -> None:
        """End the questions that are under way."""
        await asyncio.gather(*(probe.close() for probe in self._probes))


async def readyz(call: Call) -> Answer:
    """GET /readyz: the metadata database takes writes, the artifact store answers, and the targets are known."""
    await call.services.readiness.check()
    if not call.services.fleet.fresh:
        raise ProblemError("not_ready", "the targets haven't been read lately")
    held = call.services.ownership.held
    return Answer(200, responses.Health("ready", [] if held is None else [f"no artifact is deleted: {held.reason}"]))


async def metrics(call: Call) -> Answer:
    """GET /metrics."""
    return Answer(200, call.services.metrics.render(), ((b"content-type", counters.CONTENT_TYPE.encode()),))


async def ca(call: Call) -> Answer:
    """GET /v1/ca, PEM: to be compared with the fingerprint in the join token before it is trusted."""
    if not call.services.ca_pem:
        raise ProblemError("unknown_ca", "the certificate is to be trusted as the system does; no CA is given out")
    return Answer(200, call.services.ca_pem, ((b"content-type", b"application/x-pem-file"),))
