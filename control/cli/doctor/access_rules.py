"""Rules for control's answers about operators, tokens, webhooks, refusals and settings. Pure."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from control.cli.doctor.fleet_rules import SOON, named, time
from control.cli.support.client import Json
from control.protocol.counts import counted
from control.protocol.findings import Finding, Level

UNUSED: Final = timedelta(days=90)
"""How long an operator may be inactive."""
NEW: Final = timedelta(days=7)
"""How long a new operator may be inactive."""
TOKEN_OPEN: Final = timedelta(days=1)
REFUSED: Final = 100
"""Number of refused authentications within an hour that is reported."""
HOUR: Final = timedelta(hours=1)


def operator_findings(operators: list[Json], now: datetime) -> list[Finding]:
    found = []
    good = [o for o in operators if o["expires_at"] is None or time(o["expires_at"]) > now]
    admins = [o["name"] for o in good if any(g["role"] == "admin" and g["group"] is None for g in o["grants"])]
    if len(admins) == 1:
        text = f"{admins[0]} is the only admin of all groups: if its token is lost, nobody can make another one"
        found.append(Finding("operators", "note", text, "skerry operator add NAME --role admin"))
    for operator in operators:
        name, ends = operator["name"], operator["expires_at"]
        last = operator["last_used_at"]
        if ends is not None and operator.get("person") is None and time(ends) - now < SOON:
            level: Level = "wrong" if time(ends) <= now else "note"
            text = f"the token of {name} {'ended' if level == 'wrong' else 'ends'} at {ends}"
            found.append(Finding("operators", level, text, f"skerry operator rotate {name}"))
        elif now - time(last or operator["created_at"]) > (UNUSED if last else NEW):
            text = f"{name} was last used at {last}" if last else f"{name} was never used"
            found.append(Finding("operators", "note", text, f"skerry operator revoke {name}"))
    text = f"{counted(len(operators), 'operator')}, {counted(len(admins), 'admin')} among them"
    return found or [Finding("operators", "ok", text)]


def join_token_findings(tokens: Iterable[Json], now: datetime) -> list[Finding]:
    """Judge the open tokens."""
    old = [token for token in tokens if now - time(token["created_at"]) > TOKEN_OPEN]
    found = [
        Finding(
            "join_tokens",
            "note",
            f"a join token for {token['group']}, which {token['created_by']} made at {token['created_at']}, is open",
            f"skerry node token revoke {token['id']}",
        )
        for token in old
    ]
    return found or [Finding("join_tokens", "ok", "no join token is open for more than a day")]


def webhook_findings(webhooks: Iterable[Json]) -> list[Finding]:
    found = []
    for hook in webhooks:
        name = hook["name"]
        if hook["ended_at"]:
            text = f"{name} gets nothing since {hook['ended_at']}, when its receiver answered that it is gone"
            found.append(Finding("webhooks", "wrong", text, f"skerry webhook delete {name}"))
        elif hook["given_up"]:
            text = f"given up in the last seven days: {counted(hook['given_up'], 'message')} to {name}"
            found.append(Finding("webhooks", "wrong", text, f"skerry webhook deliveries --webhook {name}"))
    return found or [Finding("webhooks", "ok", "no message was given up")]


def audit_findings(unsealed: bool) -> list[Finding]:
    if not unsealed:
        return [
            Finding("audit", "ok", "the audit log's rows have their seals; `skerry audit verify` reads all of them")
        ]
    text = "rows of the audit log have no seal that should have one: the monitor of no replica comes to it"
    return [Finding("audit", "wrong", text, "look at the logs of control's replicas; skerry audit verify")]


def refusal_findings(failures: Iterable[Json], now: datetime) -> list[Finding]:
    """Judge refused authentications, which are counted by minute."""
    lately = [one for one in failures if now - time(one["minute"]) < HOUR]
    count = sum(one["count"] for one in lately)
    if count < REFUSED:
        return [Finding("refusals", "ok", f"refused in the last hour: {counted(count, 'authentication')}")]
    addresses = sorted({one["address"] for one in lately})
    text = f"refused in the last hour: {counted(count, 'authentication')}, of {named(addresses)}"
    return [Finding("refusals", "note", text, "skerry audit failures")]


def setting_findings(settings: Iterable[Json], unknown: Iterable[str]) -> list[Finding]:
    """Judge control's settings. `unknown`: a line for each unknown SKERRY_ variable in this command's environment."""
    found = [Finding("settings", "note", line, "skerry settings --own") for line in unknown]
    values = {setting["name"]: setting["value"] for setting in settings}
    listen = values.get("SKERRY_METRICS_LISTEN", "")
    if listen and not listen.startswith(("127.", "localhost:", "[::1]:")):
        text = f"metrics are at {listen} for whoever reaches it, without a token"
        found.append(Finding("settings", "note", text, "have a firewall let Prometheus alone reach it"))
    if networks := values.get("SKERRY_WEBHOOK_NETWORKS", ""):
        text = f"webhooks may lead into the networks {networks}"
        found.append(Finding("settings", "ok", text))
    return found or [Finding("settings", "ok", "no setting opens control to others")]
