"""Calls of test cases: each on a new database, made by the edge's code in fenced processes."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from msgspec import Struct

from control.cli.project.case_files import TestCase
from control.cli.project.project_files import SchemaFile
from control.cli.support.client import Failure

LINE_LIMIT = 256 * 1024 * 1024
"""Maximum bytes of a call's result, with its answer and the rows after it."""


class CaseResult(Struct):
    """The answer of a call, or its failure if `code` is set."""

    status: int
    headers: list[tuple[str, str]] = []
    body: bytes = b""
    log: bytes = b""
    seconds: float = 0.0
    code: str = ""
    message: str = ""
    notes: list[str] = []
    """Errors of its SQL and HTTP."""
    unasked: list[str] = []
    """Requests for which the case has answers, and which the call didn't make."""

    def headers_by_name(self) -> dict[str, str]:
        """Return the answer's headers by lower-case name; the values of a repeated header are joined."""
        found: dict[str, str] = {}
        for given, value in self.headers:
            name = given.lower()
            found[name] = f"{found[name]}, {value}" if name in found else value
        return found


class CaseDone(Struct):
    """How a case's call ended."""

    number: int
    """The index of the case among those requested."""
    result: CaseResult
    part: str = ""
    """What failed, if not the call: `schema`, `before` or `after`."""
    rows: list[list[list[Any]]] = []
    """The rows of each statement after the call."""


async def made(cases: list[TestCase], schema: list[SchemaFile]) -> AsyncIterator[CaseDone]:
    """Make the calls, and yield their results in any order.

    Raises: Failure, when the process that makes them exits before all have ended.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "edge_runtime.oneshot.fresh_calls",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_LIMIT,
        # Ctrl-C is for this process, which stops the child; the child also ends whenever this process does.
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018
    try:
        # The author's own code runs here, so a machine without the complete fence is enough, as for `skerry dev`.
        asked = {
            "calls": [case.call() for case in cases],
            "schema": [{"name": str(change.path), "sql": change.sql} for change in schema],
            "parent": os.getpid(),
            "fence": "partial",
        }
        process.stdin.write(msgspec.json.encode(asked))
        process.stdin.close()
        left = len(cases)
        while left and (line := await process.stdout.readline()).endswith(b"\n"):
            left -= 1
            yield msgspec.json.decode(line, type=CaseDone)
        if left:
            status = await process.wait()
            ended = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            raise Failure(f"the process that makes the calls {ended}, and {left} of {len(cases)} weren't made")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
