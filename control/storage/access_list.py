"""Access lists: objects in the bucket that record access changes (ADR 55). Pure rules.

A restore takes the metadata back to a backup; the lists bring their access rules up to date again. Each list has a code
(HMAC-SHA256) over its name and its changes, with a key that is in the metadata and not in the bucket: write access to
the bucket alone isn't enough to make one.
"""

import hmac
from datetime import datetime
from typing import Any, Literal, get_args
from uuid import UUID

import msgspec

from control.protocol import wire
from control.storage import owner_mark
from control.storage.owner_mark import PREFIX

FOLDER = f"{PREFIX}access/"
MOST = 100
"""Maximum changes in a list."""
MOST_BYTES = 4 * wire.MIB
"""Maximum bytes of a list."""

Kind = Literal[
    "node-joined",  # into the group `details.group`
    "node-renamed",  # to `details.name`; so that another node may have got the name before
    "node-removed",
    "node-revoked",  # all credentials made before
    "credential-made",  # of the node `details.node`
    "operator-made",
    "operator-revoked",
    "operator-changed",  # to `details.role`, `grants`, `expires_at`
    "operator-renewed",  # its token has `details.hash`; the earlier one is valid until `old_ends_at`, if given
    "join-token-ended",
    "session-ended",
]
KINDS: tuple[str, ...] = get_args(Kind)


class AccessChange(msgspec.Struct, frozen=True):
    """One change."""

    at: datetime
    kind: str
    """A `Kind`, or one of a later version of control."""
    subject: wire.Uuid
    """The id of the node, credential, operator, join token or session."""
    details: dict[str, Any] = {}


class _Sealed(msgspec.Struct):
    """The object: the encoded changes and the code."""

    code: str
    changes: msgspec.Raw


class UnverifiedList(Exception):
    """A list that doesn't belong to these metadata, or was changed since."""


def name(owner: str, at: datetime, id: UUID) -> str:
    """Return the key of a new list's object. Keys sort by time; each control has its own folder."""
    return f"{folder(owner)}{at:%Y%m%dT%H%M%S.%fZ}-{id}.json"


def folder(owner: str) -> str:
    """Return the key prefix of the lists of the control with this id."""
    return f"{FOLDER}{owner}/"


def encode(key: str, name: str, changes: list[AccessChange]) -> bytes:
    """Return the bytes of a list's object. `key`: the metadata's secret key."""
    raw = msgspec.json.encode(changes)
    return msgspec.json.encode(_Sealed(owner_mark.code(key, name, raw), msgspec.Raw(raw)))


def first_of(changes: list[AccessChange]) -> list[AccessChange]:
    """Return as many of these changes, from the first, as fit in a list of `MOST_BYTES`; at least one."""
    size, count = 1000, 0
    for change in changes:
        size += len(msgspec.json.encode(change)) + 1
        if count and size > MOST_BYTES:
            break
        count += 1
    return changes[:count]


def decode(key: str, name: str, data: bytes) -> list[AccessChange]:
    """Return the changes of the list in the object `name` with the bytes `data`. Raises: UnverifiedList."""
    try:
        sealed = msgspec.json.decode(data, type=_Sealed)
        wanted = owner_mark.code(key, name, bytes(sealed.changes))
        if not hmac.compare_digest(sealed.code.encode(), wanted.encode()):
            raise UnverifiedList("its code isn't of these metadata's key")
        return msgspec.json.decode(sealed.changes, type=list[AccessChange])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UnverifiedList(f"it can't be read: {error}") from None
