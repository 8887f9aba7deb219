"""What `skerry status` says of a node that isn't well."""

import pytest

from control.cli.status import trouble


@pytest.mark.parametrize(("failures", "told"), [(1, ", 1 failure"), (2, ", 2 failures")])
def test_failures_are_counted_in_words(failures: int, told: str) -> None:
    error = {"message": "The disk is full.", "code": "disk_full", "at": "2026-11-28T12:00:00Z"}
    node = {"state": "online", "error": error, "at_target": False, "failures": failures, "retry_at": None}
    [line] = trouble({**node, "warnings": []})
    assert line.startswith("The disk is full. [disk_full], ")
    assert line.endswith(told)
