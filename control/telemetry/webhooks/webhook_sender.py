"""Sends messages to webhooks: one replica at a time does it, under a lease, one message at a time to each webhook.

A message is sent until its receiver has taken it, at growing intervals, for `GIVE_UP` at most. How an attempt ended is
recorded after it, so a message whose record was lost (a killed replica) is sent again, with the same id.
"""

import asyncio
import contextlib
import logging
import math
import random
from datetime import datetime, timedelta
from typing import NamedTuple

from control.clock import Clock
from control.log_throttle import Outage
from control.metrics import ControlMetrics
from control.problems import ProblemError
from control.protocol.counts import counted
from control.storage import audit_log, queries
from control.storage.audit_log import Actor
from control.storage.connection import Connection
from control.storage.database import Database
from control.sync.leases import Leases
from control.telemetry.webhooks import webhook_signature
from control.telemetry.webhooks.webhook_client import GONE, TIME_LIMIT, Attempt, WebhookClient
from control.telemetry.webhooks.webhook_messages import Messages, Webhook

PERIOD = 1.0
"""Seconds between two checks for messages to send."""
LEASE = timedelta(seconds=30)
TAKE_EVERY = 5.0
"""Seconds between two attempts to take the lease or to renew it."""
FIRST_PAUSE, FACTOR, LONGEST_PAUSE = 5.0, 4.0, 3600.0
"""Seconds before a message is sent again, growing by the factor with each attempt."""
JITTER = 0.2
"""The share by which a pause is longer or shorter, at random."""
GIVE_UP = timedelta(days=1)
"""How long a message is tried."""
KEPT = timedelta(days=7)
"""How long a message is listed after its end."""
CLEAN_EVERY = 600.0
CLEAN_LIMIT = 500
"""Rows that one statement deletes."""
DROP_LIMIT = 1.0
"""Seconds that the end of the process waits for the lease to be given back; it expires in any case."""

ACTOR = Actor("control", "webhooks")

log = logging.getLogger("skerry.webhooks")


class DueMessage(NamedTuple):
    """A message that is to be sent now."""

    id: str
    body: str
    created_at: datetime
    attempts: int


SQL = queries.load("webhooks")
WEBHOOKS = SQL.rows("all_webhooks", Webhook)
DUE = SQL.value("due", str)
NEXT_DUE = SQL.rows("next_due", DueMessage)
END_WEBHOOK = SQL.optional("end_webhook", str)


class WebhookSender:
    """One replica's sender, which works while it has the lease."""

    def __init__(self, db: Database, clock: Clock, metrics: ControlMetrics, client: WebhookClient) -> None:
        self._db = db
        self._clock = clock
        self._metrics = metrics
        self._client = client
        self._leases = Leases(db, clock)
        self._messages = Messages(db, clock)
        self._held_until = -math.inf
        """Until when no other replica sends, in the clock's `monotonic`."""
        self._next_take = -math.inf
        self._next_clean = -math.inf
        self._busy: dict[str, asyncio.Task[None]] = {}
        """What is being sent, by the id of the webhook."""
        self._outage = Outage(log, "webhooks can't be looked after, and are tried again")

    async def run(self) -> None:
        """Send until cancelled; then give the lease back. What is under way is given up, and sent again by others."""
        async with self._client, asyncio.TaskGroup() as group:
            try:
                while True:
                    await self._try(group)
                    await self._clock.sleep(PERIOD)
            finally:
                for task in self._busy.values():
                    task.cancel()
                with contextlib.suppress(TimeoutError, ProblemError):
                    async with self._clock.timeout(DROP_LIMIT):
                        await self._leases.give_back()

    async def _try(self, group: asyncio.TaskGroup) -> None:
        try:
            await self._look(group)
            self._outage.worked()
        except ProblemError as problem:
            self._outage.failed(problem.detail)

    async def _look(self, group: asyncio.TaskGroup) -> None:
        """Make messages of what happened, and begin to send those that are due."""
        webhooks = {webhook.id: webhook for webhook in await self._db.read(lambda conn: conn.fetch(WEBHOOKS))}
        if not webhooks:
            return
        passed = self._clock.monotonic()
        if passed >= self._next_take:
            held = await self._leases.take("webhooks", LEASE)
            self._held_until = passed + LEASE.total_seconds() if held else -math.inf
            self._next_take = passed + TAKE_EVERY
        if passed >= self._held_until - TIME_LIMIT:
            return
        now = self._clock.now()
        await self._messages.make([*webhooks.values()], now)
        for id in await self._db.read(lambda conn: conn.column(DUE, now)):
            if id in webhooks and id not in self._busy:
                self._busy[id] = task = group.create_task(self._send(webhooks[id]))
                task.add_done_callback(lambda _, id=id: self._busy.pop(id))  # type: ignore[misc]
        if passed >= self._next_clean:
            before = now - KEPT
            while await self._write("old_deliveries", before, CLEAN_LIMIT) == f"DELETE {CLEAN_LIMIT}":
                pass
            self._next_clean = passed + CLEAN_EVERY

    async def _send(self, webhook: Webhook) -> None:
        """Send what is due to a webhook, while no other replica does."""
        # The next replica that takes the lease must not find an attempt of this one under way.
        while self._clock.monotonic() < self._held_until - TIME_LIMIT:
            now = self._clock.now()
            try:
                due = await self._db.read(lambda conn, now=now: conn.fetchrow(NEXT_DUE, webhook.id, now))  # type: ignore[misc]
                if due is None:
                    return
                body = due.body.encode()
                headers = webhook_signature.headers(webhook.secret, due.id, int(now.timestamp()), body)
                attempt = await self._client.post(webhook.url, headers, body)
                if attempt.status == GONE:
                    await self._end(webhook)
                    return
                await self._record(webhook, due, attempt)
            except ProblemError as problem:
                # The message is sent again, unless another replica has taken over.
                self._outage.failed(problem.detail)
                return

    async def _record(self, webhook: Webhook, due: DueMessage, attempt: Attempt) -> None:
        now = self._clock.now()
        key = webhook.id, due.id, due.attempts
        if not attempt.error:
            await self._write("attempted", *key, "delivered", now, now, attempt.status, "")
            self._metrics.webhook("delivered")
            if due.attempts:
                # The receiver is back: nothing has to wait for it any more.
                await self._write("hurry", webhook.id, now)
            return
        pause = max(pause_after(due.attempts + 1), min(attempt.wait, LONGEST_PAUSE))
        next_at = now + timedelta(seconds=pause)
        if next_at - due.created_at <= GIVE_UP:
            await self._write("attempted", *key, "waiting", next_at, None, attempt.status, attempt.error)
            self._metrics.webhook("failed")
            log.info("webhook %s, message %s: %s; again in %.0f s", webhook.name, due.id, attempt.error, pause)
            return
        await self._write("attempted", *key, "given_up", now, now, attempt.status, attempt.error)
        self._metrics.webhook("given_up")
        log.warning(
            "webhook %s: message %s is given up after %s: %s",
            webhook.name,
            due.id,
            counted(due.attempts + 1, "attempt"),
            attempt.error,
        )

    async def _end(self, webhook: Webhook) -> None:
        """End a webhook whose receiver answered that it is gone, and give up what waits for it."""
        now = self._clock.now()

        async def work(conn: Connection) -> bool:
            if await conn.fetchval(END_WEBHOOK, webhook.id, now) is None:
                return False
            await conn.execute(SQL["give_up"], webhook.id, now, f"the receiver answered {GONE}: it is gone")
            await audit_log.record(conn, now, ACTOR, "webhook.end", webhook.name, {"status": GONE})
            return True

        if await self._db.transaction(work):
            self._metrics.webhook("given_up")
            log.warning(
                "webhook %s gets no more messages: its receiver answered %d; remove it, or remove it and add it again",
                webhook.name,
                GONE,
            )

    async def _write(self, query: str, *arguments: object) -> str:
        return await self._db.transaction(lambda conn: conn.execute(SQL[query], *arguments))


def pause_after(attempts: int) -> float:
    """Return the seconds to wait after so many failed attempts."""
    pause = min(FIRST_PAUSE * FACTOR ** min(attempts - 1, 20), LONGEST_PAUSE)
    return pause * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311
