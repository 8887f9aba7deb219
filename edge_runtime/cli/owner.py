"""Whose a state directory is: files that another user makes there would be closed to the node."""

import os
import pwd
from pathlib import Path


def told_owner(state: Path) -> str:
    """Return why this process's user isn't to work with the state directory, and what to do: it is of another user.
    Empty where it is this user's. Raises: OSError, when there is no such folder."""
    owner = state.stat().st_uid
    if owner == os.geteuid():
        return ""
    who = user_name(owner)
    given = who if who != str(owner) else f"'#{owner}'"
    return f"{state} belongs to the user {who}: run this as {who}, with `sudo -u {given} skerry-edge …`"


def user_name(user: int) -> str:
    """The name of a user id, or the id where it has none."""
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
