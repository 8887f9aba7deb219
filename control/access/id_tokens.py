"""Checks that an OpenID provider's ID token says who has just signed in. joserfc checks its signature."""

import hashlib
import hmac
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from joserfc import jws, jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519")
"""Signatures with a key that only the provider has: neither `none` nor those with the client's secret."""
HASHES = {"256": hashlib.sha256, "384": hashlib.sha384, "512": hashlib.sha512}
SKEW = 60.0
"""Seconds by which the provider's clock and control's may differ."""
OLDEST = 600.0
"""The greatest age, in seconds, of an ID token from a sign-in that just happened."""
LAST = 253_402_300_799
"""The last second that a time can represent, in the year 9999."""
LONGEST_SUBJECT = 255
"""The most characters of a subject (OpenID Connect Core 2)."""


class TokenRefused(Exception):
    """An ID token doesn't say what it must; the message says what is wrong, without the token."""


class KeyUnknown(TokenRefused):
    """It is signed with a key that isn't among the provider's: they may have changed since they were read."""


@dataclass(frozen=True)
class Expected:
    """What an ID token must contain."""

    issuer: str
    client_id: str
    nonce: str
    now: datetime


def claims(token: str, keys: KeySet, expected: Expected, access_token: str) -> dict[str, Any]:
    """Return the claims of an ID token that came with `access_token`. Raises: TokenRefused; KeyUnknown."""
    try:
        decoded = jwt.decode(token, keys, algorithms=ALGORITHMS, registry=_REGISTRY)
    except InvalidKeyIdError as error:
        raise KeyUnknown("the ID token is signed by a key that the provider doesn't tell") from error
    except (JoseError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        # Its header isn't signed, so the library gets values of any type and depth.
        raise TokenRefused(f"the ID token's signature isn't good ({type(error).__name__})") from error
    found = decoded.claims
    _check(found, expected)
    if "at_hash" in found and not _is_hash(found["at_hash"], access_token, str(decoded.header.get("alg", ""))):
        raise TokenRefused("the ID token is of another access token (at_hash)")
    return found


def _check(found: Mapping[str, Any], expected: Expected) -> None:
    if found.get("iss") != expected.issuer:
        raise TokenRefused("the ID token is of another issuer (iss)")
    subject, audience = found.get("sub"), found.get("aud")
    if (
        not isinstance(subject, str)
        or not subject.strip()
        or len(subject) > LONGEST_SUBJECT
        or not subject.isprintable()
    ):
        raise TokenRefused("the ID token says nobody (sub)")
    audiences = audience if isinstance(audience, list) else [audience]
    if expected.client_id not in audiences:
        raise TokenRefused("the ID token is for another client (aud)")
    party = found.get("azp", expected.client_id if len(audiences) == 1 else None)
    if party != expected.client_id:
        raise TokenRefused("the ID token is for several clients, or was asked for by another one (azp)")
    nonce = found.get("nonce")
    if not isinstance(nonce, str) or not hmac.compare_digest(nonce.encode(), expected.nonce.encode()):
        raise TokenRefused("the ID token is of another sign-in (nonce)")
    now = expected.now.timestamp()
    ends, made = _time(found, "exp"), _time(found, "iat")
    since = _time(found, "nbf") if "nbf" in found else made
    if ends <= now - SKEW:
        raise TokenRefused(f"the ID token has ended, {now - ends:.0f} s ago by control's clock (exp)")
    if max(made, since) > now + SKEW:
        ahead = max(made, since) - now
        raise TokenRefused(f"the ID token is of a time to come, in {ahead:.0f} s by control's clock (iat, nbf)")
    if made < now - OLDEST - SKEW:
        raise TokenRefused(f"the ID token is {now - made:.0f} s old by control's clock (iat)")


def _time(found: Mapping[str, Any], name: str) -> float:
    value = found.get(name)
    # Neither NaN nor infinity, which Python accepts as JSON, is within the range.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LAST:
        raise TokenRefused(f"the ID token has no time {name}")
    return float(value)


def _is_hash(given: object, text: str, algorithm: str) -> bool:
    """Return whether `given` is the left half of the hash that goes with an algorithm; False if none is known."""
    make = HASHES.get(algorithm[-3:])
    if algorithm in ("EdDSA", "Ed25519"):
        make = hashlib.sha512
    if make is None or not isinstance(given, str):
        return False
    digest = make(text.encode()).digest()
    half = urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=")
    return hmac.compare_digest(half, given.encode())


_REGISTRY = jws.JWSRegistry(algorithms=list(ALGORITHMS))
