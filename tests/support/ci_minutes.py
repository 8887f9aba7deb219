"""How long each step of `.ci/run` took: a table, printed by the last one, before pytest's summary of it.

The file that `SKERRY_TEST_MINUTES` names has a line for each step: the seconds since 1970 at which it began and ended,
and its name. The last step, which is under way, has `-` for its end.
"""

import os
import time
from pathlib import Path
from typing import Final

FILE: Final = "SKERRY_TEST_MINUTES"


def table(text: str, now: float) -> list[str]:
    """The lines to print: minutes and seconds of each step, and of all from the first one's begin on.

    Steps that ran beside others count for themselves, so all of them together may be more than the last line says.
    """
    steps = [line.split(maxsplit=2) for line in text.splitlines()]
    lines = [(now if end == "-" else float(end), float(begin), name) for begin, end, name in steps]
    lines.append((now, min(begin for _, begin, _ in lines), "all of .ci/run until now"))
    return [f"{int(end - begin) // 60:4}:{int(end - begin) % 60:02}  {name}" for end, begin, name in lines]


def told() -> list[str]:
    """The table of the run that this process is the last step of; empty where it is part of none."""
    path = os.environ.get(FILE)
    return table(Path(path).read_text("utf-8"), time.time()) if path else []
