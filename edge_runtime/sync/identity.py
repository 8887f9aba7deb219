"""Who this node is: identity.json (0600) in the state directory, and the control's certificate authority beside it."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import msgspec
import orjson

from edge_runtime import files


class NotJoined(Exception):
    """The state directory has no identity, or one that can't be read; the message says what to do."""


@dataclass(frozen=True)
class Identity:
    """A joined node. `next_credential` was issued but not used yet; until it was, `credential` stays good."""

    node_id: str
    name: str
    group: str
    control_url: str
    credential: str
    credential_since: datetime
    next_credential: str = ""

    def rotated(self, credential: str) -> Self:
        return replace(self, next_credential=credential)

    def promoted(self) -> Self:
        """After the new credential was used: it is the credential."""
        return replace(self, credential=self.next_credential, next_credential="", credential_since=datetime.now(UTC))

    def fallen_back(self) -> Self:
        """After the new credential was refused: it is forgotten."""
        return replace(self, next_credential="")


def path(state: Path) -> Path:
    return state / "identity.json"


def ca_path(state: Path) -> Path | None:
    """The authority that control is verified against; None where the system's are (a control with a public one)."""
    ca = state / "ca.pem"
    return ca if ca.exists() else None


def read(state: Path) -> Identity:
    """The identity in the state directory; `NotJoined` if there is none."""
    file = path(state)
    try:
        return msgspec.json.decode(file.read_bytes(), type=Identity)
    except FileNotFoundError:
        raise NotJoined(
            f"{state} belongs to no node yet: ask for a join token (skerry node token), then "
            f"skerry-edge join --control URL --token TOKEN --state {state}"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NotJoined(f"{file} can't be read ({error}): move it away and join again with a new token") from None


def write(state: Path, identity: Identity) -> None:
    """Keep the identity: 0600, in one step, on disk when this returns."""
    files.write(path(state), orjson.dumps(msgspec.to_builtins(identity), option=orjson.OPT_INDENT_2) + b"\n")
