"""Values between a guest's JSON and SQLite, exact in both directions.

An INTEGER is exact to 64 bits; a REAL has a point or an exponent (`1` is an INTEGER, `1.0` a REAL); TEXT is a string
without NUL; a BLOB is `{"$blob": base64}`; NULL is null; `true` and `false` are 1 and 0, as in SQL. A value that JSON
or SQLite can't hold (NaN, infinities, larger integers, NUL in text) is an error. When libsql reads a TEXT in which SQL
itself put a NUL, for instance with char(0), it cuts the TEXT there.
"""

import binascii
import json
from typing import Any, Final

import orjson

INT32: Final = range(-(2**31), 2**31)
"""The integers that libsql binds as an INTEGER; it would bind a larger one as a REAL."""
INT64: Final = range(-(2**63), 2**63)
_HUGE: Final = float(2**63)

Value = None | int | float | str | bytes
"""An SQLite value: NULL, INTEGER, REAL, TEXT or BLOB."""
Row = tuple[Value, ...]


class UnsupportedValue(ValueError):
    """A value can't be passed on exactly; the message says which one and why."""


def bind(params: list[Any], request: bytes) -> tuple[tuple[Value, ...], tuple[int, ...]]:
    """Return the values to bind, and the numbers (from 1) of those that are 64-bit integers: these are bound as text,
    and need a CAST in the statement. `request` is the JSON that `params` came from.

    Raises: UnsupportedValue, when SQLite can't hold a value.
    """
    bound: list[Value] = []
    wide: list[int] = []
    for number, value in enumerate(params, 1):
        kind = value.__class__
        if kind is int:
            if value not in INT32:
                if value not in INT64:
                    raise _integer(number)
                wide.append(number)
                value = str(value)
        elif kind is str:
            if "\0" in value:
                raise UnsupportedValue(f"Parameter {number} has a NUL in its text; send it as a BLOB.")
        elif kind is float:
            # orjson reads an integer of more than 64 bits as a float.
            if not -_HUGE < value < _HUGE and _written_as_integer(request, number):
                raise _integer(number)
        elif kind is bool:
            value = int(value)
        elif value is not None:
            value = _blob(value, number)
        bound.append(value)
    return tuple(bound), tuple(wide)


def _integer(number: int) -> UnsupportedValue:
    return UnsupportedValue(
        f"Parameter {number} is an integer outside 64 bits; send it as text, or as a REAL with a point."
    )


def _written_as_integer(request: bytes, number: int) -> bool:
    return isinstance(json.loads(request)["params"][number - 1], int)


def _blob(value: object, number: int) -> bytes:
    if isinstance(value, dict) and value.keys() == {"$blob"} and isinstance(value["$blob"], str):
        try:
            return binascii.a2b_base64(value["$blob"], strict_mode=True)
        except ValueError as error:
            raise UnsupportedValue(f"Parameter {number} is a BLOB whose base64 is invalid: {error}.") from None
    raise UnsupportedValue(
        f'Parameter {number} must be null, a number, a string, true, false, or {{"$blob": base64}}, '
        f"and is a JSON {'array' if isinstance(value, list) else 'object'}."
    )


def encode(rows: list[Row], columns: list[str]) -> bytes:
    """Return rows from libsql as a JSON array of arrays.

    Raises: UnsupportedValue, when JSON can't hold a value.
    """
    encoded = orjson.dumps(rows, default=_default)
    # orjson writes an infinity as null, so only rows with a null in them are looked at.
    if b"null" in encoded:
        for row in rows:
            for at, value in enumerate(row):
                if value.__class__ is float and value - value != 0.0:
                    raise UnsupportedValue(f"Column {columns[at]} has an infinite REAL, which JSON can't hold.")
    return encoded


def _default(value: object) -> dict[str, str]:
    if isinstance(value, bytes):
        return {"$blob": binascii.b2a_base64(value, newline=False).decode("ascii")}
    raise TypeError
