"""Errors with a stable code, which several folders raise and catch."""


class SyncFailed(Exception):
    """A sync can't go on: `code` is stable (docs/errors.md), `message` says what happened, to what, and what to do."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.held = 0.0
        """Seconds for which the attempt kept calls waiting."""
