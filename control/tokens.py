"""Tokens of operators, joining nodes, nodes, sessions, and waiting logins.

A token is ``KIND_ID_SECRET``: the id finds its row in the database; the secret is 256 random bits, of which only the
sha256 is stored.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Literal
from uuid import UUID, uuid4

Kind = Literal["node", "join", "operator", "session", "login"]
PREFIXES: dict[Kind, str] = {"node": "skn", "join": "skj", "operator": "sko", "session": "sks", "login": "skl"}

ID = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TOKEN = re.compile(rf"(sk[njosl])_({ID.pattern})_([A-Za-z0-9_-]{{43}})(?:\.[0-9a-f]{{64}})?")
"""Separates a join token from the fingerprint of control's CA, which may follow it."""


@dataclass(frozen=True)
class Token:
    """A new token. `text` is given to its owner and stored nowhere."""

    id: UUID
    text: str
    secret_hash: str


def new_token(kind: Kind, id: UUID | None = None) -> Token:
    """Make a token with a new secret; with `id`, the new token of an existing row."""
    id = id or uuid4()
    secret = secrets.token_urlsafe(32)
    return Token(id, f"{PREFIXES[kind]}_{id}_{secret}", hash_secret(secret))


def hash_secret(secret: str) -> str:
    """Return the sha256 of a secret, in hex. A plain hash is enough: nobody can guess 256 random bits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def parse(kind: Kind, text: str) -> tuple[str, str] | None:
    """Return the id and the secret's hash of a token of this kind; None if `text` isn't one."""
    match = _TOKEN.fullmatch(text)
    if match is None or match[1] != PREFIXES[kind]:
        return None
    return match[2], hash_secret(match[3])


def same(known: str, given: str) -> bool:
    """Compare two hashes in constant time."""
    return hmac.compare_digest(known.encode(), given.encode())
