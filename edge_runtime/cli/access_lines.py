"""What `skerry-edge status` says of callers, of the certificate and the token, and of the trust in control."""

from typing import Any


def trust_lines(trust: dict[str, Any]) -> list[str]:
    """Return until when the node trusts control, and why it doesn't take the CAs that control gives out now."""
    lines = [f"trust      CAs of control's good until {trust['ends_at']}"] if trust.get("ends_at") else []
    if trust.get("error"):
        lines.append(f"trust      the CAs that control gives out aren't taken: {trust['error']}")
    return lines


def end_lines(tls: dict[str, Any]) -> list[str]:
    """Return until when the certificate of the local HTTP is good."""
    good = tls.get("expires_at") and not tls.get("expired")
    return [f"local TLS  certificate good until {tls['expires_at']}"] if good else []


def callers_lines(document: dict[str, Any]) -> list[str]:
    """Return what is wrong with the file of callers, the token's and the certificate's, or soon will be."""
    callers, tls, token = (document.get(name) or {} for name in ("callers", "tls", "token"))
    lines = []
    if token.get("error"):
        lines.append(f"token      {token['error']}; the token that was read before stays in force")
    if callers.get("error"):
        lines.append(f"callers    {callers['error']}; the callers that were read before stay in force")
    if tls.get("error"):
        lines.append(f"tls        {tls['error']}; the certificate that was read before stays in use")
    if tls.get("expired"):
        lines.append(f"tls        the certificate ended at {tls['expires_at']}: clients refuse it")
    elif tls.get("ends_soon"):
        lines.append(f"tls        the certificate ends at {tls['expires_at']}: put another one in its place before")
    return lines
