"""Splits SQL into tokens as SQLite's own tokenizer does, telling strings, comments, names and parameters apart. Pure.

Source: sqlite3GetToken of SQLite 3.45 (tokenize.c). Text that SQLite itself can't read is left for SQLite to refuse.
"""

import re
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Final, NamedTuple


class TokenKind(IntEnum):
    NAME = 1
    """A keyword or an unquoted name."""
    QUOTED = 2
    """A name in double quotes, backticks or brackets."""
    STRING = 3
    BLOB = 4
    NUMBER = 5
    PARAMETER = 6
    SEMICOLON = 7
    OTHER = 8
    """An operator, one token for each character; or a quote that is never closed, with everything after it."""


class SqlToken(NamedTuple):
    kind: TokenKind
    start: int
    end: int
    text: str
    """The token as written."""


_FIRST: Final = r"A-Za-z_\x80-\U0010ffff"
_NEXT: Final = r"A-Za-z0-9_$\x80-\U0010ffff"
_PATTERN: Final = re.compile(
    rf"""
      (?P<SPACE>   [ \t\n\f\r][ \t\n\v\f\r]*+ | \ufeff | --[^\n]*+ | /\*(?!\Z)(?s:.*?)(?:\*/|\Z) )
    | (?P<BLOB>    [xX]'[0-9A-Fa-f]*+' )
    | (?P<NAME>    [{_FIRST}][{_NEXT}]*+ )
    | (?P<QUOTED>  "(?:[^"]++|"")*+" | `(?:[^`]++|``)*+` | \[[^\]]*+\] )
    | (?P<STRING>  '(?:[^']++|'')*+' )
    | (?P<NUMBER>  (?: 0[xX][0-9A-Fa-f]++ | (?:[0-9]++(?:\.[0-9]*+)?+ | \.[0-9]++)(?:[eE][+-]?[0-9]++)?+ )[{_NEXT}]*+ )
    | (?P<PARAMETER> \?[0-9]*+ | [$@#:](?:[{_NEXT}]|::)*+ )
    | (?P<SEMICOLON> ; )
    | (?P<OTHER>   ['"`\[](?s:.*) | (?s:.) )
    """,
    re.VERBOSE,
)
_VALUES: Final = (TokenKind.STRING, TokenKind.BLOB, TokenKind.NUMBER)
_KINDS: Final = {kind.name: kind for kind in TokenKind}


def tokenize(sql: str) -> list[SqlToken]:
    """Return the tokens of `sql`, without spaces and comments."""
    return [
        SqlToken(_KINDS[match.lastgroup], match.start(), match.end(), match.group())
        for match in _PATTERN.finditer(sql)
        if match.lastgroup is not None and match.lastgroup != "SPACE"
    ]


def at_semicolons(tokens: Iterable[SqlToken]) -> Iterator[list[SqlToken]]:
    """Yield the tokens between semicolons, without empty runs: for SQL without a CREATE TRIGGER, the statements."""
    run: list[SqlToken] = []
    for token in tokens:
        if token.kind is not TokenKind.SEMICOLON:
            run.append(token)
        elif run:
            yield run
            run = []
    if run:
        yield run


def line_comments(sql: str) -> list[SqlToken]:
    """Return the comments of the form `-- …` in `sql`, each without its line ending."""
    return [
        SqlToken(TokenKind.OTHER, match.start(), match.end(), match.group())
        for match in _PATTERN.finditer(sql)
        if match.lastgroup == "SPACE" and match.group().startswith("--")
    ]


def without_values(sql: str) -> str:
    """Return a statement, or the beginning of one, with `?` in place of each literal value, without comments, and with
    single spaces."""
    made: list[str] = []
    end = 0
    for token in tokenize(sql):
        value = token.kind in _VALUES or (token.kind is TokenKind.OTHER and token.text[0] in "'\"`[")
        if made and token.start > end:
            made.append(" ")
        made.append("?" if value else token.text)
        end = token.end
    return "".join(made)


def word(token: SqlToken) -> str:
    """Return an unquoted word in lower case; empty for any other token."""
    return token.text.lower() if token.kind is TokenKind.NAME else ""


def name(token: SqlToken) -> str:
    """Return the name, in lower case, if SQLite may treat the token as one, as it does with strings; empty
    otherwise."""
    text = token.text
    if token.kind is TokenKind.NAME:
        return text.lower()
    if token.kind is TokenKind.QUOTED or token.kind is TokenKind.STRING:
        quote = text[0]
        inner = text[1:-1]
        return (inner if quote == "[" else inner.replace(quote * 2, quote)).lower()
    return ""


def quoted(name: str) -> str:
    """Return a name quoted for SQL, whatever it contains."""
    return '"' + name.replace('"', '""') + '"'
