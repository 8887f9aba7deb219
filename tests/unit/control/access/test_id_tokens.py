"""Which ID tokens are taken: made here with keys of the test's, as no real provider would make them."""

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, RSAKey

from control.access import id_tokens
from control.access.id_tokens import Expected, KeyUnknown, TokenRefused

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
TIME = int(NOW.timestamp())
EXPECTED = Expected("https://id.example", "skerry", "the nonce", NOW)
KEY = RSAKey.generate_key(2048, {"kid": "one", "use": "sig"})
OTHER = RSAKey.generate_key(2048, {"kid": "one", "use": "sig"})
CURVE = ECKey.generate_key("P-256", {"kid": "two", "use": "sig"})
KEYS = KeySet.import_key_set({"keys": [KEY.as_dict(private=False), CURVE.as_dict(private=False)]})
GOOD: dict[str, Any] = {
    "iss": "https://id.example",
    "sub": "u-1",
    "aud": "skerry",
    "nonce": "the nonce",
    "iat": TIME,
    "exp": TIME + 300,
}


def made(claims: dict[str, Any], key: Any = KEY, **header: Any) -> str:
    sent = {"alg": "RS256", "kid": "one", **header}
    return jwt.encode(sent, claims, key, algorithms=[sent["alg"]])


def read(token: str, access_token: str = "") -> dict[str, Any]:
    return id_tokens.claims(token, KEYS, EXPECTED, access_token)


def half_hash(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()[:16]).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"aud": ["skerry"]},
        {"aud": ["other", "skerry"], "azp": "skerry"},
        {"azp": "skerry"},
        {"exp": TIME - 59},
        {"iat": TIME + 59},
        {"iat": TIME - 650},
        {"nbf": TIME},
        {"at_hash": half_hash("the access token")},
    ],
)
def test_good_ones(changes: dict[str, Any]) -> None:
    claims = {**GOOD, **changes}
    assert read(made(claims), "the access token") == claims
    assert read(made(claims, CURVE, alg="ES256", kid="two"), "the access token") == claims


@pytest.mark.parametrize(
    ("changes", "about"),
    [
        ({"iss": "https://id.example/"}, "iss"),
        ({"iss": None}, "iss"),
        ({"sub": ""}, "sub"),
        ({"sub": None}, "sub"),
        ({"sub": 7}, "sub"),
        ({"sub": "a" * 256}, "sub"),
        ({"sub": "a\nb"}, "sub"),
        ({"sub": " "}, "sub"),
        ({"sub": "\u3000"}, "sub"),
        ({"sub": ["u-1"]}, "sub"),
        ({"aud": "other"}, "aud"),
        ({"aud": []}, "aud"),
        ({"aud": None}, "aud"),
        ({"aud": ["skerry", "other"]}, "azp"),
        ({"aud": ["skerry", "other"], "azp": "other"}, "azp"),
        ({"azp": "other"}, "azp"),
        ({"nonce": "another"}, "nonce"),
        ({"nonce": None}, "nonce"),
        ({"nonce": ["the nonce"]}, "nonce"),
        ({"exp": TIME - 60}, "exp"),
        ({"exp": None}, "exp"),
        ({"exp": "never"}, "exp"),
        ({"exp": True}, "exp"),
        ({"exp": float("nan")}, "exp"),
        ({"exp": float("inf")}, "exp"),
        ({"exp": 10**400}, "exp"),
        ({"exp": str(TIME + 300)}, "exp"),
        ({"iat": TIME + 61}, "iat"),
        ({"iat": TIME - 661}, "iat"),
        ({"iat": None}, "iat"),
        ({"iat": float("nan")}, "iat"),
        ({"iat": -(10**400)}, "iat"),
        ({"nbf": TIME + 61}, "nbf"),
        ({"nbf": float("nan")}, "nbf"),
        ({"nbf": "never"}, "nbf"),
        ({"at_hash": half_hash("another access token")}, "at_hash"),
        ({"at_hash": None}, "at_hash"),
    ],
)
def test_claims_that_are_refused(changes: dict[str, Any], about: str) -> None:
    with pytest.raises(TokenRefused, match=about):
        read(made({**GOOD, **changes}), "the access token")


@pytest.mark.parametrize("name", ["iss", "sub", "aud", "nonce", "exp", "iat"])
def test_no_claim_may_be_missing(name: str) -> None:
    with pytest.raises(TokenRefused):
        read(made({key: value for key, value in GOOD.items() if key != name}))


def part(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unsigned() -> str:
    return f"{part(json.dumps({'alg': 'none'}).encode())}.{part(json.dumps(GOOD).encode())}."


def by_the_public_key() -> str:
    """Signed by a secret that everybody has: the text of the public key."""
    signed = ".".join(part(json.dumps(one).encode()) for one in ({"alg": "HS256", "kid": "one"}, GOOD))
    return f"{signed}.{part(hmac.digest(KEY.as_pem(private=False), signed.encode(), 'sha256'))}"


@pytest.mark.parametrize(
    "token",
    [
        unsigned(),
        by_the_public_key(),
        made(GOOD, OTHER),
        made(GOOD)[:-8] + "AAAAAAAA",
        made(GOOD).rpartition(".")[0] + ".",
        made(GOOD, CURVE, alg="ES256", kid="one"),
        "",
        "a.b",
        "a.b.c",
        "{}",
        "\u00e4.b.c",
        part(b"[" * 100_000) + ".b.c",
        part(b"[1]") + ".b.c",
        part(b"1") + ".b.c",
        part(b"null") + ".b.c",
        part(b'{"alg": ["RS256"]}') + ".b.c",
        part(b'{"alg": "RS256", "kid": ["one"]}') + ".b.c",
        part(b'{"alg": "RS256", "kid": {"one": 1}, "crit": 7}') + ".b.c",
        part(b'{"alg": "RS256", "kid": "one", "crit": ["exp"]}') + ".b.c",
        part(b'{"alg": "RS256", "kid": "one", "b64": false, "crit": ["b64"]}') + ".b.c",
        made(GOOD).partition(".")[0] + "." + part(b"[" * 100_000) + ".c",
    ],
)
def test_signatures_that_are_refused(token: str) -> None:
    with pytest.raises(TokenRefused):
        read(token)


def test_a_key_that_is_not_there_may_be_a_new_one() -> None:
    with pytest.raises(KeyUnknown):
        read(made(GOOD, OTHER, kid="three"))
