"""What anybody may ask: is it alive, is it ready, its counters, its CA."""

import asyncio
import time

from control import answers
from control import metrics as counters
from control.calls import Answer, Call
from control.database import Database
from control.problems import ProblemError
from control.store import Store

KNOWN_FOR = 1.0
"""Seconds."""


async def healthz(call: Call) -> Answer:
    """GET /healthz: the process answers; nothing else is looked at."""
    return Answer(200, answers.Health("ok"))


class Readiness:
    """Whether the services answer, asked once a second at most: anybody may ask us."""

    def __init__(self, db: Database, store: Store) -> None:
        self._db = db
        self._store = store
        self._asking = asyncio.Lock()
        self._asked_at = -KNOWN_FOR
        self._wrong: ProblemError | None = None

    async def check(self) -> None:
        """Raises `ProblemError` for a service that didn't answer."""
        async with self._asking:
            if time.monotonic() - self._asked_at >= KNOWN_FOR:
                self._wrong = None
                try:
                    await self._db.ready()
                    await self._store.ready()
                except ProblemError as error:
                    self._wrong = error
                self._asked_at = time.monotonic()
        if self._wrong is not None:
            raise ProblemError("not_ready", self._wrong.detail)


async def readyz(call: Call) -> Answer:
    """GET /readyz: the metadata database and the artifact store answer, and the targets are known."""
    await call.services.readiness.check()
    if not call.services.fleet.fresh:
        raise ProblemError("not_ready", "the targets haven't been read lately")
    return Answer(200, answers.Health("ready"))


async def metrics(call: Call) -> Answer:
    """GET /metrics."""
    return Answer(200, call.services.metrics.render(), ((b"content-type", counters.CONTENT_TYPE.encode()),))


async def ca(call: Call) -> Answer:
    """GET /v1/ca, PEM: to be compared with the fingerprint in the join token before it is trusted."""
    if not call.services.ca_pem:
        raise ProblemError("unknown_ca", "the certificate is to be trusted as the system does; no CA is given out")
    return Answer(200, call.services.ca_pem, ((b"content-type", b"application/x-pem-file"),))
