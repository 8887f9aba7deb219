"""A schema change as text: its statements, what they may contain, and its steps. Pure; `run_change` runs it.

A change runs inside the applier's transactions, so it contains no statement that begins or ends a transaction or can't
run in one. It can't reach the runtime's tables or anything outside the database, however it spells them: SQL has no
computed names, so its tokens show every name.

A change without steps runs whole in the release's one transaction (the flip). Lines of the form `-- skerry: …` divide a
change into steps:

    -- skerry: before               its own transaction, under the serving release
    -- skerry: batch TABLE by KEY   in transactions of a few rows each, with the keys above :after, up to :upto
    -- skerry: flip                 in the release's one transaction
    -- skerry: after                its own transaction, once the release serves
    -- skerry: undo                 what undoes the steps before the flip, if the change is amended or given up

There can be any number of `before` and `batch` steps before the flip, and of `after` and `batch` steps after it; they
run in the order in which they are written. A change with steps has at least one batch, so that a node version without
steps refuses it: the parameters have no values there.
"""

import re
from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from edge_runtime.errors import CodedError
from edge_runtime.sql.allowed_names import FUNCTIONS, INTERNAL, MODULES, RUNTIME_PREFIX
from edge_runtime.sql.tokenizer import SqlToken, TokenKind, at_semicolons, line_comments, name, tokenize, word

VERBS: Final = frozenset(
    {"create", "alter", "drop", "insert", "update", "delete", "replace", "with", "select", "values", "reindex"}
    | {"analyze"}
)
_WHY: Final = {
    "pragma": "PRAGMA can't be relied on inside a transaction",
    "vacuum": "VACUUM can't run inside a transaction",
    "attach": "a schema change stays in its own database",
    "detach": "a schema change stays in its own database",
    "explain": "EXPLAIN changes nothing",
}
_TRANSACTION: Final = frozenset({"begin", "commit", "end", "rollback", "savepoint", "release"})
_MADE: Final = frozenset({"table", "index", "unique", "trigger", "view", "virtual"})
_MADE_OF: Final = MODULES & {"fts3", "fts4", "fts4aux", "fts5", "fts5vocab", "rtree", "rtree_i32", "geopoly"}
"""Virtual tables that keep their content in tables of the database (shadow tables)."""
PARAMETERS: Final = (":after", ":upto")
"""The parameters in a batch's statements for the keys of one batch: the rows above the first, up to the second."""
ROWIDS: Final = ("rowid", "oid", "_rowid_")
"""The names of a table's own key, if no column has them."""
_DIRECTIVE: Final = re.compile(r"--\s*skerry\s*:(.*)", re.IGNORECASE | re.DOTALL)
_MARK: Final = "-- skerry: "
_FORMS: Final = "before, batch TABLE by KEY, flip, after, undo"
_BATCH_VERBS: Final = frozenset({"insert", "update", "delete", "replace", "with"})

Stage = Literal["before", "after"]


class SchemaChangeRefused(CodedError):
    """A schema change can't be accepted. `statement` is the statement that is refused; empty if it isn't about one."""

    def __init__(self, code: str, message: str, statement: str = "") -> None:
        super().__init__(code, message)
        self.statement = statement


class SchemaStatement(NamedTuple):
    sql: str
    tokens: list[SqlToken]


class ChangeStep(NamedTuple):
    """A part of a schema change that has its own transactions."""

    stage: Stage
    """Whether it runs before the flip or after it."""
    sql: str
    table: str = ""
    """The table whose keys divide the step into batches; empty for a step in one transaction."""
    key: str = ""
    """The column with these keys, which are integers."""


@dataclass(frozen=True)
class ChangeSteps:
    """A change with steps: the steps, the SQL of the flip, and the SQL that undoes the steps before the flip."""

    steps: tuple[ChangeStep, ...]
    flip: str
    undo: str

    @property
    def texts(self) -> list[str]:
        """The SQL of the steps and of the flip, in the order in which they run."""
        return [*(step.sql for _, step in self.of("before")), self.flip, *(step.sql for _, step in self.of("after"))]

    def of(self, stage: Stage) -> list[tuple[int, ChangeStep]]:
        """Return the steps of one stage, each with its number, counted from 1 over both."""
        return [(number, step) for number, step in enumerate(self.steps, 1) if step.stage == stage]

    def title(self, number: int) -> str:
        """Return which step it is, in words."""
        step = self.steps[number - 1]
        return f"step {number} of {len(self.steps)} ({f'batches of {step.table}' if step.table else step.stage})"


def split(sql: str) -> list[SchemaStatement]:
    """Return the statements of a schema change; the statements inside a trigger stay in it.

    Raises: SchemaChangeRefused, when there is no statement, or one that is incomplete: nothing is ever dropped.
    """
    if "\0" in sql:
        raise SchemaChangeRefused("schema_invalid", "The schema change has a NUL in its text.")
    tokens = tokenize(sql)
    statements: list[SchemaStatement] = []
    first = 0
    for at, token in enumerate(tokens):
        if token.kind is not TokenKind.SEMICOLON:
            continue
        if at == first:
            # An empty statement.
            first = at + 1
        elif not _is_trigger(tokens[first : first + 4]) or _trigger_ends(tokens[first:at]):
            statements.append(SchemaStatement(sql[tokens[first].start : token.end], tokens[first:at]))
            first = at + 1
    if first < len(tokens):
        text = sql[tokens[first].start : tokens[-1].end]
        if _is_trigger(tokens[first : first + 4]) and not _trigger_ends(tokens[first:]):
            raise SchemaChangeRefused(
                "schema_invalid", "The last statement is incomplete: its trigger has no END.", text
            )
        statements.append(SchemaStatement(text, tokens[first:]))
    if not statements:
        raise SchemaChangeRefused("schema_invalid", "There is no statement in the schema change.")
    return statements


def _is_trigger(tokens: list[SqlToken]) -> bool:
    """Return whether a statement that begins like this is a CREATE TRIGGER, the only statement with semicolons inside.
    This and `_trigger_ends` are the rules of SQLite's own sqlite3_complete."""
    words = [word(token) for token in tokens]
    return words[:2] == ["create", "trigger"] or (
        words[:1] == ["create"] and words[1:2] in (["temp"], ["temporary"]) and words[2:3] == ["trigger"]
    )


def _trigger_ends(tokens: list[SqlToken]) -> bool:
    """Return whether a CREATE TRIGGER with these tokens is complete: its body ends with `; END`."""
    return len(tokens) > 1 and word(tokens[-1]) == "end" and tokens[-2].kind is TokenKind.SEMICOLON


def check(statement: SchemaStatement, closed_functions: Set[str], closed_modules: Set[str]) -> None:
    """Check that a schema change may have this statement. The reserved names are libsql's own, in lower case, as in
    `access.AccessRules`.

    Raises: SchemaChangeRefused, when it may not.
    """
    sql, tokens = statement
    verb = word(tokens[0])
    if verb not in VERBS:
        why = _WHY.get(verb)
        if verb in _TRANSACTION:
            why = "a schema change runs inside one transaction, which it neither begins nor ends"
        why = why or "it is no statement of SQL that a schema change may have"
        raise SchemaChangeRefused("schema_not_allowed", f"{tokens[0].text[:40].upper()} is refused: {why}.", sql)
    if verb in ("create", "drop"):
        _check_made(verb, word(tokens[1]) if len(tokens) > 1 else "", sql)
    for at, token in enumerate(tokens):
        if token.kind is TokenKind.PARAMETER:
            raise SchemaChangeRefused(
                "schema_invalid", f"It has a parameter ({token.text[:40]}), for which there is no value.", sql
            )
        # Not after USING: a virtual table's module with its arguments looks like a function call.
        call = at + 1 < len(tokens) and tokens[at + 1].text == "(" and word(tokens[at - 1]) != "using"
        _check_name(token, call, closed_functions, closed_modules, sql)
    if [word(token) for token in tokens[:3]] == ["create", "virtual", "table"]:
        _check_module(tokens, sql)


def _check_made(verb: str, what: str, sql: str) -> None:
    if what in ("temp", "temporary"):
        raise SchemaChangeRefused(
            "schema_not_allowed", "Temporary tables, views and triggers are refused: none would stay.", sql
        )
    if what not in _MADE:
        raise SchemaChangeRefused(
            "schema_not_allowed", f"A schema change can't {verb.upper()} a {what.upper() or '?'}.", sql
        )


def _check_name(token: SqlToken, call: bool, closed_functions: Set[str], closed_modules: Set[str], sql: str) -> None:
    named = name(token)
    if not named:
        return
    # Anywhere inside a name: a virtual table parses its arguments itself, as in content='_skerry_…'.
    if RUNTIME_PREFIX in named:
        raise SchemaChangeRefused(
            "schema_closed", f"{token.text[:80]}: names with {RUNTIME_PREFIX} are the runtime's own.", sql
        )
    if token.kind is TokenKind.STRING:
        # SQLite treats a string as a name if it can't be anything else. Only a string that is exactly such a name
        # counts.
        closed = named in closed_modules or (named.startswith(INTERNAL) and named.isidentifier())
    else:
        closed = (named.startswith(INTERNAL) and named not in FUNCTIONS) or named in closed_modules
    if closed or (named.startswith("pragma_") and named not in MODULES):
        raise SchemaChangeRefused(
            "schema_closed", f"{token.text[:80]} is SQLite's own, and closed to schema changes.", sql
        )
    if token.kind is not TokenKind.STRING and call and named in closed_functions:
        raise SchemaChangeRefused("schema_closed", f"The function {named}() is closed to schema changes.", sql)


def _check_module(tokens: list[SqlToken], sql: str) -> None:
    using = next((at for at, token in enumerate(tokens) if word(token) == "using"), len(tokens))
    module = name(tokens[using + 1]) if using + 1 < len(tokens) else ""
    if module not in _MADE_OF:
        known = ", ".join(sorted(_MADE_OF))
        raise SchemaChangeRefused(
            "schema_closed", f"A virtual table can be made of {known}, and not of {module or '?'}.", sql
        )


def steps_of(sql: str) -> ChangeSteps | None:
    """Return the steps of a schema change; None if it has none.

    Raises: SchemaChangeRefused, when a dividing line has none of these forms or is in the wrong place.
    """
    sections = _sections(sql)
    if len(sections) == 1:
        return None
    if tokenize(sections[0][1]):
        raise _invalid(f"There are statements before the first line `{_MARK.strip()} …`; put them under `{_MARK}flip`.")
    steps: list[ChangeStep] = []
    stage: Stage = "before"
    flip, undo = None, None
    for directive, text in sections[1:]:
        tokens = tokenize(directive)
        words = [word(token) for token in tokens]
        if undo is not None:
            raise _invalid(f"`{_MARK}undo` must be the last of the steps, and {directive} follows it.")
        if words[:1] == ["batch"]:
            steps.append(_batch(stage, directive, tokens, text))
        elif words == ["before"]:
            if stage == "after":
                raise _invalid(f"`{_MARK}before` can't follow `flip` or `after`.")
            steps.append(ChangeStep(stage, _filled(directive, text)))
        elif words == ["flip"]:
            if stage == "after":
                raise _invalid(f"`{_MARK}flip` can be there once, and not behind `after`.")
            stage, flip = "after", text
        elif words == ["after"]:
            stage = "after"
            steps.append(ChangeStep(stage, _filled(directive, text)))
        elif words == ["undo"]:
            undo = text
        else:
            raise _invalid(f"`{_MARK}{directive}` is none of the steps that there are: {_FORMS}.")
    if not any(step.table for step in steps):
        raise _invalid(
            f"A change with steps needs a step `{_MARK}batch TABLE by KEY`; without one, leave the lines out."
        )
    if undo is None and any(step.stage == "before" and not step.table for step in steps):
        raise _invalid(
            f"A change with a step `before` needs a last step `{_MARK}undo`, which takes it back: DROP TRIGGER, DROP "
            "COLUMN and so on. A node runs it when the change is amended, or given up before its flip."
        )
    return ChangeSteps(tuple(steps), flip or "", undo or "")


def bind(sql: str, after: int, upto: int) -> str:
    """Return a batch's text with its parameters replaced by the keys."""
    values = dict(zip(PARAMETERS, (after, upto), strict=True))
    pieces: list[str] = []
    end = 0
    for token in tokenize(sql):
        if token.kind is TokenKind.PARAMETER and token.text in values:
            pieces += (sql[end : token.start], f"({values[token.text]})")
            end = token.end
    return "".join(pieces) + sql[end:]


def statements(sql: str) -> list[SchemaStatement]:
    """Return all statements of a change in the order in which they run, except those that undo it.

    Raises: SchemaChangeRefused, when one is incomplete.
    """
    steps = steps_of(sql)
    return split(sql) if steps is None else split_all(steps.texts)


def split_all(texts: Iterable[str]) -> list[SchemaStatement]:
    """Return the statements of these texts, some of which may be empty.

    Raises: SchemaChangeRefused, when one is incomplete.
    """
    return [statement for text in texts if tokenize(text) for statement in split(text)]


def _sections(sql: str) -> list[tuple[str, str]]:
    """Return what each dividing line says, with the text below it. The first entry has no line, and the text above all
    lines.

    Raises: SchemaChangeRefused, when a comment almost is such a line.
    """
    found: list[tuple[str, str]] = []
    directive, start = "", 0
    for comment in line_comments(sql):
        match = _DIRECTIVE.fullmatch(comment.text)
        if match is None:
            continue
        if not comment.text.startswith(_MARK) or sql[: comment.start].rpartition("\n")[2].strip():
            raise _invalid(f"{comment.text.strip()[:80]}: a step begins with a line `{_MARK}…` of its own.")
        found.append((directive, sql[start : comment.start]))
        directive, start = match[1].strip(), comment.end
    return [*found, (directive, sql[start:])]


def _filled(directive: str, text: str) -> str:
    if not tokenize(text):
        raise _invalid(f"There is no statement under `{_MARK}{directive}`.")
    return text


def _batch(stage: Stage, directive: str, tokens: list[SqlToken], text: str) -> ChangeStep:
    names = [_identifier(token) for token in tokens]
    if len(tokens) != 4 or word(tokens[2]) != "by" or not names[1] or not names[3]:
        raise _invalid(f"`{_MARK}{directive}` must be `{_MARK}batch TABLE by KEY`.")
    _filled(directive, text)
    for statement in at_semicolons(tokenize(text)):
        _check_batch(directive, statement)
    return ChangeStep(stage, text, names[1], names[3])


def _check_batch(directive: str, statement: list[SqlToken]) -> None:
    if word(statement[0]) not in _BATCH_VERBS:
        raise _invalid(
            f"Under `{_MARK}{directive}` there can be INSERT, UPDATE, DELETE and REPLACE, and not "
            f"{statement[0].text[:40].upper()}."
        )
    parameters = {token.text for token in statement if token.kind is TokenKind.PARAMETER}
    if parameters != set(PARAMETERS):
        raise _invalid(
            f"Each statement under `{_MARK}{directive}` must say which rows are its own by :after and :upto, as in "
            "`WHERE KEY > :after AND KEY <= :upto`, and can have no other parameter."
        )


def _identifier(token: SqlToken) -> str:
    """Return a token's name as written; empty if the token isn't a name."""
    if token.kind is TokenKind.NAME:
        return token.text
    if token.kind is TokenKind.QUOTED:
        inner = token.text[1:-1]
        return inner if token.text[0] == "[" else inner.replace(token.text[0] * 2, token.text[0])
    return ""


def _invalid(message: str) -> SchemaChangeRefused:
    return SchemaChangeRefused("schema_invalid", message)
