"""The file with the node's token, which is read again when it changes."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_runtime import files
from edge_runtime.settings import SHORTEST_TOKEN

log = logging.getLogger("skerry.front")


class TokenFile:
    def __init__(self, path: Path, take: Callable[[bytes], None]) -> None:
        """`take` gets the token whenever the file has a new one. The token that it had at startup is already in
        force."""
        self.path = path
        self.error = ""
        """Why the file can't be used as it is now, empty if it can: meanwhile the previous token stays in force."""
        self._take = take
        self._stamp = files.stamp(path, follow_symlinks=True)

    def look(self, *, anew: bool = False) -> None:
        """Read the file again if it has changed, couldn't be used, or `anew` is true. May be called in a separate
        thread."""
        seen = files.stamp(self.path, follow_symlinks=True)
        if seen == self._stamp and not anew and not self.error:
            return
        self._stamp = seen
        try:
            token = self.path.read_text().strip()
            unfit = "" if len(token) >= SHORTEST_TOKEN else f"has a token of less than {SHORTEST_TOKEN} characters"
        except (OSError, UnicodeDecodeError) as error:
            unfit = f"can't be read: {error.strerror if isinstance(error, OSError) else 'it is no text'}"
        if unfit:
            unfit = f"{self.path} {unfit}"
            if anew or unfit != self.error:
                log.error("token: %s; the token that was read before stays in force", unfit)
            self.error = unfit
            return
        self.error = ""
        self._take(token.encode())
        log.info("token: %s was read again", self.path)

    def status(self) -> dict[str, Any]:
        """Return the part of /_skerry/status about it."""
        return {"file": str(self.path), "error": self.error or None}
