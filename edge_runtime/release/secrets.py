"""The values of functions' secrets, which are in a private file of the node and go to its workers alone.

The file is TOML with a table for each function: `[orders]`, `API_KEY = "…"`. Values are in no message but
`frames.Load`, `frames.Apply` and `frames.Try`, and in no log, error, status or `repr`.
"""

import contextlib
import os
import re
import stat
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from control import wire
from edge_runtime.ipc.frames import ChildFailure, LocalFunction

FILE: Final = "secrets.toml"
"""Name of the file in the state directory, if the setting names no other file."""
SIZE_LIMIT: Final = 1024 * 1024
"""Bytes that the file may have."""
VALUE_LIMIT: Final = 65_536
"""Characters that a value may have."""

_AT: Final = re.compile(r"at (line \d+, column \d+|end of document)")

Values = dict[str, dict[str, str]]
"""The values by function and name."""


class SecretsUnfit(Exception):
    """The file can't be used; the message says why, and never a value."""


def parse(text: bytes, where: str) -> Values:
    """Return the values in a file's content. Raises: SecretsUnfit, when it isn't as it must be."""
    try:
        tables = tomllib.loads(text.decode())
    except UnicodeDecodeError:
        raise SecretsUnfit(f"{where} is not in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        # Without the error's own words: a value could be in them.
        at = _AT.search(str(error))
        raise SecretsUnfit(f"{where} is no valid TOML{f' ({at[0]})' if at else ''}") from None
    for function, table in tables.items():
        if not isinstance(table, dict) or not wire.NAME.fullmatch(function):
            raise SecretsUnfit(f"{where} must have a table for each function, [NAME]; {function[:63]} is none")
        for name, value in table.items():
            if not isinstance(value, str) or "\0" in value or len(value) > VALUE_LIMIT:
                raise SecretsUnfit(
                    f"in {where}, {name[:63]} of {function} must be a string of {VALUE_LIMIT} characters at most, "
                    "without NUL"
                )
    return tables


def read(path: Path) -> Values:
    """Return the values in a file, which its owner alone may be able to read. Raises: SecretsUnfit;
    FileNotFoundError."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SecretsUnfit(f"{path} can't be opened: {error.strerror}") from None
    try:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            raise SecretsUnfit(f"{path} is no regular file")
        if info.st_uid != os.geteuid():
            raise SecretsUnfit(f"{path} belongs to the user {info.st_uid}, and this node runs as {os.geteuid()}")
        if info.st_mode & 0o077:
            raise SecretsUnfit(
                f"others may use {path} (its mode is {stat.S_IMODE(info.st_mode):04o}): make it `chmod 600`, and "
                "change the values if others could have read them"
            )
        if info.st_size > SIZE_LIMIT:
            raise SecretsUnfit(f"{path} has {info.st_size} bytes; {SIZE_LIMIT} are allowed")
        return parse(os.read(handle, SIZE_LIMIT), str(path))
    finally:
        os.close(handle)


class Secrets:
    """The values as they were last read; `look` reads the file again if it has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.error = ""
        """Why the file can't be used now, if so; the values that were read before stay in use."""
        self._values: Values = {}
        self._seen: tuple[int, ...] | None = None

    def look(self) -> bool:
        """Read the file again if it has changed; return whether its values have."""
        seen: tuple[int, ...] = ()
        with contextlib.suppress(OSError):
            info = os.stat(self.path, follow_symlinks=False)
            # Times have the kernel's clock tick: two changes in one tick have the same, so other fields are compared,
            # too.
            seen = (info.st_ino, info.st_mtime_ns, info.st_ctime_ns, info.st_size, info.st_mode, info.st_uid)
        if seen == self._seen:
            return False
        before, self._seen = self._values, seen
        try:
            self._values = read(self.path)
            self.error = ""
        except FileNotFoundError:
            self._values, self.error = {}, ""
        except SecretsUnfit as unfit:
            self.error = str(unfit)
        return self._values != before

    def of(self, functions: Sequence[LocalFunction]) -> Values:
        """Return the values that the functions' manifests name and the file has."""
        return {
            f.name: {name: table[name] for name in f.manifest.secrets if name in table}
            for f in functions
            if f.manifest.secrets and (table := self._values.get(f.name)) is not None
        }

    def lacking(self, functions: Sequence[LocalFunction]) -> dict[str, ChildFailure]:
        """Return, by function, why it can't be called, if a secret that its manifest names isn't there."""
        failures = {}
        for f in functions:
            table = self._values.get(f.name, {})
            names = [name for name in f.manifest.secrets if name not in table]
            if names:
                needs = f"The function {f.name} needs the secret {', '.join(names)}"
                if self.error:
                    failures[f.name] = ChildFailure(
                        "secrets_unfit", f"{needs}, and the file can't be used: {self.error}."
                    )
                else:
                    text = f"{needs}, which this node lacks: put it into {self.path}, in the table [{f.name}]."
                    failures[f.name] = ChildFailure("secret_missing", text)
        return failures
