"""The request of a tick, and which tick an author means who starts one by hand. Pure."""

from datetime import UTC, datetime
from typing import Literal

from control.protocol.manifest import TICK_HEADERS, Manifest

Event = Literal["schedule", "release"]


class TickUnfit(ValueError):
    """A tick that the function's manifest doesn't have; the message says why."""


def headers(cron: str, at: float) -> list[tuple[str, str]]:
    """Return the headers of a tick's request, POST /. `cron` is empty for a call after a release; `at` is when the
    tick is due, in Unix seconds, of which a fraction is dropped."""
    values = "schedule" if cron else "release", time_text(at), cron
    return [(name, value) for name, value in zip(TICK_HEADERS, values, strict=True) if value]


def time_text(seconds: float) -> str:
    """Return a time as RFC 3339, in UTC and whole seconds."""
    return datetime.fromtimestamp(int(seconds), UTC).isoformat().replace("+00:00", "Z")


def chosen(name: str, manifest: Manifest, event: Event, cron: str) -> str:
    """Return the line of which the function `name` is to have a tick; empty for a call after a release. `cron` is the
    line that was named; without one it is the function's only one.

    Raises: TickUnfit.
    """
    lines = manifest.schedule
    if event == "release":
        if cron:
            raise TickUnfit("a call after a release has no cron line")
        if not manifest.on_release:
            raise TickUnfit(f"{name} isn't called after releases: its manifest has no on_release = true")
        return ""
    if not lines:
        raise TickUnfit(f"{name} has no schedule in its manifest, so it has no ticks")
    if not cron and len(lines) == 1:
        return lines[0]
    if cron not in lines:
        wrong = f"{name}'s schedule has no line {cron}" if cron else f"{name}'s schedule has several lines: say which"
        raise TickUnfit(f"{wrong} (there are {'; '.join(lines)})" if len(lines) > 1 else f"{wrong}, only {lines[0]}")
    return cron
