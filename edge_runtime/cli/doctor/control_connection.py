"""Control as this machine reaches it: name, address, certificate, clock, and whether it accepts the node's
credential."""

import asyncio
import contextlib
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from control.protocol.findings import Finding, Level
from edge_runtime.sync import authorities, identity
from edge_runtime.sync.control_client import ControlClient, ControlRefused, NoAnswer, control_base, proxy_for
from edge_runtime.sync.credential import EXPIRED, ROTATE_AFTER, OwnCredential
from edge_runtime.sync.identity import Identity

SOON: Final = 30 * 86_400.0
"""Seconds before an expiry at which it is noted."""
DAY: Final = 86_400.0
CLOCKS_DIFFER: Final = 30.0
"""Seconds by which two clocks may differ without a finding."""
CLOCKS_WRONG: Final = 300.0
"""Seconds of difference at which things that depend on time fail: certificates, presigned URLs of artifacts."""
HANDSHAKE: Final = 10.0
"""Seconds for a TLS connection."""
_CURES: Final = {
    "name_unknown": "getent hosts {host}",
    "unreachable": "curl -v {url}/healthz",
    "timed_out": "curl -v --max-time 10 {url}/healthz",
    "proxy_failed": "env | grep -i _proxy",
    "clock_behind": "timedatectl set-ntp true",
    "tls_untrusted": "skerry-edge trust FINGERPRINT --state {state} (`skerry ca` shows it)",
}


class ControlFacts(NamedTuple):
    """The result of asking control."""

    url: str
    trouble: tuple[str, str] | None
    """Code and message, if no answer came."""
    skew: float = 0.0
    """Seconds by which control's clock is ahead."""
    certificate_ends: float | None = None
    """When the certificate that control presents expires (Unix seconds); None if it wasn't seen, for instance behind a
    proxy."""
    trust: str = ""
    """The CAs that control gives out; '' for none."""
    refusal: tuple[str, str] | None = None
    """Code and message, if control refuses the credential."""
    asked: bool = False
    """Whether the credential was tried."""


async def look(state: Path, who: Identity, *, ask: bool) -> ControlFacts:
    """Connect to control as the node does, and with `ask` try its credential."""
    ca = identity.ca_path(state)
    try:
        async with ControlClient(who.control_url, ca, who.next_credential or who.credential) as client:
            try:
                given_out = await client.authorities()
            except ControlRefused as refused:
                if refused.status != 404:
                    return ControlFacts(who.control_url, (refused.code, refused.message))
                given_out = ""  # it has no CA of its own
            refusal = await _credential_refused(client) if ask else None
            skew = client.skew
    except (NoAnswer, ControlRefused) as error:
        return ControlFacts(who.control_url, (error.code, error.message))
    except (ValueError, OSError) as error:
        return ControlFacts(who.control_url, ("ca_unusable", str(error)))
    ends = await _certificate_end(who.control_url, ca)
    return ControlFacts(who.control_url, None, skew, ends, given_out, refusal, ask)


async def _credential_refused(client: ControlClient) -> tuple[str, str] | None:
    """Return code and message if control refuses the credential. Raises: NoAnswer; ControlRefused, when control can't
    judge the credential, because it lacks something itself, such as its database."""
    try:
        await client.is_known()
    except ControlRefused as refused:
        if refused.status not in (401, 403):
            raise
        return refused.code, refused.message
    return None


async def _certificate_end(url: str, ca: Path | None) -> float | None:
    base = control_base(url)
    if proxy_for(base)[0] is not None:
        return None
    with contextlib.suppress(OSError, ValueError, TimeoutError):
        async with asyncio.timeout(HANDSHAKE):
            tls = authorities.tls_context(ca, system=ca is None)
            _, writer = await asyncio.open_connection(base.host, base.port, ssl=tls)
        shown = writer.get_extra_info("peercert") or {}
        writer.close()
        return float(ssl.cert_time_to_seconds(str(shown["notAfter"])))
    return None


def control_findings(facts: ControlFacts, state: Path) -> list[Finding]:
    """Check whether control can be reached, and its clock and certificate are right."""
    if facts.trouble is not None:
        code, message = facts.trouble
        host = control_base(facts.url).host if facts.url.startswith("https://") else facts.url
        cure = _CURES.get(code, "curl -v {url}/readyz").format(host=host, url=facts.url, state=state)
        return [Finding("control", "wrong", f"{facts.url} can't be asked: {message} [{code}]", cure)]
    return [
        Finding("control", "ok", f"{facts.url} answers, and its certificate is trusted"),
        *clock_findings(facts.skew),
        *end_findings(facts.certificate_ends, datetime.now(UTC).timestamp()),
    ]


def clock_findings(skew: float) -> list[Finding]:
    """Check whether the two clocks differ; `skew` as `ControlFacts.skew`."""
    side = "behind" if skew > 0 else "ahead of"
    text = f"this machine's clock is {abs(skew):.0f} s {side} control's"
    if abs(skew) < CLOCKS_DIFFER:
        return [Finding("clock", "ok", "this machine's clock goes with control's")]
    level: Level = "wrong" if abs(skew) >= CLOCKS_WRONG else "note"
    return [Finding("clock", level, text, "timedatectl set-ntp true (on the one that is wrong)")]


def end_findings(ends: float | None, now: float) -> list[Finding]:
    """Check whether control's certificate expires soon."""
    if ends is None:
        return []
    if ends - now > SOON:
        return [Finding("control_certificate", "ok", f"control's certificate is good until {shown(ends)}")]
    text = f"control's certificate ends at {shown(ends)}: the node can't reach control from then on"
    cure = "put another certificate into SKERRY_TLS_CERT's place at control"
    return [Finding("control_certificate", "wrong" if ends - now < DAY else "note", text, cure)]


def trust_findings(pem: str | None, given_out: str | None, now: float, state: Path) -> list[Finding]:
    """Check whether the node's CAs (`pem`; None for its system's) are good, and are those that control gives out (None
    if unknown)."""
    if pem is None:
        return [Finding("trust", "ok", "control is trusted by the CAs of this system")]
    ends = authorities.last_end(pem)
    again = f"skerry-edge trust FINGERPRINT --state {state} (`skerry ca` shows it)"
    if ends is None:
        return [Finding("trust", "wrong", f"{state / 'ca.pem'} has no certificate that can be read", again)]
    if ends <= now:
        text = f"the last CA in {state / 'ca.pem'} ended at {shown(ends)}: control isn't trusted any more"
        return [Finding("trust", "wrong", text, again)]
    found = []
    if ends - now < SOON:
        text = f"the last CA in {state / 'ca.pem'} ends at {shown(ends)}"
        found.append(Finding("trust", "note", text, "have another CA given out: docs/how-to/change-the-ca.md"))
    if given_out and authorities.digest(given_out) != authorities.digest(pem):
        text = "the node trusts other CAs than those that control gives out now; it takes them when it next runs"
        found.append(Finding("trust", "note", text, f"skerry-edge status --state {state}"))
    return found or [Finding("trust", "ok", f"the CAs that the node trusts are good until {shown(ends)}")]


def credential_findings(who: Identity, facts: ControlFacts | None, now: float, state: Path) -> list[Finding]:
    """Check whether the credential is good; `facts` is None if control couldn't be asked."""
    ends = who.credential_ends
    if facts is not None and facts.refusal is not None:
        code, message = facts.refusal
        if code == EXPIRED:
            text = "the node's credential has ended; it gets its successor when it next runs"
            return [Finding("credential", "note", text, f"skerry-edge run --state {state}")]
        text, _, cure = (
            OwnCredential(state, who, ROTATE_AFTER).refused(code, message).partition("; to have it synced again, ")
        )
        return [Finding("credential", "wrong", f"{text.rstrip('.')} [{code}]", cure)]
    if ends is not None and ends - now < DAY:
        text = f"the node's credential ends at {shown(ends)}; a node that reaches control renews it long before"
        return [Finding("credential", "note", text, f"skerry-edge status --state {state}")]
    if facts is None or not facts.asked:
        return [Finding("credential", "ok", f"the credential of {who.name} hasn't ended")]
    return [Finding("credential", "ok", f"control takes the credential of {who.name}")]


def shown(seconds: float) -> str:
    """Return a time in Unix seconds as RFC 3339."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
