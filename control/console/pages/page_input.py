"""What a page reads from its request: path parameters, a name in the query, a form's key and confirmations."""

import re

from control.api import request_input
from control.console.visits import Visit
from control.problems import ProblemError
from control.protocol import wire

KEY = re.compile(r"[A-Za-z0-9_-]{8,100}")


def form_key(visit: Visit) -> str:
    """Return a form's idempotency key: a form sent twice acts once. Raises: ProblemError invalid_body."""
    key = visit.form.get("key", "")
    if not KEY.fullmatch(key):
        raise ProblemError("invalid_body", "the form has no key: open its page again, and send it from there")
    return key


def refuse_untyped(visit: Visit, name: str) -> None:
    """Refuse an action whose `name` wasn't typed into the form. Raises: ProblemError invalid_body."""
    if visit.form.get("typed", "").strip() != name:
        raise ProblemError("invalid_body", f"type {name} to confirm it: nothing was done", field="typed")


def flag(text: str | None) -> bool:
    """Return whether a box is ticked."""
    return text == "yes"


def path_of(visit: Visit) -> dict[str, object]:
    """Return the parameters in the path, checked as in the API. Raises: ProblemError."""
    return {name: request_input.path_value(name, text) for name, text in visit.path.items()}


def wire_name(text: str, field: str) -> str | None:
    """Return a name in the query; None if it isn't given. Raises: ProblemError, when it isn't a name."""
    if not text:
        return None
    found: str = request_input.convert({field: text}, dict[str, wire.Name], "invalid_parameter")[field]
    return found
