"""The node's identity: identity.json (0600) in the state directory, and the certificate of control's CA beside it."""

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Self

import msgspec
import orjson

from edge_runtime import files


class NotJoined(Exception):
    """The state directory has no identity, or one that can't be read; the message says what to do."""


class IdentityClosed(NotJoined):
    """There is an identity, but this user may not read it; `cure` says how to make it readable."""

    def __init__(self, file: Path) -> None:
        self.cure = f"as root: chown -R --reference={file.parent} {file.parent}"
        super().__init__(f"{file} is closed to this user: another one, such as root, made it; {self.cure}")


@dataclass(frozen=True)
class Identity:
    """A joined node. `next_credential` was issued but not used yet; until it is used, `credential` stays valid.

    `credential_since` is control's time, as far as it was known.
    """

    node_id: str
    name: str
    group: str
    control_url: str
    credential: str
    credential_since: datetime
    next_credential: str = ""
    credential_life: float = 0.0
    """Seconds for which a credential is valid, as control last said; 0 if it never did."""

    @property
    def credential_ends(self) -> float | None:
        """Return when the credential expires (Unix seconds); None if unknown."""
        return self.credential_since.timestamp() + self.credential_life if self.credential_life > 0 else None

    def rotated(self, credential: str, life: float = 0.0) -> Self:
        """Return the identity with a newly issued credential; `life` is as `credential_life`."""
        return replace(self, next_credential=credential, credential_life=life or self.credential_life)

    def promoted(self, now: datetime) -> Self:
        """Return the identity after the new credential was used and replaced the old one; `now` is control's time."""
        return replace(self, credential=self.next_credential, next_credential="", credential_since=now)

    def fallen_back(self) -> Self:
        """Return the identity after the new credential was refused, which is dropped."""
        return replace(self, next_credential="")


def path(state: Path) -> Path:
    """Return the path of the identity."""
    return state / "identity.json"


def ca_path(state: Path) -> Path | None:
    """Return the CA certificate for verifying control; None for the system's CAs (control has a public certificate)."""
    ca = state / "ca.pem"
    return ca if ca.exists() else None


def read(state: Path) -> Identity:
    """Return the identity in the state directory. Raises: NotJoined, when there is none, or none that can be read."""
    file = path(state)
    try:
        return msgspec.json.decode(file.read_bytes(), type=Identity)
    except FileNotFoundError:
        raise NotJoined(
            f"{state} belongs to no node yet: ask for a join token (skerry node token), then "
            f"skerry-edge join --control URL --token TOKEN --state {state}"
        ) from None
    except PermissionError:
        raise IdentityClosed(file) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NotJoined(f"{file} can't be read ({error}): move it away and join again with a new token") from None


def write(state: Path, identity: Identity) -> None:
    """Store the identity atomically with mode 0600; it is on disk when this returns."""
    files.write(path(state), orjson.dumps(msgspec.to_builtins(identity), option=orjson.OPT_INDENT_2) + b"\n")
