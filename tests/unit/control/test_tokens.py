"""Tokens: what is one, and that nothing but its own secret matches its hash."""

import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control import tokens


@pytest.mark.parametrize("kind", ["node", "join", "operator", "session", "login"])
def test_a_token_is_read_as_what_it_is(kind: tokens.Kind) -> None:
    token = tokens.new_token(kind)
    parsed = tokens.parse(kind, token.text)
    assert parsed == (str(token.id), token.secret_hash)
    others: list[tokens.Kind] = ["node", "join", "operator", "session", "login"]
    assert all(tokens.parse(other, token.text) is None for other in others if other != kind)


def test_a_join_token_may_carry_a_fingerprint() -> None:
    token = tokens.new_token("join")
    assert tokens.parse("join", f"{token.text}.{'ab' * 32}") == (str(token.id), token.secret_hash)
    assert tokens.parse("join", f"{token.text}.abc") is None


def test_secrets_have_256_bits_and_are_not_kept() -> None:
    made = [tokens.new_token("node") for _ in range(100)]
    found = {token.text.rpartition("_")[2] if token.text.count("_") == 2 else token.text[41:] for token in made}
    assert len(found) == 100
    for token in made:
        secret = token.text[len(f"skn_{token.id}_") :]
        assert len(secret) == len(secrets.token_urlsafe(32))
        assert secret not in token.secret_hash


@given(st.text(max_size=120))
def test_other_text_is_no_token(text: str) -> None:
    assert tokens.parse("node", text) is None


@given(st.integers(0, 200), st.characters())
def test_a_changed_token_never_has_the_same_hash(position: int, character: str) -> None:
    token = tokens.new_token("operator")
    changed = token.text[: position % len(token.text)] + character + token.text[position % len(token.text) + 1 :]
    parsed = tokens.parse("operator", changed)
    same = parsed is not None and parsed[0] == str(token.id) and tokens.same(parsed[1], token.secret_hash)
    assert same == (changed == token.text)
