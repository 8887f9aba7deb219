"""The values of functions' secrets, which are in a private file on the node and go only to its workers.

The file is TOML with a table for each function: `[orders]`, `API_KEY = "…"`. Values are in no message but
`frames.Load`, `frames.Apply`, `frames.Advance`, `frames.Try` and `frames.Repeat`, and in no log,
error, status or `repr`.
"""

import logging
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from control.protocol import wire
from edge_runtime import files
from edge_runtime.files import FileUnfit
from edge_runtime.ipc.frames import ChildFailure, LocalFunction
from edge_runtime.redaction import redact

log = logging.getLogger("skerry.secrets")

FILE: Final = "secrets.toml"
"""Name of the file in the state directory, if the setting names no other file."""
SIZE_LIMIT: Final = 1024 * 1024
"""Bytes that the file may have."""
VALUE_LIMIT: Final = 65_536
"""Characters that a value may have."""

_AT: Final = re.compile(r"at (line \d+, column \d+|end of document)")

Values = dict[str, dict[str, str]]
"""The values by function and name."""


def parse(text: bytes, where: str) -> Values:
    """Return the values in a file's content. Raises: FileUnfit, when it is invalid."""
    try:
        tables = tomllib.loads(text.decode())
    except UnicodeDecodeError:
        raise FileUnfit(f"{where} is not in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        # Without the error's own words: a value could be in them.
        at = _AT.search(str(error))
        raise FileUnfit(f"{where} is no valid TOML{f' ({at[0]})' if at else ''}") from None
    for function, table in tables.items():
        if not isinstance(table, dict) or not wire.NAME.fullmatch(function):
            raise FileUnfit(f"{where} must have a table for each function, [NAME]; {function[:63]} is none")
        for name, value in table.items():
            if not isinstance(value, str) or "\0" in value or len(value) > VALUE_LIMIT:
                raise FileUnfit(
                    f"in {where}, {name[:63]} of {function} must be a string of {VALUE_LIMIT} characters at most, "
                    "without NUL"
                )
    return tables


def read(path: Path) -> Values:
    """Return the values in a file, which must be readable only by its owner. Raises: FileUnfit; FileNotFoundError."""
    return parse(files.read_private(path, SIZE_LIMIT), str(path))


class Secrets:
    """The values as they were last read; `look` reads the file again if it has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.error = ""
        """Why the file can't be used now, empty if it can; meanwhile the previous values stay in use."""
        self.unloaded = False
        """Whether the values have changed since functions were last loaded with them."""
        self._values: Values = {}
        self._seen: tuple[int, ...] | None = None

    def look(self) -> bool:
        """Read the file again if it has changed or couldn't be used; return whether its values have changed."""
        seen = files.stamp(self.path)
        if seen == self._seen and not self.error:
            return False
        before, told, self._seen = self._values, self.error, seen
        try:
            self._values = read(self.path)
            redact.know(self._values)
            self.error = ""
        except FileNotFoundError:
            self._values, self.error = {}, ""
        except FileUnfit as unfit:
            self.error = str(unfit)
            if self.error != told:
                log.error("secrets: %s", self.error)
        changed = self._values != before
        self.unloaded |= changed
        return changed

    def of(self, functions: Sequence[LocalFunction]) -> Values:
        """Return the values that the functions' manifests name and the file contains."""
        return {
            f.name: {name: table[name] for name in f.manifest.secrets if name in table}
            for f in functions
            if f.manifest.secrets and (table := self._values.get(f.name)) is not None
        }

    def lacking(self, functions: Sequence[LocalFunction]) -> dict[str, ChildFailure]:
        """Return, by function, why it can't be called, if a secret that its manifest names is missing."""
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
