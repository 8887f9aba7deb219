"""The test cases of a project: files `tests/*.toml`, of the project and of each of its functions.

function = "orders"                 optional: the function of the file's cases; a case may name another
secrets = { KEY = "test" }          optional: values of the secrets that manifests name
[[case]]                            one call on a new database with the project's schema, and what it must do
name = "an order is kept"
request = { method = "POST", path = "/7?x=1", headers = { … }, body = "…" }      or `route` instead of `path`
sql_before = "INSERT INTO …;"
http = [{ url = "https://…", method = "GET", status = 200, headers = { … }, json = … }]     or body = "…"
status = 201                        without it 200, or for a tick any success
headers = { content-type = "application/json" }
json = { id = 1 }                   or body = "…"
sql_after = { sql = "SELECT …", rows = [[1, "milk"]] }          or a list of these
event = "schedule"                  instead of `request`: a tick of the schedule; "release": a call after a release
cron = "0 3 * * *"                  whose tick it is, if the schedule has several lines
at = 2026-01-01T03:00:00Z           when the tick is due

TOML has no null: if `json` or `rows` is a string, it is parsed as JSON.
"""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import orjson
from msgspec import UNSET, Meta, UnsetType, field

from control.cli.project.project_files import TESTS, FunctionSource, Project, ProjectInvalid
from control.cli.support.client import Json
from control.protocol import ticks
from control.protocol.manifest import Manifest, unknown_field

CASE = re.compile(r"^[ \t]*\[\[[ \t]*case[ \t]*\]\]", re.MULTILINE)

Text = Annotated[str, Meta(min_length=1)]


class CaseRequest(msgspec.Struct, forbid_unknown_fields=True):
    method: str = ""
    """If not given: GET, or POST with a body."""
    path: str = ""
    """What follows the function's name in the URL: a path, a query, or both."""
    route: str = ""
    """Instead of `path`: a path on the node that matches the function's route, or a URL; with a query."""
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""


class CaseAnswer(msgspec.Struct, forbid_unknown_fields=True):
    """What one HTTP request of the function is answered."""

    url: Text
    method: str = ""
    """If not given: any."""
    status: Annotated[int, Meta(ge=200, le=599)] = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | UnsetType = UNSET
    json: Any = UNSET


class CaseRows(msgspec.Struct, forbid_unknown_fields=True):
    """A statement that is run after the call, and the rows that it must return, in order."""

    sql: Text
    rows: list[list[Any]] | str


class CaseTable(msgspec.Struct, forbid_unknown_fields=True):
    """A `[[case]]` as it is written."""

    name: Text
    function: str = ""
    request: CaseRequest = field(default_factory=CaseRequest)
    sql_before: str = ""
    http: list[CaseAnswer] = field(default_factory=list)
    status: Annotated[int, Meta(ge=200, le=599)] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: str | UnsetType = UNSET
    json: Any = UNSET
    sql_after: CaseRows | list[CaseRows] = field(default_factory=list)
    event: ticks.Event | None = None
    cron: str = ""
    at: Annotated[datetime, Meta(tz=True)] = datetime(2026, 1, 1, tzinfo=UTC)


class CaseFile(msgspec.Struct, forbid_unknown_fields=True):
    """A file of cases."""

    case: list[dict[str, Any]] = field(default_factory=list)
    function: str = ""
    secrets: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TestCase:
    """A call, and what it must do."""

    __test__ = False
    """Tells pytest that this class isn't a test."""
    file: Path
    name: str
    function: FunctionSource
    request: CaseRequest
    secrets: dict[str, str]
    before: str
    http: list[Json]
    """The answers to the function's HTTP requests, in the form that the edge's process takes."""
    status: int | None
    """None: any from 200 to 299, with which a tick has succeeded."""
    headers: dict[str, str]
    body: str | None
    """None: any."""
    json: Any
    """UNSET: any."""
    after: list[CaseRows]
    """Their rows are lists."""
    tick: Sequence[tuple[str, str]] = ()
    """The headers of a tick; none for a call of a client."""

    @property
    def title(self) -> str:
        return f"{self.file}: {self.name}"

    def call(self) -> Json:
        """Return the call in the form that the edge's process takes."""
        path, _, query = (self.request.route or self.request.path).partition("?")
        body = self.request.body.encode()
        return {
            "file": str(self.function.module.absolute()),
            "name": self.function.name,
            "manifest": self.function.manifest,
            "method": (self.request.method or ("POST" if body else "GET")).upper(),
            "path": path,
            "routed": bool(self.request.route),
            "query": query,
            "headers": list(self.request.headers.items()),
            "tick": self.tick,
            "body": msgspec.to_builtins(body),
            "secrets": self.secrets,
            "before": self.before,
            "http": self.http,
            "after": [each.sql for each in self.after],
        }


def find(found: Project) -> list[TestCase]:
    """Read the cases of a project and of its functions, by file.

    Raises: ProjectInvalid, when a file or a case isn't valid.
    """
    cases: list[TestCase] = []
    for folder, own in {found.folder: None, **{f.folder: f for f in found.functions}}.items():
        only = found.functions[0] if len(found.functions) == 1 else own
        for file in sorted((folder / TESTS).glob("*.toml")):
            cases += _read(file, found, only)
    return cases


def _read(file: Path, found: Project, only: FunctionSource | None) -> list[TestCase]:
    """Read a file of cases. `only`: the function for cases that name none."""
    try:
        text = file.read_text("utf-8")
        content = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ProjectInvalid(f"{file} can't be read: {error}") from None
    try:
        whole = msgspec.convert(content, CaseFile)
    except msgspec.ValidationError as error:
        raise ProjectInvalid(f"{file}: {_said(error, CaseFile)}") from None
    lines = [text.count("\n", 0, match.start()) + 1 for match in CASE.finditer(text)]
    cases: list[TestCase] = []
    for number, table in enumerate(whole.case, 1):
        where = str(file) if len(lines) != len(whole.case) else f"{file}:{lines[number - 1]}"
        name = table.get("name")
        named = f"{where}: case {number}" + (f" ({name})" if isinstance(name, str) else "")
        try:
            case = _case(file, table, whole, found, only)
        except msgspec.ValidationError as error:
            raise ProjectInvalid(f"{named}: {_said(error, CaseTable)}") from None
        except ValueError as error:
            raise ProjectInvalid(f"{named}: {error}") from None
        if any(other.name == case.name for other in cases):
            raise ProjectInvalid(f"{named}: a case before it in the file has this name, too")
        cases.append(case)
    return cases


def _case(file: Path, table: dict[str, Any], whole: CaseFile, found: Project, only: FunctionSource | None) -> TestCase:
    """Build a case from its table. Raises: ValueError (msgspec's among them), when the case isn't valid."""
    given = msgspec.convert(table, CaseTable)
    if given.body is not UNSET and given.json is not UNSET:
        raise ValueError("body and json are one or the other")
    path = given.request.path
    if path and given.request.route:
        raise ValueError("request.path and request.route are one or the other")
    if path and path[0] not in "/?":
        raise ValueError(f"request.path is what comes behind the function's name, so {path!r} must begin with / or ?")
    after = given.sql_after if isinstance(given.sql_after, list) else [given.sql_after]
    function = _function(given.function or whole.function, found, only)
    return TestCase(
        file,
        given.name,
        function,
        given.request if given.event is None else CaseRequest("POST", "/", headers={"content-length": "0"}),
        whole.secrets,
        given.sql_before,
        [_answer(each) for each in given.http],
        200 if given.status is None and given.event is None else given.status,
        given.headers,
        None if isinstance(given.body, UnsetType) else given.body,
        UNSET if given.json is UNSET else _json("json", given.json),
        [CaseRows(each.sql, _rows(each.rows)) for each in after],
        _tick(table, given, function),
    )


def _answer(given: CaseAnswer) -> Json:
    """Return an answer in the form that the edge's process takes. Raises: ValueError, when it isn't valid."""
    if given.body is not UNSET and given.json is not UNSET:
        raise ValueError(f"http: body and json of the answer to {given.url} are one or the other")
    headers = dict(given.headers)
    if isinstance(given.body, UnsetType):
        body = b"" if given.json is UNSET else orjson.dumps(_json("http.json", given.json))
    else:
        body = given.body.encode()
    if given.json is not UNSET and not any(name.lower() == "content-type" for name in headers):
        headers["content-type"] = "application/json"
    return {
        "url": given.url,
        "method": given.method.upper(),
        "status": given.status,
        "headers": list(headers.items()),
        "body": msgspec.to_builtins(body),
    }


def _tick(table: dict[str, Any], given: CaseTable, function: FunctionSource) -> list[tuple[str, str]]:
    """Return the headers of a tick; none if the case isn't one. Raises: ValueError, when the function has no such."""
    if given.event is None:
        if wrong := [key for key in ("cron", "at") if key in table]:
            raise ValueError(f'{wrong[0]} is of a tick: say event = "schedule", too')
        return []
    if "request" in table:
        raise ValueError("the request of a tick is the node's own, POST / without a body: leave request out")
    manifest = msgspec.convert(function.manifest, Manifest)
    return ticks.headers(ticks.chosen(function.name, manifest, given.event, given.cron), given.at.timestamp())


def _function(name: str, found: Project, only: FunctionSource | None) -> FunctionSource:
    if not name and only is not None:
        return only
    functions = {source.name: source for source in found.functions}
    if name in functions:
        return functions[name]
    there = ", ".join(functions)
    if name:
        raise ValueError(f"the project has no function {name}; it has {there}")
    raise ValueError(f"say which function it is for, by `function` in the case or above all cases: {there}")


def _json(key: str, value: Any) -> Any:
    """Return an expected value as JSON, whether it was written in TOML or as a string of JSON."""
    try:
        return orjson.loads(value if isinstance(value, str) else orjson.dumps(value))
    except (orjson.JSONDecodeError, TypeError) as error:
        hint = f"; a string itself is {orjson.dumps(value).decode()!r}" if isinstance(value, str) else ""
        raise ValueError(f"{key} is no JSON: {error}{hint}") from None


def _rows(value: list[list[Any]] | str) -> list[list[Any]]:
    rows = _json("sql_after.rows", value)
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise ValueError("sql_after.rows must be a list with a list for each row")
    return rows


def _said(error: msgspec.ValidationError, kind: type[msgspec.Struct]) -> str:
    """Return text about what is wrong and where; for an unknown key, list the known ones."""
    text, _, at = str(error).partition(" - at `$")
    where = at.strip("`.")
    unknown = unknown_field(error, kind)
    if unknown is None:
        what = text.replace("Object missing required field", "it has no")
        return f"{where}: {what}" if where else what
    meant = f": is it {unknown.near}?" if unknown.near else ""
    table = f" in {where.partition('[')[0]}" if where else ""
    return f"unknown key {unknown.name}{table}{meant} (there are {', '.join(unknown.known)})"
