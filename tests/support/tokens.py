"""Tokens that are wrong, polls with them, and how control counts its refusals."""

from control.protocol import wire
from tests.support import deploy, repeating
from tests.support.replica import Answered, Replica


def other_secret(token: str) -> str:
    """Return the token with its secret replaced, so that it is refused."""
    head, _, secret = token.partition("_")[2].partition("_")
    return f"{token[:3]}_{head}_{'A' if secret[0] != 'A' else 'B'}{secret[1:]}"


def secret_of(token: str) -> str:
    """Return the secret part of a token."""
    return token.split("_", 2)[2].partition(".")[0]


async def ask(replica: Replica, token: str) -> Answered:
    """Poll with this token, as a node does."""
    poll = wire.Poll(generation=0, digest=wire.digest(wire.Inventory()))
    return await replica.call("POST", "/v1/poll", poll, token=token)


async def failures(replica: Replica) -> dict[str, int]:
    """Refused authentications, counted by reason."""
    await repeating.saved(replica.services.failures.flush)
    found: dict[str, int] = {}
    for entry in await deploy.items(replica, "/v1/auth-failures"):
        found[entry["reason"]] = found.get(entry["reason"], 0) + entry["count"]
    return found
