"""The node's log: an event is a line, in both forms, whatever a guest or a client had in it."""

import logging
import sys

import orjson
import pytest

from edge_runtime import logs
from edge_runtime.logs import JsonLines, Text

HOSTILE = "a\x1b[2Jb\nERROR forged\r\x00c\u2028d\x9b1m é\t."


def record(message: str, *, failed: bool = False) -> logging.LogRecord:
    caught = None
    if failed:
        try:
            raise ValueError("wrong")
        except ValueError:
            caught = sys.exc_info()
    return logging.LogRecord("skerry.guest", logging.INFO, "", 0, "orders 3: %s", (message,), caught)


def test_a_line_for_people_has_nothing_for_a_terminal_to_obey() -> None:
    line = Text().format(record(HOSTILE))
    assert line.endswith(r" INFO    skerry.guest: orders 3: a\x1b[2Jb\nERROR forged\r\x00c\u2028d\x9b1m é" + "\t.")
    assert len(line.splitlines()) == 1


def test_a_traceback_has_lines_of_its_own() -> None:
    assert Text().format(record("x", failed=True)).splitlines()[-1] == "ValueError: wrong"


@pytest.mark.parametrize("failed", [False, True])
def test_an_object_is_a_line(failed: bool) -> None:
    line = JsonLines().format(record(HOSTILE, failed=failed))
    assert len(line.split("\n")) == 1
    told = orjson.loads(line)
    assert (told["message"], told["level"], told["logger"]) == (f"orders 3: {HOSTILE}", "info", "skerry.guest")
    assert ("exception" in told) == failed


def test_a_line_of_json_has_the_nodes_name_once_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    assert "node" not in orjson.loads(handler.format(record("before")))
    logs.name_node("edge-1")
    assert orjson.loads(handler.format(record("after")))["node"] == "edge-1"
    logs.name_node("tokyo-1")
    assert orjson.loads(handler.format(record("renamed")))["node"] == "tokyo-1"
