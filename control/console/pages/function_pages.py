"""Functions: the list of them, and one: its calls, its versions, what each may do, in which groups it is released."""

import msgspec

from control import manifest_rules
from control.api import functions, pagination
from control.api.functions import DetailedFunction, Function, Version
from control.api.operations import Reply
from control.console.pages import call_charts
from control.console.pages.release_pages import path_of
from control.console.visits import ConsolePage, Visit
from control.problems import ProblemError
from control.protocol.manifest import Manifest
from control.telemetry import recent_calls
from control.telemetry.call_history import CallTally

SHOWN = 50
"""Functions of a page of the list."""
VERSIONS = 20
"""Versions of a page of a function's."""
MANIFEST = 20_000
"""Characters of a manifest that are shown."""


async def show_list(visit: Visit) -> Reply:
    """GET /functions"""
    query = pagination.Paging(visit.query.get("cursor") or None, SHOWN)
    found, next = await visit.items(functions.list_functions, Function, query)
    calls = await _recent(visit)
    return await visit.html("functions.html", found=found, next=next, calls=calls, minutes=recent_calls.MINUTES_SHOWN)


async def _recent(visit: Visit) -> dict[str, CallTally]:
    """The calls of the last minutes by function, in the groups that the operator may see."""
    groups = visit.rights.groups("read")
    found: dict[str, CallTally] = {}
    for group, by_function in (await visit.services.recent_calls.get()).functions.items():
        if groups is None or group in groups:
            for function, tally in by_function.items():
                found.setdefault(function, CallTally()).add(tally.outcomes, tally.times)
    return found


async def show_one(visit: Visit) -> Reply:
    """GET /functions/{name}?range=&version=: its calls, its newest versions, and the manifest of one."""
    path = path_of(visit)
    function: DetailedFunction = await visit.ask(functions.get_function, path)
    query = pagination.Paging(visit.query.get("cursor") or None, VERSIONS)
    found, further = await visit.items(functions.list_versions, Version, query, path)
    wanted = visit.query.get("version", "")
    chosen = None
    if wanted:
        chosen = next((v for v in found if str(v.version) == wanted), None) or await _version(
            visit, function.name, wanted
        )
    elif found and not visit.query.get("cursor"):
        chosen = found[0]
    fleet = await visit.fleet()
    chosen_range = visit.query.get("range", "1h")
    if chosen_range not in call_charts.RANGES:
        raise ProblemError("invalid_parameter", f"a range is one of {', '.join(call_charts.RANGES)}", field="range")
    calls = await call_charts.read(visit, function.name, [target.group for target in function.targets], chosen_range)
    by_version: dict[int, list[str]] = {}
    for target in function.targets:
        by_version.setdefault(target.version, []).append(target.group)
    return await visit.html(
        "function.html",
        function=function,
        versions=[(version, _may(version.manifest), by_version.get(version.version, [])) for version in found],
        next=further,
        chosen=chosen,
        manifest=_shown(chosen.manifest) if chosen else "",
        calls=calls,
        chosen_range=chosen_range,
        ranges=tuple(call_charts.RANGES),
        standings={group.name: group for group in fleet.groups} if fleet else {},
    )


def _may(manifest: Manifest) -> str:
    """What a version may do, in words."""
    stored = msgspec.json.decode(msgspec.json.encode(manifest))
    return "; ".join(f"{grant} {text}" for grant, text in manifest_rules.grants(stored).items())


async def _version(visit: Visit, name: str, wanted: str) -> Version:
    if not wanted.isdecimal() or not wanted.isascii() or len(wanted) > 10:
        raise ProblemError("invalid_parameter", f"{wanted[:50]} is no version's number", field="version")
    found = await visit.ask(functions.get_version, {"name": name, "version": int(wanted)})
    # Its manifest is JSON, as it is stored.
    return msgspec.json.decode(msgspec.json.encode(found), type=Version)


def _shown(manifest: Manifest) -> str:
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2).decode()
    return text if len(text) <= MANIFEST else f"{text[:MANIFEST]}\n… and {len(text) - MANIFEST} characters more"


PAGES = (ConsolePage("GET", "/functions", show_list), ConsolePage("GET", "/functions/{name}", show_one))
