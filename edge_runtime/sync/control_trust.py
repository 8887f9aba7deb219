"""The CAs by which the node trusts control, and how it follows when control changes them (ADR 56).

Answers to polls say which CAs control distributes. The node fetches them over a connection that it trusts, and adopts
them only once it has reached control with them alone: a mistake in control must not lock it out.
"""

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from edge_runtime import clock, files
from edge_runtime.sync import authorities, identity
from edge_runtime.sync.control_client import ControlClient, ControlRefused, NoAnswer

SYSTEM: Final = "system"
"""Replaces a digest if the node trusts the CAs of its system."""
SPREAD: Final = 30.0
"""Seconds within which the nodes of a fleet fetch new CAs."""
DROP_AFTER: Final = 600.0
"""Seconds for which control must name the same CAs before the node drops one: its replicas are changed in turn, and
name different ones meanwhile."""
AGAIN: Final = 60.0
"""Seconds until CAs that couldn't be adopted are tried again."""
SOON: Final = timedelta(days=30)
"""How long before the last CA expires the warnings begin."""
REMIND: Final = 86_400.0
"""Seconds between two log lines about that."""

log = logging.getLogger("skerry.agent")


class ControlTrust:
    """The file ca.pem of a state directory."""

    def __init__(
        self, state: Path, *, drop_after: float = DROP_AFTER, jitter: Callable[[], float] = random.random
    ) -> None:
        self.error = ""
        """Why the CAs that control distributes aren't adopted, if they aren't."""
        self.digest = SYSTEM
        """Identifies the CAs that the node trusts (`authorities.digest`), or `SYSTEM`."""
        self.ends: float | None = None
        """When the last of them expires (Unix seconds); None if unknown."""
        self._state = state
        self._drop_after = drop_after
        self._jitter = jitter
        self._known: frozenset[str] = frozenset()
        self._told, self._since, self._due = "", 0.0, 0.0
        self._reminded = float("-inf")
        self._stamp: tuple[int, ...] = ()
        self.read()

    def read(self) -> None:
        """Read the file again."""
        path = self._state / "ca.pem"
        self._stamp = files.stamp(path)
        try:
            pem = authorities.read(path) if path.exists() else ""
        except OSError:
            # Opening a connection will report it.
            return
        self._known = frozenset(authorities.ders(pem))
        self.digest, self.ends = authorities.digest(pem) or SYSTEM, authorities.last_end(pem) if pem else None

    def changed(self) -> bool:
        """Reread the file if somebody else changed it, and return whether they did."""
        if files.stamp(self._state / "ca.pem") == self._stamp:
            return False
        self.read()
        return True

    def cure(self, message: str) -> str:
        """Return the text for people when control's certificate isn't trusted: `message`, and what to do."""
        return (
            f"{message}. If control's CA was changed while this node couldn't hear of it, run here, with the "
            f"fingerprint that `skerry ca` shows: skerry-edge trust FINGERPRINT --state {self._state}"
        )

    def status(self) -> dict[str, Any]:
        """Return the part of /_skerry/status about it."""
        return {
            "digest": self.digest,
            "ends_at": _shown(self.ends) if self.ends is not None else None,
            "ends_soon": self._left() < SOON.total_seconds(),
            "told": self._told or None,
            "error": self.error or None,
        }

    async def follow(self, client: ControlClient, url: str) -> bool:
        """Act on what control, at `url`, said in its last answer; return whether other CAs are trusted now."""
        self._tell_end()
        told, now = client.trust, clock.monotonic()
        if told in ("", self.digest):
            self._told, self.error = "", ""
            return False
        if told != self._told:
            self._told, self._since = told, now
            self._due = now + self._jitter() * SPREAD
        if now < self._due:
            return False
        self._due = now + AGAIN
        try:
            return await self._take(client, url, told, now)
        except (NoAnswer, ControlRefused, ValueError, OSError) as error:
            text = getattr(error, "message", None) or str(error)
            if text != self.error:
                log.error("the CAs that control gives out aren't taken, those before stay: %s", text)
            self.error = text
            return False

    async def _take(self, client: ControlClient, url: str, told: str, now: float) -> bool:
        """Fetch, check and keep the CAs. Raises: ValueError, NoAnswer, ControlRefused, OSError, when they can't be."""
        pem = await client.authorities()
        check(pem)
        if authorities.digest(pem) != told:
            # Another replica answered, which hasn't changed them yet, or has changed them again.
            self._due = now
            return False
        given_up = self._known - authorities.ders(pem).keys()
        if given_up and now - self._since < self._drop_after:
            self._due = self._since + self._drop_after
            return False
        candidate = self._state / "ca.pem.told"
        await asyncio.to_thread(files.write, candidate, pem.encode(), 0o644)
        try:
            async with ControlClient(url, candidate, client.credential) as other:
                await other.authorities()
        except NoAnswer as error:
            raise ValueError(f"by them alone control can't be reached: {error.message}") from None
        finally:
            await asyncio.to_thread(files.remove, candidate)
        if self.changed():
            # The node has joined again, perhaps another control, or a person has chosen a CA: that takes precedence.
            client.trust_again(identity.ca_path(self._state))
            return True
        await asyncio.to_thread(files.write, self._state / "ca.pem", pem.encode(), 0o644)
        self.read()
        client.trust_again(identity.ca_path(self._state))
        self._told, self.error = "", ""
        log.info("the node trusts other CAs of control's now, %d of them; %d given up", len(self._known), len(given_up))
        return True

    def _left(self) -> float:
        return float("inf") if self.ends is None else self.ends - time.time()

    def _tell_end(self) -> None:
        """Log the expiry of the last CA when it is near or past, once a day."""
        left = self._left()
        if left < SOON.total_seconds() and time.time() - self._reminded >= REMIND:
            self._reminded = time.time()
            assert self.ends is not None  # noqa: S101
            level, ends = (logging.ERROR, "ended") if left <= 0 else (logging.WARNING, "ends")
            text = "the last CA that the node trusts control by %s at %s: have another one given out at control"
            log.log(level, text, ends, _shown(self.ends))


def check(pem: str) -> None:
    """Check that a text has certificates in PEM. Raises: ValueError."""
    if not authorities.digest(pem):
        raise ValueError("there is no certificate in PEM in what control answers at /v1/ca")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except ssl.SSLError as error:
        raise ValueError(f"what control answers at /v1/ca can't be used: {error}") from None


def _shown(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
