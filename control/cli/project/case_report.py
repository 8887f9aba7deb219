"""Differences between a call and its case, for people, and a whole run as JUnit XML, for other programs."""

import difflib
import http
import re
import xml.etree.ElementTree as xml
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from msgspec import UNSET

from control.cli.project.case_calls import CaseDone, CaseResult
from control.cli.project.case_files import TestCase

SHOWN = 2000
"""Maximum characters shown of an answer's body that isn't compared."""
_PRETTY = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS
_PHRASES = {status.value: status.phrase for status in http.HTTPStatus}
_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Ended:
    """A case that was run; it has passed if nothing differs."""

    case: TestCase
    done: CaseDone
    different: list[str]


def compared(case: TestCase, done: CaseDone) -> list[str]:
    """Return how the call differs from its case, as lines of text; [] if it passes."""
    result = done.result
    if done.part:
        what = {"schema": "the schema", "before": "sql_before", "after": "sql_after"}[done.part]
        return [f"{what}: {result.message} ({result.code})"]
    answered = "" if result.code else result.body.decode("utf-8", "replace")
    compares = case.body is not None or case.json is not UNSET
    lines = []
    fits = result.status == case.status or (case.status is None and 200 <= result.status < 300)
    if result.code and (not fits or compares or case.headers):
        return [f"the call failed: {result.message} ({result.code})"]
    if not fits:
        wanted = "a status from 200 to 299" if case.status is None else _status(case.status)
        lines.append(f"status: {wanted} is expected, {_status(result.status)} came")
    headers = result.headers_by_name()
    for name, value in case.headers.items():
        there = headers.get(name.lower())
        if there != value:
            lines.append(f"header {name}: {value!r} is expected, {'none' if there is None else repr(there)} came")
    if case.body is not None and case.body.encode() != result.body:
        lines += _differ("body", _lines(case.body), _lines(answered))
    if case.json is not UNSET:
        lines += _json_differs(case.json, result)
    elif lines and case.body is None and answered:
        lines += ["body:", *answered[:SHOWN].splitlines()]
    lines += [f"http: it didn't request {unasked}" for unasked in result.unasked]
    if len(done.rows) < len(case.after):
        lines.append("sql_after: it wasn't run: the call ended its process, and its database with it")
    for after, rows in zip(case.after, done.rows, strict=False):
        if not same(after.rows, rows):
            expected, came = ([orjson.dumps(row).decode() for row in each] for each in (after.rows, rows))
            lines += _differ(f"rows of {after.sql}", expected, came)
    return lines


def same(one: Any, other: Any) -> bool:
    """Return whether two JSON values are equal: 1 and 1.0 are, 1 and true aren't."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def _json_differs(expected: Any, result: CaseResult) -> list[str]:
    try:
        came = orjson.loads(result.body)
    except orjson.JSONDecodeError as error:
        text = result.body[:SHOWN].decode("utf-8", "replace")
        return [f"json: the body is no JSON ({error}):", *text.splitlines()]
    if same(expected, came):
        return []
    pretty = (orjson.dumps(each, option=_PRETTY).decode().splitlines() for each in (expected, came))
    return _differ("json", *pretty)


def _status(status: int) -> str:
    return f"{status} {_PHRASES.get(status, '')}".strip()


def _lines(text: str) -> list[str]:
    """Return lines of text with trailing spaces and line breaks made visible."""
    return [orjson.dumps(line).decode() for line in text.splitlines(keepends=True)]


def _differ(what: str, expected: Iterable[str], came: Iterable[str]) -> list[str]:
    """Return a diff: `-` marks an expected line that is missing, `+` an unexpected line."""
    lines = [f"  {line}" for line in difflib.ndiff(list(expected), list(came)) if not line.startswith("?")]
    return [f"{what} (- is expected, + came):", *lines]


def junit(run: list[Ended], seconds: float) -> bytes:
    """Return the run as JUnit XML: a suite for each file."""
    suites = xml.Element("testsuites", _counts(run, seconds))
    for file in dict.fromkeys(ended.case.file for ended in run):
        within = [ended for ended in run if ended.case.file == file]
        took = sum(ended.done.result.seconds for ended in within)
        suite = xml.SubElement(suites, "testsuite", {"name": str(file), **_counts(within, took)})
        for ended in within:
            result = ended.done.result
            told = {"name": ended.case.name, "classname": ended.case.function.name, "file": str(file)}
            case = xml.SubElement(suite, "testcase", {**_fit(told), "time": f"{result.seconds:.6f}"})
            if ended.different:
                failure = xml.SubElement(case, "failure", _fit({"message": ended.different[0]}))
                failure.text = _NOT_XML.sub("\ufffd", "\n".join(ended.different))
            if result.log:
                log = xml.SubElement(case, "system-err")
                log.text = _NOT_XML.sub("\ufffd", result.log.decode("utf-8", "replace"))
    xml.indent(suites)
    document: bytes = xml.tostring(suites, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _fit(attributes: dict[str, str]) -> dict[str, str]:
    return {name: _NOT_XML.sub("\ufffd", value) for name, value in attributes.items()}


def _counts(run: list[Ended], seconds: float) -> dict[str, str]:
    failed = sum(bool(ended.different) for ended in run)
    return {"tests": str(len(run)), "failures": str(failed), "errors": "0", "time": f"{seconds:.6f}"}


def write(file: Path, run: list[Ended], seconds: float) -> None:
    """Write the run as JUnit XML. Raises: OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(junit(run, seconds))
