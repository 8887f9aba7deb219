"""The audit log: who changed what, whether its rows are sealed, and who was refused. For admins of all groups."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import msgspec

from control.api import audit, pagination, request_input
from control.api.audit import AuthFailure
from control.api.operations import Reply
from control.audit_chain import AuditEntry, AuditSeal
from control.console import live, visits
from control.console.visits import ConsolePage, Visit

SHOWN = 50
"""Rows per page."""
REFUSALS = 20
"""Newest refused authentications that are shown."""
DOWNLOADED = 1000
"""Rows read at a time for a download."""
DOWNLOAD = "/audit.jsonl"
FILTERS = ("actor", "target", "action", "since", "until")


async def show(visit: Visit) -> Reply:
    """GET /audit?actor=&target=&action=&since=&until="""
    query, filters = _filter(visit, SHOWN)
    found, next = await visit.items(audit.list_audit, AuditEntry, query)
    seal: AuditSeal | None = await visit.ask(audit.newest_seal)
    refused, _ = await visit.items(audit.list_auth_failures, AuthFailure, pagination.Paging(limit=REFUSALS))
    return await visit.html(
        "audit.html",
        rows=[(entry, page_of(entry), _said(entry)) for entry in found],
        next=next,
        seal=seal,
        refused=refused,
        filters=filters,
        command=" ".join(["skerry audit list", *(f"--{name} {_written(query, name)}" for name in filters)]),
        download=f"{DOWNLOAD}?{urlencode(filters)}" if filters else DOWNLOAD,
    )


async def download(visit: Visit) -> Reply:
    """GET /audit.jsonl?actor=&target=&action=&since=&until=: all rows that the filter finds, each a line of JSON."""
    query, _ = _filter(visit, DOWNLOADED)
    first = await visit.ask(audit.list_audit, query=query)
    headers = (
        (b"content-type", b"application/x-ndjson"),
        (b"content-disposition", b'attachment; filename="audit.jsonl"'),
        (b"cache-control", b"no-store"),
    )
    return Reply(200, _lines(visit, query, first), headers)


async def _lines(visit: Visit, query: audit.AuditFilter, found: Any) -> AsyncIterator[bytes]:
    """Yield the rows of a page and of all later pages until the reader has left. Raises: ProblemError."""
    # Only `receive` reports that the reader has left: `send` doesn't fail.
    gone = asyncio.ensure_future(live.left(visit.receive))
    try:
        yield _joined(found)
        while found.next and not gone.done():
            # A download may take long: a reader who has lost the right meanwhile gets no more.
            replace(visit, visitor=await visits.visitor(visit.services, visit.scope)).check_role(DOWNLOAD_PAGE)
            found = await visit.ask(audit.list_audit, query=msgspec.structs.replace(query, cursor=found.next))
            yield _joined(found)
    finally:
        gone.cancel()


def _joined(found: Any) -> bytes:
    return b"".join(bytes(item) + b"\n" for item in found.items)


def _filter(visit: Visit, limit: int) -> tuple[audit.AuditFilter, dict[str, str]]:
    """Return the URL's filter as the API takes it and as it was written. Raises: ProblemError."""
    given = {name: visit.query.get(name, "").strip() or None for name in FILTERS}
    wanted = {**given, "cursor": visit.query.get("cursor") or None, "limit": limit}
    for name in ("since", "until"):
        wanted[name] = _time(given[name])
    query = request_input.convert(wanted, audit.AuditFilter, "invalid_parameter", strict=False)
    return query, {name: text for name, text in given.items() if text}


def _written(query: audit.AuditFilter, name: str) -> str:
    """Return a filter as options of `skerry audit list`."""
    value = getattr(query, name)
    return value if isinstance(value, str) else value.isoformat().replace("+00:00", "Z")


def page_of(entry: AuditEntry) -> str:
    """Return the page of what was changed; '' if there is none."""
    kind, target = entry.action.partition(".")[0], entry.target
    if kind == "release" and "/" in target:
        return f"/releases/{target}"
    if kind == "function":
        return f"/functions/{target.partition('@')[0]}"
    if kind == "schema" and target.isdecimal():
        return f"/schema/{target}"
    if kind in ("node", "operator") and entry.action not in ("node.remove", "operator.revoke"):
        return f"/{kind}s/{target}"
    return ""


def _time(text: str | None) -> str | None:
    """Return a time from the form as the API takes it: one without an offset is in UTC."""
    if text is None:
        return None
    text = text.replace(" ", "T") + ("T00:00" if len(text) == 10 else "")
    parts = text.partition("T")[2]
    zoned = text.endswith("Z") or "+" in parts or "-" in parts
    return (text + ":00" if len(parts) == 5 else text) + ("" if zoned else "Z")


def _said(entry: AuditEntry) -> str:
    """Return the values before and after the change, and the details, in words."""
    found = []
    for name in sorted({*entry.before, *entry.after}):
        before, after = (_value(values, name) for values in (entry.before, entry.after))
        found.append(
            f"{name}: {before} → {after}" if before and after else f"{name}: {before + ' ended' if before else after}"
        )
    found += [
        f"{name}: {_value(entry.details, name)}" for name in entry.details if entry.details[name] not in (None, "", 0)
    ]
    return "; ".join(found)


def _value(values: Mapping[str, Any], name: str) -> str:
    if name not in values or values[name] is None:
        return ""
    value = values[name]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


DOWNLOAD_PAGE = ConsolePage("GET", DOWNLOAD, download, "admin", everywhere=True)
PAGES = (ConsolePage("GET", "/audit", show, "admin", everywhere=True), DOWNLOAD_PAGE)
