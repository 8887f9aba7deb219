"""From a request's path and method to its operation in the table of routes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import groupby

from starlette.routing import compile_path

from control.api.operations import Operation
from control.problems import ProblemError
from control.web.routes import OPERATIONS


@dataclass(frozen=True)
class Found:
    """What there is at a path."""

    pattern: str
    operations: Mapping[str, Operation]
    parameters: Mapping[str, str]

    def operation(self, method: str) -> Operation:
        """The operation of a method; raises `ProblemError`."""
        if method not in self.operations:
            allowed = ", ".join(sorted(self.operations))
            raise ProblemError("method_not_allowed", f"{self.pattern} takes {allowed}", allow=allowed)
        return self.operations[method]


def find(path: str) -> Found:
    """What there is at this path; raises `ProblemError`."""
    for pattern, regex, operations in _table():
        match = regex.fullmatch(path)
        if match is not None:
            return Found(pattern, operations, match.groupdict())
    raise ProblemError("no_such_path", "there is nothing here; /openapi.json has all paths")


@cache
def _table() -> list[tuple[str, re.Pattern[str], dict[str, Operation]]]:
    # Fixed paths before patterns.
    by_path = sorted(OPERATIONS, key=lambda operation: (operation.path.count("{"), operation.path))
    return [
        (path, compile_path(path)[0], {operation.method: operation for operation in operations})
        for path, operations in groupby(by_path, key=lambda operation: operation.path)
    ]
