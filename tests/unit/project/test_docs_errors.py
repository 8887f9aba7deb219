"""Every code that the program tells is in its side's table, and docs/errors.md is what `just errors` makes of them."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from control import problems
from edge_runtime import errors
from scripts import errors_page

ROOT = Path(__file__).resolve().parents[3]
CODE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
STATUS = range(400, 600)
TABLES = {"control": problems.CODES, "edge_runtime": errors.CODES}
TABLE_MODULES = (ROOT / "control" / "problems.py", ROOT / "edge_runtime" / "errors.py")

BASES = {"CodedError", "ProblemError", "Failure"}
"""The base class of the edge's errors with a code, of control's, and of what `skerry` ends with."""
OTHERS = {
    *("ChildFailure", "FailedSync", "Fault", "Problem", "Refusal", "SyncError"),
    *("_fault", "_refused", "code_of", "fail", "refused"),
}
"""What else is called with a code."""


Nodes = list[ast.Call | ast.Assign | ast.Constant | ast.ClassDef]


def nodes(source: str) -> Nodes:
    """What of a module may have to do with codes, from one walk through all of it."""
    kinds = (ast.Call, ast.Assign, ast.Constant, ast.ClassDef)
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]


@functools.cache
def modules(package: str) -> dict[Path, Nodes]:
    """The package's modules, but for the one that has the table."""
    paths = (ROOT / package).rglob("*.py")
    return {path: nodes(path.read_text("utf-8")) for path in paths if path not in TABLE_MODULES}


@functools.cache
def take_a_code() -> set[str]:
    """Names of what takes a code as the argument `code`, or as one of the first two positional ones."""
    all_of_them = [found for package in TABLES for found in modules(package).values()]
    all_of_them += [nodes(path.read_text("utf-8")) for path in TABLE_MODULES]
    classes = [node for found in all_of_them for node in found if isinstance(node, ast.ClassDef)]
    found = BASES | OTHERS
    while True:
        derived = {
            node.name for node in classes if found & {base.id for base in node.bases if isinstance(base, ast.Name)}
        }
        if derived <= found:
            return found
        found = found | derived


def strings(node: ast.expr) -> list[str]:
    """The constant strings that an argument can be."""
    if isinstance(node, ast.IfExp):
        return strings(node.body) + strings(node.orelse)
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def calls(module: Nodes) -> Iterator[ast.Call]:
    """The calls of what is called with a code."""
    for node in module:
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in take_a_code():
            yield node


def code_of(call: ast.Call) -> set[str]:
    positional = [text for argument in call.args[:2] for text in strings(argument)]
    # A positional word without an underscore is no code: no message is one word.
    found = {text for text in positional if CODE.fullmatch(text)}
    return found | {text for keyword in call.keywords if keyword.arg == "code" for text in strings(keyword.value)}


def told(module: Nodes) -> set[str]:
    """The codes that a module tells."""
    found = {code for call in calls(module) for code in code_of(call)}
    for node in module:
        if isinstance(node, ast.Assign):
            target = getattr(node.targets[0], "id", getattr(node.targets[0], "attr", ""))
            if target in ("code", "limit_code"):
                found |= set(strings(node.value)) - {""}
    return found


@pytest.mark.parametrize("package", TABLES)
def test_every_code_that_is_told_is_in_the_table(package: str) -> None:
    missing = {
        code: path.name for path, module in modules(package).items() for code in told(module) - TABLES[package].keys()
    }
    assert missing == {}


def test_classes_with_a_code_are_found_by_their_base() -> None:
    assert {"AuthError", "Locked", "GuestFault", "JoinFailed", "SyncFailed", "StepFailed"} <= take_a_code()


def test_a_code_that_is_not_in_the_table_is_found() -> None:
    source = 'raise ProblemError("no_such_code", f"{name} is gone", field="name")\ncode = "another_one"'
    assert told(nodes(source)) == {"no_such_code", "another_one"}


@pytest.mark.parametrize("package", TABLES)
def test_every_code_of_the_table_is_told(package: str) -> None:
    constants = {
        node.value
        for module in modules(package).values()
        for node in module
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert TABLES[package].keys() - constants == set()


@pytest.mark.parametrize("package", TABLES)
def test_a_status_beside_a_code_is_that_of_the_table(package: str) -> None:
    other = {}
    for path, module in modules(package).items():
        for call in calls(module):
            values = [
                node.value for node in [*call.args, *(k.value for k in call.keywords)] if type(node) is ast.Constant
            ]
            for status in [value for value in values if type(value) is int and value in STATUS]:
                other |= {
                    f"{path.name}:{call.lineno}": (code, status)
                    for code in code_of(call)
                    if TABLES[package][code].status not in (0, status)
                }
    assert other == {}


def test_a_code_has_one_status_on_each_side() -> None:
    """Those that both sides answer have the same status, but for a write that may be saved or not."""
    both = problems.CODES.keys() & errors.CODES.keys()
    statuses = {code: {problems.CODES[code].status, errors.CODES[code].status} - {0} for code in both}
    assert {code for code, found in statuses.items() if len(found) > 1} == {"commit_unknown"}


def test_the_page_is_what_just_errors_makes() -> None:
    made = errors_page.page(errors_page.explanations())
    assert errors_page.PAGE.read_text("utf-8") == made, "run `just errors`"


def test_the_page_changes_with_a_message_and_with_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    before = errors_page.page(errors_page.explanations())
    monkeypatch.setitem(problems.CODES, "unknown_group", problems.ProblemCode(410, "The group is gone"))
    after = errors_page.page(errors_page.explanations())
    assert before != after
    assert "#### `unknown_group`\n\n**410** · The group is gone.\n" in after


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_code_without_an_explanation_is_refused(table: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(table, "brand_new", problems.ProblemCode(409, "It is new"))
    with pytest.raises(ValueError, match="brand_new: these codes have no explanation"):
        errors_page.page(errors_page.explanations())


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("#### `nobodys`\n\n*Cure:* None.\n", "nobodys: .* in neither table"),
        ("#### `unknown_group`\n\n*Cure:* Another.\n", "unknown_group: .* explained twice"),
    ],
)
def test_an_explanation_too_many_is_refused(entry: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        errors_page.page(f"{errors_page.explanations()}\n{entry}")


def test_an_explanation_without_a_cure_is_refused() -> None:
    before, heading, after = errors_page.explanations().partition("#### `unknown_operator`\n")
    without = before + heading + after.replace("*Cure:* ", "", 1)
    with pytest.raises(ValueError, match="unknown_operator: these codes have no cure"):
        errors_page.page(without)


TOKEN = re.compile(r"(?<![\d,.])([45]\d\d)(?![\d,.]*\d)(?! ms| MiB| bytes)|\[`([a-z0-9_]+)`\]\([^)]*errors\.md#\2\)")


def statuses_told(text: str) -> Iterator[tuple[str, set[int]]]:
    """Each code that a page links, with the statuses that are named before it in its paragraph or item of a list."""
    for block in re.split(r"\n\s*\n|\n *[-*] ", text):
        statuses: set[int] = set()
        after_code = False
        for status, code in TOKEN.findall(block):
            if status:
                statuses = {int(status)} if after_code else statuses | {int(status)}
                after_code = False
            else:
                after_code = True
                yield code, statuses


def test_other_pages_tell_the_same_statuses() -> None:
    pages = [page for page in (ROOT / "docs").rglob("*.md") if page != errors_page.PAGE]
    told = [(page.name, *found) for page in pages for found in statuses_told(page.read_text("utf-8"))]
    assert len([status for *_, status in told if status]) > 20
    wrong = [
        (page, code, statuses)
        for page, code, statuses in told
        if statuses and not statuses & {table[code].status for table in TABLES.values() if code in table}
    ]
    assert wrong == []


def test_statuses_of_other_pages_are_read() -> None:
    text = "- **404, 405**: [`a`](errors.md#a),\n  [`b`](../errors.md#b) and 502 [`c`](errors.md#c).\n"
    text += "- 500 ms [`d`](errors.md#d)"
    assert list(statuses_told(text)) == [("a", {404, 405}), ("b", {404, 405}), ("c", {502}), ("d", set())]
