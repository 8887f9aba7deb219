"""Which statements control asks the metadata database for: each is a way there and back.

with asking("ControlApp.__call__") as asked:
    await one_request()
assert len(asked) <= 9, asked
"""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg
import pytest

from control.storage import queries


class Asked(list[str]):
    """The statements of transactions that were committed: BEGIN, COMMIT, and the others as ``releases.group``."""

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[asyncio.Task[Any] | None, list[str]] = {}

    def add(self, text: str) -> None:
        """Add a statement that was answered. What is undone isn't counted: after a conflict it is asked once more."""
        name = _NAMES.get(text) or text.split(None, 1)[0].rstrip(";")
        task = asyncio.current_task()
        if name == "BEGIN":
            self._open[task] = []
        self._open.setdefault(task, []).append(name)
        if name == "COMMIT":
            self.extend(self._open.pop(task))

    def __repr__(self) -> str:
        return f"{len(self)}: {', '.join(self)}"


def _names() -> dict[str, str]:
    files = [file.stem for file in (queries.folder() / "queries").glob("*.sql")]
    return {text: f"{file}.{name}" for file in files for name, text in queries.load(file).items()}


_NAMES = _names()


@contextmanager
def asking(*begins: str) -> Iterator[Asked]:
    """Record what calls of these functions ask while the block runs: not what control does in the background."""
    asked = Asked()
    fetch, execute = asyncpg.Connection.fetch, asyncpg.Connection.execute

    async def fetched(conn: Any, query: str, *args: Any, **more: Any) -> Any:
        answer = await fetch(conn, query, *args, **more)
        if _is_called_by(begins):
            asked.add(query)
        return answer

    async def executed(conn: Any, query: str, *args: Any, **more: Any) -> Any:
        answer = await execute(conn, query, *args, **more)
        if _is_called_by(begins):
            asked.add(query)
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncpg.Connection, "fetch", fetched)
        patch.setattr(asyncpg.Connection, "execute", executed)
        yield asked


def _is_called_by(names: tuple[str, ...]) -> bool:
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_qualname in names:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
