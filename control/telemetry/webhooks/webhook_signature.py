"""How messages of webhooks are signed: the symmetric scheme of Standard Webhooks 1.0, with HMAC-SHA256. Pure."""

import base64
import binascii
import hashlib
import hmac
import secrets

PREFIX = "whsec_"
LEAST, MOST = 24, 64
"""Bytes of a secret."""
MADE = 32
"""Bytes of a secret that control makes."""


def new_secret() -> str:
    """Return a random secret as receivers' libraries take it: its bytes as base64 behind `PREFIX`."""
    return PREFIX + base64.b64encode(secrets.token_bytes(MADE)).decode()


def key(secret: str) -> bytes:
    """Return the bytes of a secret. Raises: ValueError, when it isn't one."""
    try:
        found = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        found = b""
    if not secret.startswith(PREFIX) or not LEAST <= len(found) <= MOST:
        raise ValueError(f"a secret is {PREFIX} and then {LEAST} to {MOST} bytes as base64")
    return found


def headers(secret: str, id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return a message's headers: its id, the time of this attempt (Unix seconds), and the signature over both and the
    body. Raises: ValueError, when the secret isn't one."""
    signed = f"{id}.{timestamp}.".encode() + body
    signature = base64.b64encode(hmac.digest(key(secret), signed, hashlib.sha256)).decode()
    return {"webhook-id": id, "webhook-timestamp": str(timestamp), "webhook-signature": f"v1,{signature}"}
