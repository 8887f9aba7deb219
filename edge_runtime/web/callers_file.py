"""The file that names a node's callers: what an entry may contain, and how entries are added and removed. Pure.

The file is TOML with a table for each caller, `[[caller]]`. It has digests of tokens, but no tokens.
"""

import hashlib
import re
import tomllib
from typing import Any, Final, NamedTuple

from control.protocol import wire
from edge_runtime.files import FileUnfit

SIZE_LIMIT: Final = 256 * 1024
"""Bytes that the file may have."""
MOST: Final = 1000
"""Callers that the file may have."""
MOST_RATE: Final = 1_000_000
"""The highest rate (calls a second) and the largest burst (calls)."""
ALL: Final = "all"
"""The value of `functions` for a caller that may call every function."""
FIELDS: Final = ("name", "token_sha256", "certificate_sha256", "functions", "rate", "burst", "pages")

_AT: Final = re.compile(r"at (line \d+, column \d+|end of document)")
_DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}")
_HEADER: Final = re.compile(r"^[ \t]*\[\[[ \t]*caller[ \t]*\]\]", re.MULTILINE)


class CallerEntry(NamedTuple):
    """A caller as written in the file."""

    name: str
    tokens: tuple[bytes, ...]
    """sha256 of each of the caller's tokens: two while one replaces the other."""
    certificates: tuple[bytes, ...]
    """sha256 of each of the caller's certificates, in DER."""
    functions: frozenset[str] | None
    """The functions that it may call; None for all."""
    rate: float
    """Calls a second; 0 for no limit."""
    burst: int
    """Calls that it may make at once after a pause."""
    pages: bool
    """Whether it may read the node's own pages, /_skerry/status and /_skerry/metrics."""


def token_digest(token: bytes) -> bytes:
    """Return the digest of a token that the file holds, as bytes."""
    return hashlib.sha256(token).digest()


def parse(text: bytes, where: str) -> list[CallerEntry]:
    """Return the callers in a file's content. Raises: FileUnfit, if it is invalid."""
    try:
        document = tomllib.loads(text.decode())
    except UnicodeDecodeError:
        raise FileUnfit(f"{where} is not in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        # Without the error's own words: a token that was put there by mistake could be in them.
        at = _AT.search(str(error))
        raise FileUnfit(f"{where} is no valid TOML{f' ({at[0]})' if at else ''}") from None
    tables = document.pop("caller", [])
    if document:
        raise FileUnfit(f"{where} must have a table [[caller]] for each caller and nothing else; {_some(document)} is")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise FileUnfit(f"{where} must have a table [[caller]], in two pairs of brackets, for each caller")
    if len(tables) > MOST:
        raise FileUnfit(f"{where} has {len(tables)} callers; {MOST} are allowed")
    entries = [_entry(table, where, number) for number, table in enumerate(tables, 1)]
    seen: dict[str, str] = {}
    for number, entry in enumerate(entries, 1):
        for key in (entry.name, *[digest.hex() for digest in (*entry.tokens, *entry.certificates)]):
            if key in seen:
                what = "name" if key == entry.name else "token or certificate"
                place = f"{where}: caller {number} ({entry.name})"
                raise FileUnfit(f"{place} has the {what} of an earlier one, {seen[key]}")
            seen[key] = entry.name
    return entries


def _some(document: dict[str, Any]) -> str:
    return next(iter(document))[:63]


def _entry(table: dict[str, Any], where: str, number: int) -> CallerEntry:
    name = table.get("name")
    if not isinstance(name, str) or not wire.NAME.fullmatch(name):
        raise FileUnfit(
            f"{where}: caller {number}: name must be lower case letters, digits and hyphens, 63 at most, in quotes"
        )
    at = f"{where}: caller {number} ({name})"
    if unknown := sorted(table.keys() - set(FIELDS)):
        raise FileUnfit(f"{at}: there is no field {unknown[0][:63]}; there are {', '.join(FIELDS)}")
    tokens = _digests(table, "token_sha256", at)
    certificates = _digests(table, "certificate_sha256", at)
    if not tokens and not certificates:
        raise FileUnfit(f"{at}: it has neither token_sha256 nor certificate_sha256")
    functions = table.get("functions")
    if functions != ALL and not (
        isinstance(functions, list) and all(isinstance(f, str) and wire.NAME.fullmatch(f) for f in functions)
    ):
        raise FileUnfit(f'{at}: functions must be a list of names of functions, or "{ALL}"')
    rate, burst, pages = table.get("rate", 0), table.get("burst"), table.get("pages", False)
    if "rate" in table and not (_is_number(rate) and 0 < rate <= MOST_RATE):
        raise FileUnfit(f"{at}: rate must be a number of calls a second, above 0 and {MOST_RATE} at most")
    if burst is None:
        burst = max(1, round(rate))
    elif not rate:
        raise FileUnfit(f"{at}: burst needs a rate")
    elif not isinstance(burst, int) or isinstance(burst, bool) or not 1 <= burst <= MOST_RATE:
        raise FileUnfit(f"{at}: burst must be a whole number of calls, 1 to {MOST_RATE}")
    if not isinstance(pages, bool):
        raise FileUnfit(f"{at}: pages must be true or false")
    allowed = None if functions == ALL else frozenset(functions)
    return CallerEntry(name, tokens, certificates, allowed, float(rate), burst, pages)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _digests(table: dict[str, Any], field: str, at: str) -> tuple[bytes, ...]:
    given = table.get(field, [])
    texts = given if isinstance(given, list) else [given]
    if not all(isinstance(text, str) and _DIGEST.fullmatch(text.replace(":", "")) for text in texts):
        raise FileUnfit(f"{at}: {field} must be a sha256 in 64 hex digits, or a list of such")
    return tuple(bytes.fromhex(text.replace(":", "")) for text in texts)


def added(text: str, entry: CallerEntry) -> str:
    """Return the file's text with one more entry, at its end."""
    before = text if not text or text.endswith("\n") else text + "\n"
    lines = ["[[caller]]", f'name = "{entry.name}"']
    for field, digests in (("token_sha256", entry.tokens), ("certificate_sha256", entry.certificates)):
        lines += [f'{field} = "{digest.hex()}"' for digest in digests]
    names = "[" + ", ".join(f'"{name}"' for name in sorted(entry.functions or ())) + "]"
    lines.append(f"functions = {names}" if entry.functions is not None else f'functions = "{ALL}"')
    if entry.rate:
        lines += [f"rate = {entry.rate:.15g}", f"burst = {entry.burst}"]
    if entry.pages:
        lines.append("pages = true")
    return before + ("\n" if before else "") + "\n".join(lines) + "\n"


def without(text: str, number: int) -> str:
    """Return the file's text without entry `number` (counted from 0): from its header to the next one."""
    starts = [match.start() for match in _HEADER.finditer(text)]
    if number >= len(starts):
        return text
    end = starts[number + 1] if number + 1 < len(starts) else len(text)
    return text[: starts[number]] + text[end:]
