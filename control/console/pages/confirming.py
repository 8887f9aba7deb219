"""Acts: the form that shows what will be done, and asks for the name where it can't be taken back."""

import re

from control.console.visits import Visit
from control.problems import ProblemError

KEY = re.compile(r"[A-Za-z0-9_-]{8,100}")


def form_key(visit: Visit) -> str:
    """The idempotency key of a form, by which sending it twice does it once. Raises: ProblemError invalid_body."""
    key = visit.form.get("key", "")
    if not KEY.fullmatch(key):
        raise ProblemError("invalid_body", "the form has no key: open its page again, and send it from there")
    return key


def refuse_untyped(visit: Visit, name: str) -> None:
    """Raises: ProblemError invalid_body, when `name` wasn't typed into the form."""
    if visit.form.get("typed", "").strip() != name:
        raise ProblemError("invalid_body", f"type {name} to confirm it: nothing was done", field="typed")


def flag(text: str | None) -> bool:
    """Whether a box is ticked."""
    return text == "yes"
