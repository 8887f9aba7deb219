"""Settings that can change while control runs: those in the file SKERRY_SETTINGS_FILE, which is read again.

The file has NAME=VALUE lines, like systemd's EnvironmentFile. It overrides the environment; when a line is removed, the
environment's value applies again.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import replace

from control.reread_files import stamp
from control.settings import ControlSettings, ControlSettingsError, check, convert

LIVE = ("artifact_limit", "body_limit", "body_timeout", "stall_limit", "hold")
"""Settings taken from the file while running, besides the log's level; others in it apply only at the start."""
LOG_LEVEL = "SKERRY_LOG_LEVEL"
LEVELS = ("debug", "info", "warning", "error")

_LINE = re.compile(r"\s*(?:export\s+)?([A-Z][A-Z0-9_]*)\s*=\s*(.*?)\s*")

log = logging.getLogger("skerry.control")


class LiveSettings:
    """The settings in force."""

    def __init__(self, settings: ControlSettings) -> None:
        """Read the file, if `settings` name one. Raises: ControlSettingsError, when it can't be used."""
        self.error = ""
        """Why the file can't be used as it is now; '' if it can."""
        self.named: frozenset[str] = frozenset()
        """The settings in force that come from the file, by field."""
        self.has_level = False
        """Whether the log's level comes from the file."""
        self._start = settings
        self._level = logging.getLogger("skerry").level
        self._path = settings.settings_file
        self._stamp = () if self._path is None else stamp(self._path)
        self.settings = settings
        """The settings in force."""
        self._take(self._read())

    def look(self, *, anew: bool = False) -> bool:
        """Read the file again if it changed, couldn't be used, or with `anew`; return whether a setting changed."""
        if self._path is None:
            return False
        seen = stamp(self._path)
        if not (anew or self.error or seen != self._stamp):
            return False
        self._stamp, before, named = seen, self.settings, self.named
        level = logging.getLogger("skerry").level
        try:
            self._take(self._read())
        except ControlSettingsError as error:
            if anew or str(error) != self.error:
                log.error("settings: %s; what was read before stays in force", error)
            self.error = str(error)
            return False
        self.error = ""
        changed = [n for n in LIVE if getattr(self.settings, n) != getattr(before, n)]
        listed = [f"SKERRY_{name.upper()}={getattr(self.settings, name)}" for name in changed]
        if logging.getLogger("skerry").level != level:
            listed.append(LOG_LEVEL)
        if listed or named != self.named:
            log.warning("settings: %s was read again: %s", self._path, ", ".join(listed) or "nothing has changed")
        return bool(changed)

    def _take(self, values: Mapping[str, str]) -> None:
        """Put values in force. Raises: ControlSettingsError, when one can't be used: then nothing changes."""
        level = values.get(LOG_LEVEL, "")
        if level and level not in LEVELS:
            raise ControlSettingsError(f"{LOG_LEVEL} in {self._path} must be one of {', '.join(LEVELS)}, not {level!r}")
        given = {name: values[f"SKERRY_{name.upper()}"] for name in LIVE if values.get(f"SKERRY_{name.upper()}")}
        made = replace(self._start, **convert(given))
        check(made)
        self.settings = made
        self.named, self.has_level = frozenset(given), bool(level)
        logging.getLogger("skerry").setLevel(level.upper() if level else self._level)

    def _read(self) -> dict[str, str]:
        if self._path is None:
            return {}
        try:
            lines = self._path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ControlSettingsError(f"SKERRY_SETTINGS_FILE: {self._path} can't be read: {error}") from None
        values = {}
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.lstrip().startswith(("#", ";")):
                continue
            match = _LINE.fullmatch(line)
            if match is None:
                # Without the line, which may contain a secret.
                raise ControlSettingsError(f"line {number} of {self._path} isn't NAME=VALUE")
            value = match[2]
            values[match[1]] = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
        return values
