"""The steps of a schema change that doesn't run in one go: which of its text runs when. Pure.

Lines of the form `-- skerry: …` divide the text:

    -- skerry: before               a transaction of its own, under the release that serves
    -- skerry: batch TABLE by KEY   in transactions of a few rows each, with the keys above :after, up to :upto
    -- skerry: flip                 in the release's one transaction
    -- skerry: after                a transaction of its own, once the release serves
    -- skerry: undo                 what takes the steps before the flip back, when the change is amended or given up

`before` and `batch` steps come before the flip, `after` and `batch` steps behind it, as many as wanted, in the order in
which they are written. A change without such lines is all flip. One with them has a batch, so that a node that knows no
steps refuses it: the parameters have no values there.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from edge_runtime.sql.tokenizer import SqlToken, TokenKind, line_comments, tokenize, word

PARAMETERS: Final = (":after", ":upto")
"""What a batch's statements have in place of the keys of one batch: above the one, up to the other."""
ROWIDS: Final = ("rowid", "oid", "_rowid_")
"""The names of a table's own key, where no column has them."""
_DIRECTIVE: Final = re.compile(r"--\s*skerry\s*:(.*)", re.IGNORECASE | re.DOTALL)
_MARK: Final = "-- skerry: "
_FORMS: Final = "before, batch TABLE by KEY, flip, after, undo"
_VERBS: Final = frozenset({"insert", "update", "delete", "replace", "with"})

Stage = Literal["before", "after"]


class StepsInvalid(Exception):
    """The lines that divide a schema change, or what is between them, can't be as they are."""


class ChangeStep(NamedTuple):
    """A part of a schema change with transactions of its own."""

    stage: Stage
    """Whether it comes before the flip or behind it."""
    sql: str
    table: str = ""
    """The table by whose keys the step goes, in batches; empty for a step in one transaction."""
    key: str = ""
    """The column of integers that are the keys."""


@dataclass(frozen=True)
class ChangeSteps:
    steps: tuple[ChangeStep, ...]
    flip: str
    undo: str

    def of(self, stage: Stage) -> list[tuple[int, ChangeStep]]:
        """Return the steps of one stage, each with its number, counted from 1 over both."""
        return [(number, step) for number, step in enumerate(self.steps, 1) if step.stage == stage]

    def title(self, number: int) -> str:
        """Return which step it is, for people."""
        step = self.steps[number - 1]
        return f"step {number} of {len(self.steps)} ({f'batches of {step.table}' if step.table else step.stage})"


def parse(sql: str) -> ChangeSteps | None:
    """Return the steps of a schema change; None where no line divides it.

    Raises: StepsInvalid, when a line is none of the forms, or stands where it can't.
    """
    sections = _sections(sql)
    if len(sections) == 1:
        return None
    if tokenize(sections[0][1]):
        raise StepsInvalid(
            f"There are statements before the first line `{_MARK.strip()} …`; put them under `{_MARK}flip`."
        )
    steps: list[ChangeStep] = []
    stage: Stage = "before"
    flip, undo = None, None
    for directive, text in sections[1:]:
        tokens = tokenize(directive)
        words = [word(token) for token in tokens]
        if undo is not None:
            raise StepsInvalid(f"`{_MARK}undo` must be the last of the steps, and {directive} follows it.")
        if words[:1] == ["batch"]:
            steps.append(_batch(stage, directive, tokens, text))
        elif words == ["before"]:
            if stage == "after":
                raise StepsInvalid(f"`{_MARK}before` can't follow `flip` or `after`.")
            steps.append(ChangeStep(stage, _filled(directive, text)))
        elif words == ["flip"]:
            if stage == "after":
                raise StepsInvalid(f"`{_MARK}flip` can be there once, and not behind `after`.")
            stage, flip = "after", text
        elif words == ["after"]:
            stage = "after"
            steps.append(ChangeStep(stage, _filled(directive, text)))
        elif words == ["undo"]:
            undo = text
        else:
            raise StepsInvalid(f"`{_MARK}{directive}` is none of the steps that there are: {_FORMS}.")
    if not any(step.table for step in steps):
        raise StepsInvalid(
            f"A change with steps needs a step `{_MARK}batch TABLE by KEY`; without one, leave the lines out."
        )
    if undo is None and any(step.stage == "before" and not step.table for step in steps):
        raise StepsInvalid(
            f"A change with a step `before` needs a last step `{_MARK}undo`, which takes it back: DROP TRIGGER, DROP "
            "COLUMN and so on. A node runs it when the change is amended, or given up before its flip."
        )
    return ChangeSteps(tuple(steps), flip or "", undo or "")


def bind(sql: str, after: int, upto: int) -> str:
    """Return a batch's text with the keys in place of its parameters."""
    values = dict(zip(PARAMETERS, (after, upto), strict=True))
    pieces: list[str] = []
    end = 0
    for token in tokenize(sql):
        if token.kind is TokenKind.PARAMETER and token.text in values:
            pieces += (sql[end : token.start], f"({values[token.text]})")
            end = token.end
    return "".join(pieces) + sql[end:]


def _sections(sql: str) -> list[tuple[str, str]]:
    """Return what each dividing line says, with the text below it; the first has no line, and what is above them.

    Raises: StepsInvalid, when a line is nearly one.
    """
    found: list[tuple[str, str]] = []
    directive, start = "", 0
    for comment in line_comments(sql):
        match = _DIRECTIVE.fullmatch(comment.text)
        if match is None:
            continue
        if not comment.text.startswith(_MARK) or sql[: comment.start].rpartition("\n")[2].strip():
            raise StepsInvalid(f"{comment.text.strip()[:80]}: a step begins with a line `{_MARK}…` of its own.")
        found.append((directive, sql[start : comment.start]))
        directive, start = match[1].strip(), comment.end
    return [*found, (directive, sql[start:])]


def _filled(directive: str, text: str) -> str:
    if not tokenize(text):
        raise StepsInvalid(f"There is no statement under `{_MARK}{directive}`.")
    return text


def _batch(stage: Stage, directive: str, tokens: list[SqlToken], text: str) -> ChangeStep:
    names = [_identifier(token) for token in tokens]
    if len(tokens) != 4 or word(tokens[2]) != "by" or not names[1] or not names[3]:
        raise StepsInvalid(f"`{_MARK}{directive}` must be `{_MARK}batch TABLE by KEY`.")
    _filled(directive, text)
    statement: list[SqlToken] = []
    for token in [*tokenize(text), None]:
        if token is not None and token.kind is not TokenKind.SEMICOLON:
            statement.append(token)
        elif statement:
            _check_batch(directive, statement)
            statement = []
    return ChangeStep(stage, text, names[1], names[3])


def _check_batch(directive: str, statement: list[SqlToken]) -> None:
    if word(statement[0]) not in _VERBS:
        raise StepsInvalid(
            f"Under `{_MARK}{directive}` there can be INSERT, UPDATE, DELETE and REPLACE, and not "
            f"{statement[0].text[:40].upper()}."
        )
    parameters = {token.text for token in statement if token.kind is TokenKind.PARAMETER}
    if parameters != set(PARAMETERS):
        raise StepsInvalid(
            f"Each statement under `{_MARK}{directive}` must say which rows are its own by :after and :upto, as in "
            "`WHERE KEY > :after AND KEY <= :upto`, and can have no other parameter."
        )


def _identifier(token: SqlToken) -> str:
    """Return the name that a token is, as it is written; empty where it is none."""
    if token.kind is TokenKind.NAME:
        return token.text
    if token.kind is TokenKind.QUOTED:
        inner = token.text[1:-1]
        return inner if token.text[0] == "[" else inner.replace(token.text[0] * 2, token.text[0])
    return ""
