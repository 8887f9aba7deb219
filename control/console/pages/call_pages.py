"""Slow and failed calls, requested from the nodes that keep them: a list, and one call with its log.

Control keeps none of them. A page waits some seconds for the nodes; answers that are later are left out, and the page
names those nodes.
"""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import msgspec

from control.api import logs, request_input
from control.api.operations import Reply
from control.console.visits import ConsolePage, Visit
from control.telemetry.watching.node_records import CallRecord, LogRecord, NodeLogRecord
from control.telemetry.watching.view import HISTORY_SECONDS, Notice

PATIENCE = HISTORY_SECONDS + 2.0
"""Seconds to wait for nodes: longer than the view itself waits, which then says which nodes were silent."""
SHOWN = 50
"""Calls shown in a list."""
LINES = 200
"""Log lines shown on a call's page."""
KEPT = 5000
"""Maximum records kept of the answers: more than nodes may send for a page."""
STEPS = ("queue", "lock", "guest", "sql", "http", "commit", "worker")
"""The steps of a call that take time, in the order in which they are shown."""
WHILES = {"1h": timedelta(hours=1), "24h": timedelta(hours=24), "7d": timedelta(days=7)}


@dataclass
class FoundCalls:
    """The answers of nodes."""

    calls: list[CallRecord] = field(default_factory=list)
    lines: list[LogRecord | NodeLogRecord] = field(default_factory=list)
    notices: dict[str, Notice] = field(default_factory=dict)
    """What is missing, by kind."""
    in_time: bool = True
    """Whether all answers arrived before the page stopped waiting."""


async def show_list(visit: Visit) -> Reply:
    """GET /calls?node=&group=&function=&failed=&slowest=&since=&do=ask"""
    given = visit.query
    since = given["since"] if given.get("since") in WHILES else "24h"
    found = None
    if given.get("do") == "ask":
        wanted: dict[str, Any] = {
            "kind": "calls",
            "limit": SHOWN,
            "since": visit.now - WHILES[since],
            "failed": given.get("failed") == "yes",
            "slowest": given.get("slowest") == "yes",
            **{name: given[name].strip() or None for name in ("node", "group", "function") if name in given},
        }
        found = await _ask(visit, wanted)
        order = (lambda call: call.seconds) if wanted["slowest"] else (lambda call: call.t)
        found.calls = sorted(found.calls, key=order, reverse=True)[:SHOWN]
    named = [(name, given.get(name, "").strip()) for name in ("node", "group", "function")]
    options = [f"--{name} {text}" for name, text in named if text]
    options += [f"--{name}" for name in ("failed", "slowest") if given.get(name) == "yes"]
    return await visit.html(
        "calls.html",
        found=found,
        whiles=tuple(WHILES),
        since=since,
        steps=STEPS,
        command=" ".join(["skerry calls", *options, f"--since {since}"]),
    )


async def show_one(visit: Visit) -> Reply:
    """GET /calls/{id}?node=: a call, by the id in its answer's X-Request-Id, and what it logged."""
    wanted = {"kind": "calls", "call": visit.path["id"], "node": visit.query.get("node") or None, "limit": LINES}
    # A fast, successful call has no record itself, but its log lines do.
    found, logged = await asyncio.gather(_ask(visit, wanted), _ask(visit, {**wanted, "kind": "lines"}))
    found.lines = sorted(logged.lines, key=lambda line: line.t)
    found.notices = logged.notices | found.notices
    found.in_time = found.in_time and logged.in_time
    nodes = sorted({call.node for call in found.calls} | {line.node for line in found.lines})
    return await visit.html("call.html", id=visit.path["id"], found=found, nodes=nodes, steps=STEPS, most=LINES)


async def _ask(visit: Visit, wanted: dict[str, Any]) -> FoundCalls:
    """Ask nodes and collect their answers. Raises: ProblemError, when the query is wrong or there are too many."""
    query = request_input.convert(wanted, logs.LogFilter, "invalid_parameter")
    found, rest = FoundCalls(), b""
    try:
        async with visit.services.clock.timeout(PATIENCE), aclosing(await visit.ask(logs.watch, {}, query)) as pieces:
            async for piece in pieces:
                *complete, rest = (rest + piece).split(b"\n")
                for line in complete:
                    if line:
                        _take(found, line)
                await asyncio.sleep(0)
    except TimeoutError:
        found.in_time = False
    return found


_decode = msgspec.json.Decoder(CallRecord | LogRecord | NodeLogRecord).decode
_decode_notice = msgspec.json.Decoder(Notice).decode


def _take(found: FoundCalls, line: bytes) -> None:
    try:
        record = _decode(line)
    except msgspec.ValidationError:
        notice = _decode_notice(line)
        found.notices[notice.notice] = notice
        return
    if isinstance(record, CallRecord) and len(found.calls) < KEPT:
        found.calls.append(record)
    elif not isinstance(record, CallRecord) and len(found.lines) < KEPT:
        found.lines.append(record)


PAGES = (ConsolePage("GET", "/calls", show_list), ConsolePage("GET", "/calls/{id}", show_one))
