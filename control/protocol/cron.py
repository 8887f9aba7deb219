"""Cron lines of five fields, as Debian's cron understands them, and the ticks that they mean. Pure.

A tick is one time at which a line is due, a whole minute in UTC. Where clocks are put forward, a line that names hours
and minutes and falls into the missing hour is due once, right after it; where clocks are put back, it is due once. A
line whose minutes or hours begin with a star means real time, so it is due in each hour that there is.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

FIELDS: Final = ("minute", "hour", "day of the month", "month", "day of the week")
_LIBRARYS: Final = ("minute", "hour", "day-of-month", "month", "day-of-week")
"""What the library calls the fields."""
_RANGES: Final = ("0 to 59", "0 to 23", "1 to 31", "1 to 12 or JAN to DEC", "0 to 7 or SUN to SAT")
_MACROS: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_NUMBER: Final = r"[0-9]{1,2}"
_MONTH: Final = rf"(?:{_NUMBER}|JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC)"
_WEEKDAY: Final = rf"(?:{_NUMBER}|SUN|MON|TUE|WED|THU|FRI|SAT)"


def _field(value: str) -> re.Pattern[str]:
    term = rf"(?:\*|{value}(?:-{value})?)(?:/{_NUMBER})?"
    return re.compile(rf"{term}(?:,{term})*")


_SHAPES: Final = tuple(_field(value) for value in (_NUMBER, _NUMBER, _NUMBER, _MONTH, _WEEKDAY))
_QUARTZ: Final = re.compile(r"(?<![A-Z])(?:[0-9]{1,2})?(L|W|LW)(?![A-Z])|(#)|(\?)")
"""What other schedulers understand beside cron: L (the last), W (the nearest working day), # (the nth) and ?."""
_SOME_DAY: Final = datetime(2024, 1, 1, tzinfo=UTC)
"""From when on ticks are looked at to judge a line."""
_LOOKED_AT: Final = 64


class CronUnfit(ValueError):
    """A line, or the name of a time zone, that no schedule can have; the message says why."""


def check(line: str) -> None:
    """Check a cron line. Raises: CronUnfit."""
    parts = line.split()
    if line.startswith("@"):
        instead = _MACROS.get(line.lower())
        how = f"write {instead}" if instead else "write five fields, or use on_release for a call after each release"
        raise CronUnfit(f"{line} is a name of some crons: {how}")
    if len(parts) == 6:
        raise CronUnfit(
            f"{line} has six fields; a line has five (minute, hour, day of the month, month, day of the week), as "
            "ticks are whole minutes: leave out the seconds"
        )
    if len(parts) != 5:
        raise CronUnfit(
            f"{line or 'the empty line'} isn't five fields (minute, hour, day of the month, month, day of the week), "
            "as 0 3 * * * for each day at three"
        )
    if line != " ".join(parts):
        raise CronUnfit(f"write the line with single spaces: {' '.join(parts)}")
    for part, shape, name, allowed in zip(parts, _SHAPES, FIELDS, _RANGES, strict=True):
        if shape.fullmatch(part.upper()):
            continue
        if other := _QUARTZ.search(part.upper()):
            sign = next(sign for sign in other.groups() if sign)
            instead = "write *" if sign == "?" else "have the function look at the date, and name the days that may be"
            raise CronUnfit(f"{part} in {line}: standard cron has no {sign}; {instead}")
        raise CronUnfit(f"{part} in {line} is no {name} ({allowed}; lists as 1,2, ranges as 1-5, steps as */5)")
    try:
        found = next(ticks(line, UTC, _SOME_DAY), None)
    except CronSimError as error:
        at = _LIBRARYS.index(str(error).removeprefix("Bad "))
        # The library also looks at whether any of the months is long enough.
        if at == 2 and all(int(number) in range(1, 32) for number in re.findall("[0-9]+", parts[2])):
            found = None
        else:
            raise CronUnfit(f"{parts[at]} in {line} is no {FIELDS[at]} ({_RANGES[at]})") from None
    if found is None:
        raise CronUnfit(f"{line} names a day that never comes")


def zone(name: str) -> tzinfo:
    """Return a time zone by its IANA name. Raises: CronUnfit, when this machine knows no such zone."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise CronUnfit(f"{name} is no time zone; write its IANA name, as Europe/Berlin") from None


def ticks(line: str, place: tzinfo, after: datetime) -> Iterator[datetime]:
    """Yield the ticks of a line after a time, in order, in UTC; none if the next 50 years have none.

    Raises: CronSimError, when the line isn't one.
    """
    last = after
    for found in CronSim(line, after.astimezone(place)):
        # The hour that comes twice: what names an hour is due in the first of them, which may have passed.
        tick = found.astimezone(UTC)
        if tick > last:
            last = tick
            yield tick


def ticks_before(line: str, place: tzinfo, until: datetime) -> Iterator[datetime]:
    """Yield the ticks of a line up to a time, which may itself be one, the newest first, in UTC."""
    last = until + timedelta(seconds=1)
    for found in CronSim(line, last.astimezone(place).replace(microsecond=0), reverse=True):
        tick = found.astimezone(UTC)
        if tick < last and tick <= until:
            last = tick
            yield tick


def shortest_gap(line: str) -> float:
    """Return the seconds between the two ticks that are next to each other, of the first ones that are looked at."""
    some = [tick for tick, _ in zip(ticks(line, UTC, _SOME_DAY), range(_LOOKED_AT), strict=False)]
    return min(((later - tick).total_seconds() for tick, later in pairwise(some)), default=float("inf"))
