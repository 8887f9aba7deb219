"""Whether the services that control needs answer. Anybody may ask, so services are probed once a second at most."""

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable
from uuid import uuid4

from control.clock import Clock
from control.problems import ProblemError
from control.storage.bucket_owner import Ownership
from control.storage.database import Database

KNOWN_FOR = 1.0
"""Seconds for which a service's answer is reused."""
PATIENCE = 2.0
"""Seconds that a request to /readyz waits for a service."""
BELIEVED_FOR = 10.0
"""Seconds for which a service's last answer counts while the next one is late."""
ANSWER_LIMIT = 3.0
"""Seconds after which a probe of a service is abandoned and repeated."""

log = logging.getLogger("skerry.readiness")


class ServiceProbe:
    """Whether one service answers: it is probed in the background, one request at a time."""

    def __init__(self, name: str, ask: Callable[[], Awaitable[None]], clock: Clock) -> None:
        self._name = name
        self._ask = ask
        self._clock = clock
        self._asking: asyncio.Task[None] | None = None
        self._answered_at = -math.inf
        self._wrong = ""

    async def wrong(self) -> str:
        """Return what is wrong with the service, or ''; wait for `PATIENCE` at most."""
        if self._clock.monotonic() - self._answered_at < KNOWN_FOR:
            return self._wrong
        if self._asking is None:
            self._asking = asyncio.create_task(self._question())
        with contextlib.suppress(TimeoutError):
            async with self._clock.timeout(PATIENCE):
                await asyncio.wait({self._asking})
        if self._clock.monotonic() - self._answered_at > BELIEVED_FOR:
            return f"{self._name} hasn't answered yet"
        return self._wrong

    async def close(self) -> None:
        """Cancel a probe under way."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _question(self) -> None:
        try:
            async with self._clock.timeout(ANSWER_LIMIT):
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
        self._wrong, self._answered_at = wrong, self._clock.monotonic()


class Readiness:
    """Whether the metadata database takes writes and the artifact store answers."""

    def __init__(self, db: Database, ownership: Ownership, clock: Clock) -> None:
        row = f"ready {uuid4()}"
        self._probes = (
            ServiceProbe("the metadata database", lambda: db.ready(row, clock.now()), clock),
            ServiceProbe("the artifact store", ownership.ready, clock),
        )

    async def check(self) -> None:
        """Check the services. Raises: ProblemError not_ready, within `PATIENCE` seconds, when one doesn't answer."""
        wrong = [text for text in await asyncio.gather(*(probe.wrong() for probe in self._probes)) if text]
        if wrong:
            raise ProblemError("not_ready", "; ".join(wrong))

    async def close(self) -> None:
        """Cancel the probes under way."""
        await asyncio.gather(*(probe.close() for probe in self._probes))
