"""Takes the values of the node's secrets out of text: out of its log and records, of errors, and of what control is
told. A value that is written in another form (base64, percent-encoded, in pieces over two calls) isn't found."""

import logging
import re
from collections.abc import Mapping
from typing import Final

LEAST: Final = 4
"""Characters that a value must have to be looked for: a shorter one is in too many words."""
LINE: Final = 16
"""Characters that a line of a value of several lines must have to be looked for by itself, as those of a key have."""


class Redactor:
    """Knows the values that the node's file of secrets has had since the start: running calls may have an earlier
    one."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        """Names of the secrets, by their values and the lines of these."""
        self._pattern: re.Pattern[str] | None = None

    def forget(self) -> None:
        """Know no values any more: of a node that has ended."""
        self._names, self._pattern = {}, None

    def know(self, values: Mapping[str, Mapping[str, str]]) -> None:
        """Take out these values, by function and name, from now on."""
        for table in values.values():
            for name, value in table.items():
                lines = [line for line in value.splitlines() if len(line) >= LINE and not line.startswith("-----")]
                for text in (value, value.strip(), *lines):
                    if len(text) >= LEAST:
                        self._names.setdefault(text, name)
        if self._names:
            longest_first = sorted(self._names, key=len, reverse=True)
            self._pattern = re.compile("|".join(map(re.escape, longest_first)))

    def __call__(self, text: str, *, cut: bool = False) -> str:
        """Return the text with `[secret NAME]` in the place of values; `cut`: the text may end in the middle of one."""
        if self._pattern is None:
            return text
        if any(map(text.__contains__, self._names)):
            text = self._pattern.sub(lambda match: f"[secret {self._names[match[0]]}]", text)
        return self._without_start(text) if cut else text

    def _without_start(self, text: str) -> str:
        """Return a text without the beginning of a value at its end."""
        # The cut may have gone through a character; a replacement mark stands for its first bytes.
        sound = text.rstrip("\ufffd")
        for value, name in self._names.items():
            for length in range(min(len(value) - 1, len(sound)), LEAST - 1, -1):
                if sound.endswith(value[:length]):
                    return f"{sound[:-length]}[secret {name}]"
        return text


redact: Final = Redactor()
"""The process's own, as its log is: the front's file of secrets is one."""


class RedactedRecord(logging.LogRecord):
    """A line of the log, without the values of secrets. What it says of an exception is left to the formatter."""

    def getMessage(self) -> str:
        return redact(super().getMessage())
