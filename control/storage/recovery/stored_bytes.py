"""Whether the object of an artifact is in the bucket as it must be."""

import hashlib
from contextlib import aclosing
from typing import Literal

from control.problems import ProblemError
from control.storage.object_store import Store

Fault = Literal["missing", "wrong_size", "wrong_bytes"]
"""What is wrong with an object: it isn't there, or its size or its sha256 is another one."""


async def fault(store: Store, key: str, size: int, sha256: str | None) -> Fault | None:
    """What is wrong with the object `key`, which must have `size` bytes; None where nothing is.

    Its bytes are read, a piece at a time, where `sha256` isn't None. Raises: ProblemError, as `Store`.
    """
    found = await store.head(key)
    if found is None:
        return "missing"
    if found != size:
        return "wrong_size"
    if sha256 is None:
        return None
    digest = hashlib.sha256()
    try:
        _answer, pieces = await store.open(key)
    except ProblemError as error:
        if error.code != "unknown_artifact":
            raise
        return "missing"
    async with aclosing(pieces):
        async for piece in pieces:
            digest.update(piece)
    return None if digest.hexdigest() == sha256 else "wrong_bytes"
