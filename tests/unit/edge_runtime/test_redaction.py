"""Values of secrets are taken out of text, whole, in lines, at a cut; and nothing else is."""

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.redaction import LEAST, Redactor

PEM = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG\n9w0BAQEFAASCBKcwggSj\n-----END KEY-----\n"


def knowing(**values: str) -> Redactor:
    made = Redactor()
    made.know({"f": values})
    return made


def test_values_are_replaced_by_their_names() -> None:
    redact = knowing(A="alpha-1", B="beta.*")
    assert redact("x alpha-1alpha-1 beta.* betaxx") == "x [secret A][secret A] [secret B] betaxx"
    assert Redactor()("alpha-1", cut=True) == "alpha-1"


def test_the_longer_value_wins() -> None:
    assert knowing(A="abcd", B="abcdef")("abcdef abcd") == "[secret B] [secret A]"


def test_a_value_of_lines_is_found_whole_and_by_its_lines() -> None:
    redact = knowing(KEY=PEM)
    assert redact(f"a {PEM}b") == "a [secret KEY]b"
    assert redact("9w0BAQEFAASCBKcwggSj") == "[secret KEY]"
    assert redact("-----BEGIN KEY-----") == "-----BEGIN KEY-----"


def test_short_values_are_not_looked_for() -> None:
    assert knowing(A="no", B="x" * (LEAST - 1))("no xxx") == "no xxx"


def test_values_before_a_change_are_still_known() -> None:
    redact = knowing(A="first-value")
    redact.know({"f": {"A": "second-value"}})
    assert redact("first-value second-value") == "[secret A] [secret A]"


@given(st.text("abcd", min_size=LEAST, max_size=12), st.text("abxy ", max_size=20), st.integers(0, 12))
def test_no_text_has_a_value_nor_its_beginning_at_a_cut(value: str, before: str, length: int) -> None:
    redact = knowing(A=value)
    assert value not in redact(before + value + before)
    shown = redact(before + value[:length], cut=True)
    assert not any(shown.endswith(value[:n]) for n in range(LEAST, len(value) + 1))
