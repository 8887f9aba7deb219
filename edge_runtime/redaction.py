"""Removes the values of the node's secrets from text: its log and records, errors, and reports to control.

A value that is written in another form (base64, percent-encoded, in pieces over two calls) isn't found.
"""

import logging
import re
from collections.abc import Mapping
from typing import Final

LEAST: Final = 4
"""The fewest characters of a value to search for: shorter ones occur in too many words."""
LINE: Final = 16
"""The fewest characters of one line of a multi-line value to search for it separately, such as a key's lines."""


class Redactor:
    """Knows all values that the node's secrets file has had since the start: running calls may use earlier ones."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        """Names of the secrets, by their values and the lines of these."""
        self._pattern: re.Pattern[str] | None = None

    def forget(self) -> None:
        """Forget all values, when the node has stopped."""
        self._names, self._pattern = {}, None

    def know(self, values: Mapping[str, Mapping[str, str]]) -> None:
        """Remove these values, given by function and name, from now on."""
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
        """Return the text with `[secret NAME]` instead of values; `cut`: the text may end in the middle of one."""
        if self._pattern is None:
            return text
        if any(map(text.__contains__, self._names)):
            text = self._pattern.sub(lambda match: f"[secret {self._names[match[0]]}]", text)
        return self._without_start(text) if cut else text

    def _without_start(self, text: str) -> str:
        """Return a text without the beginning of a value at its end."""
        # The cut may have split a character; a replacement character then stands for its first bytes.
        sound = text.rstrip("\ufffd")
        for value, name in self._names.items():
            for length in range(min(len(value) - 1, len(sound)), LEAST - 1, -1):
                if sound.endswith(value[:length]):
                    return f"{sound[:-length]}[secret {name}]"
        return text


redact: Final = Redactor()
"""The process's redactor, since its log and the front's secrets file exist only once."""


class RedactedRecord(logging.LogRecord):
    """A line of the log, without the values of secrets. The formatter handles its exception."""

    def getMessage(self) -> str:
        return redact(super().getMessage())
