"""Durations as commands take them: a number and its unit, as 90d, 12h, 30m, 45s or 500ms."""

import re
from typing import Any, Final, Literal

import click

from control.protocol import renamed_options

UNITS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
"""Milliseconds of each unit."""
_DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)(ms|s|m|h|d)?")


class DurationType(click.ParamType[float, Any]):
    """A duration, as seconds or, with `of="ms"`, as milliseconds.

    `plain`: a number without a unit, which some options took in the version before, is taken as `of`, with a warning.
    """

    name = "duration"

    def __init__(
        self,
        least: float = 0,
        most: float = float("inf"),
        *,
        of: Literal["s", "ms"] = "s",
        whole: bool = False,
        plain: bool = False,
    ) -> None:
        """`least` and `most` are what may be given, in seconds. `whole`: as a whole number alone."""
        self._least, self._most = least, most
        self._of, self._whole, self._plain = of, whole, plain

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if not isinstance(value, str):
            return float(value)
        found = _DURATION.fullmatch(value)
        if found is None or not (found[2] or self._plain):
            self.fail(f"{value!r} is no duration: a number with ms, s, m, h or d behind it, such as 90d", param, ctx)
        if not found[2]:
            renamed_options.warn(f"a duration without a unit, {value},", f"written with one, {value}{self._of},")
        milliseconds = float(found[1]) * UNITS[found[2] or self._of]
        if not self._least <= milliseconds / 1000 <= self._most:
            most = "" if self._most == float("inf") else f", and {shown(self._most)} at most"
            self.fail(f"{value!r} is out of range: {shown(self._least)} at least{most}", param, ctx)
        made = milliseconds / UNITS[self._of]
        if self._whole and made != int(made):
            self.fail(f"{value!r} is no whole number of {self._of}", param, ctx)
        return int(made) if self._whole else made


def shown(seconds: float) -> str:
    """Return a duration as it is given: in the largest unit of which it is a whole number."""
    milliseconds = round(seconds * 1000)
    unit = next(unit for unit in reversed(UNITS) if milliseconds % UNITS[unit] == 0)
    return f"{milliseconds // UNITS[unit]}{unit}" if milliseconds else "0s"
