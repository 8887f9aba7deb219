"""The tokenizer and the splitting of schema changes, held against SQLite's own where that can be asked."""

import re
import sqlite3

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_runtime.sql.schema import normal
from edge_runtime.sql.schema_change import SchemaChangeRefused, split
from edge_runtime.sql.tokenizer import TokenKind, name, tokenize, without_values

SOUP = [
    "'",
    '"',
    "`",
    "[",
    "]",
    "--",
    "-",
    "/*",
    "*/",
    "/",
    "*",
    ";",
    "\n",
    " ",
    "a",
    "?",
    "x'",
    "X",
    "1",
    ".",
    "é",
    "(",
    "$",
    "€b",
]


def kinds(sql):
    return [token.kind.name for token in tokenize(sql)]


@given(st.lists(st.sampled_from(SOUP), max_size=25).map("".join))
@example("a/*/;*/;")
@example("a[';];")
@example("a'';'';")
def test_where_a_statement_ends_is_where_sqlite_says(sql):
    tokens = tokenize(sql)
    ends = bool(tokens) and tokens[-1].kind is TokenKind.SEMICOLON and len(tokens) > 0
    # complete_statement doesn't take an unclosed comment for space, as the parser does.
    outside = re.sub(r"""'[^']*'|"[^"]*"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*(?s:.*?)\*/""", "", sql)
    if "/*" in outside:
        return
    assert ends == sqlite3.complete_statement(sql)


@given(st.lists(st.sampled_from(SOUP), max_size=25).map("".join))
def test_no_character_is_lost(sql):
    after = 0
    for token in tokenize(sql):
        assert token.text == sql[token.start : token.end] != ""
        between = sql[after : token.start]
        assert between.strip() == "" or between.strip().startswith(("--", "/*"))
        after = token.end


@given(st.lists(st.sampled_from(["?", "?1", "?2", "?7", "'?'", '"a?"', "/* ? */ 1", "x'00'"]), min_size=1, max_size=8))
def test_parameters_are_numbered_as_sqlite_does(terms):
    from edge_runtime.sql.session import _parameters

    sql = "SELECT " + ", ".join(terms) + ' FROM (SELECT 1 AS "a?")'
    count = max((number for _, _, number in _parameters(tokenize(sql))), default=0)
    connection = sqlite3.connect(":memory:")
    connection.execute(sql, (None,) * count).fetchall()
    if count:
        with pytest.raises(sqlite3.ProgrammingError):
            connection.execute(sql, (None,) * (count - 1))
    connection.close()


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30))
def test_a_quoted_text_is_one_token(text):
    for quoted, kind in [
        ("'" + text.replace("'", "''") + "'", TokenKind.STRING),
        ('"' + text.replace('"', '""') + '"', TokenKind.QUOTED),
        ("`" + text.replace("`", "``") + "`", TokenKind.QUOTED),
        ("[" + text.replace("]", "") + "]", TokenKind.QUOTED),
    ]:
        tokens = tokenize(f"SELECT {quoted};")
        assert [token.kind for token in tokens] == [TokenKind.NAME, kind, TokenKind.SEMICOLON]
        assert name(tokens[1]) == (text.replace("]", "") if quoted[0] == "[" else text).lower()


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("x'00ff' X'' x", ["BLOB", "BLOB", "NAME"]),
        ("1 1.5 .5 1e9 1.e-3 0x1F 1_000", ["NUMBER"] * 7),
        ("? ?12 :a @b $c::d(e)", ["PARAMETER"] * 5 + ["OTHER", "NAME", "OTHER"]),
        ("a->>'$.b'", ["NAME", "OTHER", "OTHER", "OTHER", "STRING"]),
        ("\ufeffselect\t/**/1", ["NAME", "NUMBER"]),
        ("a/*/ b", ["NAME"]),
        ("a /*", ["NAME", "OTHER", "OTHER"]),
        ("'never closed; --", ["OTHER"]),
    ],
)
def test_kinds(sql, found):
    assert kinds(sql) == found


TRIGGER = """CREATE TRIGGER t AFTER INSERT ON a
BEGIN -- not the END;
  UPDATE a SET x = CASE WHEN x > 1 THEN 'END;' ELSE 0 END;
  INSERT INTO b VALUES ('x;y', "z;");
END;"""

PIECES = [
    "CREATE TABLE a (x TEXT DEFAULT ';' /* ; */);",
    TRIGGER,
    TRIGGER.replace("CREATE TRIGGER", "create /* ; */ trigger if not exists"),
    "INSERT INTO a VALUES ('it''s; fine') -- ; no\n;",
    'UPDATE "a;b" SET [c;d] = `e;f`;',
    "CREATE VIEW trigger_view AS SELECT 1 AS begin_end;",
]


@given(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=8),
    st.sampled_from(["", " ", "\n-- a comment; with a semicolon\n", "/* ; */", ";;"]),
    st.booleans(),
)
def test_a_schema_change_is_split_where_its_statements_end(pieces, between, whole):
    sql = between + between.join(pieces) + between
    assert [statement.sql for statement in split(sql)] == pieces
    if not whole:
        assert split(sql.rstrip("; \n") if not between else sql)[-1].sql


@pytest.mark.parametrize("tail", ["", ";", " ;; ", " -- the end", "\n/* the end */", " -- x\n;"])
def test_the_last_statement_needs_no_semicolon(tail):
    assert split("CREATE TABLE a (x); CREATE TABLE b (y)" + tail)[-1].tokens[2].text == "b"
    assert len(split(TRIGGER.rstrip(";") + tail)) == 1


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("", "schema_invalid"),
        (" -- nothing\n;;/* here */", "schema_invalid"),
        ("CREATE TABLE a (x); CREATE TRIGGER t AFTER INSERT ON a BEGIN SELECT 1;", "schema_invalid"),
        ("CREATE TABLE a (x)\0; DROP TABLE a", "schema_invalid"),
    ],
)
def test_what_is_no_schema_change(sql, code):
    with pytest.raises(SchemaChangeRefused) as refused:
        split(sql)
    assert refused.value.code == code


def test_definitions_are_the_same_but_for_how_they_are_written():
    written = "CREATE TABLE \"T\" (a INTEGER,\n  b TEXT DEFAULT 'A b') -- why"
    assert normal(written) == normal("create table t(A integer, [b] text default 'A b')")
    assert normal(written) != normal("create table t(A integer, [b] text default 'a b')")
    assert normal(written) != normal("create table t(A integer, [b] blob default 'A b')")


@pytest.mark.parametrize(
    ("sql", "shown"),
    [
        ("SELECT 1", "SELECT ?"),
        (
            "select  a.b,c\n from t -- by ada\n where x='it''s' /* 5 */ and y=x'00ff'",
            "select a.b,c from t where x=? and y=?",
        ),
        ('INSERT INTO "a b" VALUES (?1, :n, 0x1F, -2.5e3)', 'INSERT INTO "a b" VALUES (?1, :n, ?, -?)'),
        ("SELECT 'never ends", "SELECT ?"),
        ('SELECT "never ends', "SELECT ?"),
        ("", ""),
    ],
)
def test_values_are_taken_out_of_what_is_shown(sql, shown):
    assert without_values(sql) == shown


@given(st.text(max_size=200), st.integers(0, 50))
def test_no_string_is_shown_wherever_a_statement_is_cut(text, cut):
    secret = "qZ9" + text.replace("'", "''") + "Zq9"
    statement = f"UPDATE t SET a = '{secret}' WHERE b = 1"
    shown = without_values(statement[: len(statement) - cut])
    assert "qZ9" not in shown
