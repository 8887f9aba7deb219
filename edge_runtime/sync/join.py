"""Joins control: first trust in control is established, then the one-time token is exchanged for a credential.

The token contains the fingerprint of the CA's certificate. The certificate is fetched without trust and compared, and
the token is only sent over a connection that is verified by it. The random id of the attempt is on disk before that, so
a lost answer loses nothing: repeating the command gets a credential that replaces the one that never arrived.
"""

import asyncio
import contextlib
import hashlib
import re
import shutil
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn
from uuid import uuid4

import aiohttp
import msgspec
from msgspec import Struct
from yarl import URL

from control.protocol import wire
from control.protocol.bounded_http_client import BoundedConnector
from edge_runtime import files
from edge_runtime.errors import CodedError
from edge_runtime.state import DATA_AWAITED
from edge_runtime.sync import authorities, capabilities, control_client, identity
from edge_runtime.sync.identity import Identity

TRIES = 3
"""Attempts to join while no answer comes; then the command fails, and a person may run it again."""

_TOKEN = re.compile(r"(skj_[0-9a-f-]{36}_[A-Za-z0-9_-]{43})(?:\.([0-9a-f]{64}))?")


class JoinFailed(CodedError):
    """The node has not joined. Nothing that it had before is lost."""


class JoinAttempt(Struct):
    """The current attempt, kept on disk from before the token is sent until the identity is stored."""

    id: str
    asked: str
    """The sha256 over token, control and name, which identify the attempt."""


async def join(
    state: Path,
    control_url: str,
    token: str,
    name: str,
    labels: Mapping[str, str],
    *,
    ca: Path | None = None,
    again: bool = False,
    await_data: bool = False,
    pause: float = 1.0,
) -> Identity:
    """Join control with a one-time token, and store the identity in `state`.

    `ca` is a PEM file for verifying control, if the token has no fingerprint and the system's CAs don't know control.
    `again` replaces an existing identity once the new one has been issued. `await_data`: the node must get its database
    back before it serves. Raises: JoinFailed.
    """
    match = _TOKEN.fullmatch(token.strip())
    if match is None:
        raise JoinFailed("token_malformed", "this is no join token; `skerry node token` makes one (skj_…)")
    if not wire.NAME.fullmatch(name):
        raise JoinFailed("name_invalid", f"{name!r} is no name for a node: lower case letters, digits and hyphens")
    secret, fingerprint = match.groups()
    try:
        base = control_client.control_base(control_url)
    except ValueError as error:
        raise JoinFailed("control_url_invalid", str(error)) from None
    work = _prepare(state, name, again)
    trusted = await _first_trust(base, fingerprint, ca, work)
    attempt = _attempt(work, f"{secret} {base} {name}")
    request = wire.Join(
        name=name, attempt=attempt.id, labels=dict(labels), capabilities=capabilities.document(), protocol=wire.PROTOCOL
    )
    joined, since = await _ask(str(base), trusted, secret, request, pause)

    made = Identity(
        joined.node_id, name, joined.group, str(base), joined.credential, since, credential_life=joined.credential_life
    )
    if trusted is not None:
        files.write(state / "ca.pem", trusted.read_bytes(), 0o644)
    else:
        files.remove(state / "ca.pem")
    if await_data:
        files.write(state / DATA_AWAITED, b"")
    identity.write(state, made)
    # Last, because until the identity is on disk, the same attempt can get another credential.
    shutil.rmtree(work)
    return made


def _prepare(state: Path, name: str, again: bool) -> Path:
    """Make and return the folder for the current join. Raises: JoinFailed, when there is an identity that must stay."""
    if not again and identity.path(state).exists():
        try:
            present = identity.read(state)
        except identity.NotJoined as error:
            raise JoinFailed("identity_unreadable", str(error)) from None
        raise JoinFailed(
            "already_joined",
            f"{state} belongs to node {present.name} of {present.control_url}; add --again to exchange that identity "
            f"for a new one named {name}",
        )
    work = state / "joining"
    try:
        files.make_folder(state)
        files.make_folder(work)
    except OSError as error:
        raise JoinFailed("state_unusable", f"the state directory can't be used: {error}") from None
    return work


async def _first_trust(base: URL, fingerprint: str | None, ca: Path | None, work: Path) -> Path | None:
    """Return a file with the certificate for verifying control; None for the system's CAs."""
    file = work / "ca.pem"
    if fingerprint is not None:
        files.write(file, (await fetch_authority(base, fingerprint)).encode(), 0o644)
        return file
    return None if ca is None else _copy(ca, file)


def _copy(ca: Path, file: Path) -> Path:
    try:
        files.write(file, ca.read_bytes(), 0o644)
    except OSError as error:
        raise JoinFailed("ca_unreadable", f"the authority can't be read: {error}") from None
    return file


async def fetch_authority(base: URL, fingerprint: str) -> str:
    """Fetch the CA's certificate (PEM) from whoever answers; return it only if it has this fingerprint.

    Raises: JoinFailed.
    """
    untrusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    untrusting.minimum_version = ssl.TLSVersion.TLSv1_2
    untrusting.check_hostname = False
    untrusting.verify_mode = ssl.CERT_NONE
    url = base.join(URL("/v1/ca"))
    proxy, proxy_headers = control_client.proxy_for(url)
    timeout = aiohttp.ClientTimeout(total=control_client.ANSWER_TIMEOUT, sock_connect=control_client.CONNECT_TIMEOUT)
    try:
        async with (
            aiohttp.ClientSession(
                connector=BoundedConnector(), timeout=timeout, headers={"Accept-Encoding": "identity"}
            ) as session,
            session.get(
                url, ssl=untrusting, allow_redirects=False, proxy=proxy, proxy_headers=proxy_headers
            ) as response,
        ):
            data = await control_client.read_limited(response, authorities.SIZE_LIMIT)
            if response.status != 200:
                raise control_client.refusal(response, data, True)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        problem = control_client.unreachable(error, url, proxy)
        raise JoinFailed(problem.code, problem.message) from None
    except control_client.ControlRefused as refusal:
        raise JoinFailed(refusal.code, f"{url} gives no authority: {refusal.message}") from None
    text = authorities.decoded(data)
    if (pem := authorities.pem_of(text, fingerprint)) is not None:
        return pem
    seen = list(authorities.ders(text))
    raise JoinFailed(
        "ca_mismatch",
        f"{base.host} shows an authority with the fingerprint {', '.join(seen) or '(none)'}, but the token wants "
        f"{fingerprint}: either this is another control (look at --control), its authority was replaced since the "
        "token was made (make a new token), or someone stands in between. The token was not sent",
    )


def _attempt(work: Path, what: str) -> JoinAttempt:
    """Return the attempt on disk, if it was for the same token, control and name; else store and return a new one."""
    file = work / "attempt.json"
    digest = hashlib.sha256(what.encode()).hexdigest()
    with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        kept = msgspec.json.decode(file.read_bytes(), type=JoinAttempt)
        if kept.asked == digest:
            return kept
    made = JoinAttempt(str(uuid4()), digest)
    files.write(file, msgspec.json.encode(made))
    return made


async def _ask(
    control_url: str, ca: Path | None, secret: str, request: wire.Join, pause: float
) -> tuple[wire.Joined, datetime]:
    """Send the token, and return the answer with control's time.

    The same attempt is repeated if no answer comes, or if control can't answer now.
    """
    try:
        opened = control_client.ControlClient(control_url, ca, secret)
    except (ValueError, OSError) as error:
        raise JoinFailed("ca_unreadable", str(error)) from None
    async with opened as session:
        for remaining in reversed(range(TRIES)):
            try:
                joined = await session.join(request)
                return joined, datetime.now(UTC) + timedelta(seconds=session.skew)
            except control_client.NoAnswer as error:
                if not remaining:
                    raise JoinFailed(error.code, f"{error.message}. The same command may be run again") from None
            except control_client.ControlRefused as refusal:
                if refusal.status < 500 or not remaining:
                    _explain(refusal)
            await asyncio.sleep(pause)
    raise AssertionError  # The last attempt above returns or raises.


def _explain(refusal: control_client.ControlRefused) -> NoReturn:
    cures = {
        "token_used": " with `skerry node token`",
        "token_expired": " with `skerry node token`",
        "token_revoked": " with `skerry node token`",
        "credentials_invalid": "; make a join token with `skerry node token`",
    }
    again = ". The same command may be run again" if refusal.status >= 500 else ""
    raise JoinFailed(refusal.code, refusal.message + cures.get(refusal.code, again))
