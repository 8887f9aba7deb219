"""Formatting of values on pages: counts, shares, times, durations, sizes, digests."""

from datetime import UTC, datetime

from markupsafe import Markup

from control.protocol.counts import counted

UNKNOWN = "\u2013"
"""Shown for a value that isn't known, which is never shown as 0."""


def num(count: int | None) -> str:
    """Return a count: 10,000."""
    return UNKNOWN if count is None else f"{count:,}"


def share(part: int, whole: int) -> str:
    """Return a part as a share of `whole`: 5.8 %. Below 0.01 %, return the part itself."""
    if not whole:
        return UNKNOWN
    per_cent = part / whole * 100
    return num(part) if 0 < per_cent < 0.01 else f"{_figures(per_cent)} %"


def ratio(value: float | None) -> str:
    """Return a share that was measured: 5.8 %."""
    return UNKNOWN if value is None else f"{_figures(value * 100)} %"


def rate(value: float | None) -> str:
    """Return a rate or a large count in three digits: 18.4 k."""
    if value is None:
        return UNKNOWN
    for bound, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= bound:
            return f"{value / bound:.3g} {unit}"
    return f"{value:.3g}"


def size(count: int | None) -> str:
    """Return a number of bytes: 412 MB."""
    if count is None:
        return UNKNOWN
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" else f"{_figures(value)} {unit}"
        value /= 1000
    return f"{_figures(value)} TB"


def duration(seconds: float | None) -> str:
    """Return a duration: 41 ms, 6.4 s, 3.2 min."""
    if seconds is None:
        return UNKNOWN
    if seconds < 1:
        return f"{_figures(seconds * 1000)} ms"
    if seconds < 120:
        return f"{_figures(seconds)} s"
    return relative(seconds)


def relative(seconds: float) -> str:
    """Return an age in one unit: seconds to 60, minutes to 120, hours to 48, then days."""
    if seconds < 60:
        return f"{int(seconds)} s"
    if seconds < 7200:
        return f"{int(seconds // 60)} min"
    if seconds < 172800:
        return f"{int(seconds // 3600)} h"
    return f"{int(seconds // 86400)} d"


def ago(at: datetime | None, now: datetime) -> Markup:
    """Return a time relative to now: `14 min ago`, `now`, `in 2 min`; the full time is its title."""
    if at is None:
        return Markup('<span class="zero">never</span>')
    seconds = (now - at).total_seconds()
    text = f"{relative(seconds)} ago" if seconds >= 0 else f"in {relative(-seconds)}"
    text = "now" if abs(seconds) < 1 else text
    at = at.astimezone(UTC)
    return Markup('<time datetime="{}" title="{} UTC" data-ago>{}</time>').format(
        at.isoformat(timespec="seconds"), f"{at:%Y-%m-%d %H:%M:%S}", text
    )


def clock(at: datetime) -> Markup:
    """Return an absolute time: 2026-11-28 06:00:12 UTC."""
    at = at.astimezone(UTC)
    return Markup('<time datetime="{}">{} UTC</time>').format(
        at.isoformat(timespec="milliseconds"), f"{at:%Y-%m-%d %H:%M:%S}"
    )


def sha(digest: str) -> Markup:
    """Return the first twelve digits of a sha256, with the whole as its title."""
    return Markup('<code class="sha" title="{}">{}</code>').format(digest, digest[:12])


def cut(text: str, length: int = 300) -> str:
    """Return text from a node or an operator, cut to a maximum length."""
    return text if len(text) <= length else text[: length - 1] + "…"


def plural(count: int, word: str) -> str:
    """Return a count with its noun: `1 node`, `2 nodes`."""
    return counted(count, word)


def _figures(value: float) -> str:
    """Return a number in two or three digits."""
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2g}"
