"""Finds in a snapshot's memory what must not leave the machine where it is built: secrets, and what only this machine
has. Pure.

A secret is found wherever it is. Other values may be there by chance, as a part of other words, so they are found only
where they stand alone, and only if they have `LEAST` characters.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

LEAST: Final = 8
"""Characters of the shortest value that is looked for: shorter ones are in any memory by chance."""

_SECRET: Final = re.compile(r"(?i)(TOKEN|KEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL)S?(_|$)")
"""Names of variables that have a secret."""
_LOGIN: Final = re.compile(r"://[^/\s]*:[^/\s]+@")
"""A URL with a password."""
_NAMES: Final = {
    "USER": "your name as a user",
    "LOGNAME": "your name as a user",
    "HOME": "the path of your home folder",
}
"""Variables whose value is sought even if it is a word."""
_ORDINARY: Final = re.compile(
    r"(PATH|SHELL|_|PAGER|EDITOR|VISUAL|LANG|LANGUAGE|LC_\w+|TERM\w*|COLORTERM|LS_COLORS|XDG_SESSION_\w+)"
)
"""Names of variables that are the same on most machines."""
_WORD: Final = re.compile(r"[A-Za-z]+")
"""A value that may be in any program, such as `production`."""


class Guarded(NamedTuple):
    """A value that must not be in a snapshot."""

    name: str
    """By what name an author allows it: of the secret or variable; `HOST` and `PROJECT` for what isn't one."""
    what: str
    """What it is, for a message."""
    texts: tuple[tuple[bytes, bytes], ...]
    """The value as UTF-8 and UTF-16, each with what follows a letter in that encoding."""
    secret: bool


def guarded(
    environment: Mapping[str, str], secrets: Mapping[str, str], project: str, host: str, allowed: Collection[str]
) -> Iterator[Guarded]:
    """Yield what must not be in a snapshot that is built in this environment, except what is `allowed`. `secrets` are
    the function's; `project` is its folder, and `host` the machine's name."""
    found = [(name, f"the secret {name}", value, True) for name, value in secrets.items()]
    for name, value in environment.items():
        if _SECRET.search(name) or _LOGIN.search(value):
            found.append((name, f"the value of the variable {name}", value, True))
        elif name in _NAMES:
            found.append((name, _NAMES[name], value, False))
        elif not _ORDINARY.fullmatch(name) and not _WORD.fullmatch(value):
            found.append((name, f"the value of the variable {name}", value, False))
    found.append(("PROJECT", "the path of the project's folder", project, False))
    if host != "localhost":
        found.append(("HOST", "this machine's name", host, False))
    # Of a value that has another one in it, the longer says more.
    for name, what, value, secret in sorted(found, key=lambda each: -len(each[2])):
        if len(value) >= LEAST and name not in allowed:
            texts = (value.encode(errors="surrogateescape"), b""), (value.encode("utf-16-le", "replace"), b"\0")
            yield Guarded(name, what, texts, secret)


def leaked(memory: bytes, values: Iterable[Guarded]) -> Guarded | None:
    """Return one of the values that is in the memory; None if none is."""
    return next((each for each in values if any(_is_in(each, *text, memory) for text in each.texts)), None)


def _is_in(wanted: Guarded, value: bytes, gap: bytes, memory: bytes) -> bool:
    if value not in memory:
        return False
    letter = rb"[\w-]" + re.escape(gap)
    return wanted.secret or bool(re.search(b"(?<!%b)%b(?!%b)" % (letter, re.escape(value), letter), memory))
