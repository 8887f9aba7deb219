"""GET /: what is wrong now and why, the fleet at a glance, releases in progress, what happened last.

Until the first node joins, it shows the three commands that lead to a first answer.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from itertools import groupby
from typing import NamedTuple

from control.api import audit, release_bodies, releases, syncs
from control.api.operations import Reply
from control.api.rollout_bodies import Rollout
from control.audit_chain import AuditEntry
from control.backups.backup_faults import Fault
from control.console import fleet_grid, rendering, shown_rollout
from control.console.fleet_grid import GroupBlocks
from control.console.formats import num, plural
from control.console.hub import Make, Parts
from control.console.pages import rollout_pages
from control.console.shown_backup import CountedBackups, counted_backups
from control.console.visits import ConsolePage, Visit
from control.telemetry.call_history import CallTally
from control.telemetry.fleet_summary import FleetGrid, FleetSummary, GroupSummary

EVENTS = 10
"""Number of latest events shown."""
MOST_FAILED, LEAST_FAILED = 0.01, 4
"""The share, and in any case the number, of a release's calls that may fail before it is reported as a problem."""
FIRST_RUN = "first-run"
"""The kind of page when there is no node."""


@dataclass(frozen=True)
class Happening:
    """Something that happened, shown as one line."""

    at: datetime
    kind: str
    text: str
    link: str = ""
    """The page of its subject."""
    about: str = ""
    """The text of the link."""
    code: str = ""
    times: int = 1
    """How often it happened in a row; `at` is the last time."""
    more: bool = False
    """Whether it may have happened more often, because earlier events weren't read."""


class FailingCalls(NamedTuple):
    """Calls of a group's release, some of which fail."""

    group: str
    release: int
    tally: CallTally


@dataclass(frozen=True)
class Overview:
    """What the page shows."""

    fleet: FleetSummary
    grid: dict[str, GroupBlocks]
    in_flight: list[GroupSummary]
    """Groups some of whose nodes aren't at their release, but for those with a rollout."""
    happened: list[Happening]
    calls: CallTally
    """The calls of the last `MINUTES_SHOWN` minutes."""
    failing_calls: list[FailingCalls]
    """Where more than `MOST_FAILED` of the calls fail, the most failures first."""
    rollouts: list[Rollout]
    """Those that haven't ended, the held ones first."""
    backups: CountedBackups

    @property
    def kind(self) -> str:
        """The kind of page when there are nodes: its groups and their numbers of blocks, as only a reload adds more."""
        blocks = ((name, len(found.blocks) + found.left_out) for name, found in self.grid.items())
        shape = " ".join(f"{name}:{count}" for name, count in blocks if count)
        return f"overview-{sha256(shape.encode()).hexdigest()[:12]}"

    @property
    def headline(self) -> str:
        """A sentence that says whether and how much is wrong."""
        counts = [(self.fleet.standings[word], word) for word in ("failing", "offline", "revoked")]
        (count, word), *others = [found for found in counts if found[0]] or [(0, "")]
        said = [f"{plural(count, 'node')} {word}"] if count else []
        said += [f"{num(count)} {word}" for count, word in others]
        waiting = sum(shown_rollout.is_held(rollout) for rollout in self.rollouts)
        held = [f"{plural(waiting, 'release')} held"] if waiting else []
        if self.fleet.standings["failing"]:
            return ", ".join([*said, *held])
        if self.failing_calls:
            said.append(f"calls fail in {plural(len({found.group for found in self.failing_calls}), 'group')}")
        failing: tuple[tuple[Fault, str], ...] = (("failing", "backup"), ("drill", "restore drill"))
        for fault, what in failing:
            if nodes := self.backups.count(fault):
                said.append(f"{plural(nodes, what)} failing")
        text = ", ".join([*said, *held])
        return text[:1].upper() + text[1:] if text else "Nothing is wrong"


async def show(visit: Visit) -> Reply:
    """GET /"""
    shown = await _read(visit)
    if not shown.fleet.nodes:
        groups = visit.rights.groups("read")
        return await visit.html("first_run.html", kind=FIRST_RUN, group=groups[0] if groups else "default")
    return await visit.html("overview.html", kind=shown.kind, shown=shown)


async def live(visit: Visit) -> Make:
    """Return the parts of the page that change."""

    async def make() -> Parts:
        shown = await _read(visit)
        if not shown.fleet.nodes:
            return {"kind": FIRST_RUN}
        made = rendering.parts("overview_parts.html", visit.now, visit=visit, shown=shown)
        whole = {name: made(name) for name in ("say", "stand", "wrong", "flight", "events")}
        groups = {f"g-{group.name}": made("group", group=group) for group in shown.fleet.groups}
        blocks = {b.id: made("block", block=b) for group in shown.grid.values() for b in group.blocks}
        return {"kind": shown.kind, "title": f"{shown.headline} · Overview · Skerry", **whole, **groups, **blocks}

    return make


async def _read(visit: Visit) -> Overview:
    groups = visit.rights.groups("read")
    services = visit.services
    summary, grid = await services.standings.both()
    fleet = summary.of(groups)
    if not fleet.nodes:
        return Overview(fleet, {}, [], [], CallTally(), [], [], counted_backups([], None))
    going = sorted(await rollout_pages.open_ones(visit), key=lambda one: not shown_rollout.is_held(one))
    in_steps = {rollout.group for rollout in going}
    in_flight = [group for group in fleet.groups if _in_flight(group) and group.name not in in_steps]
    recent = (await services.recent_calls.get()).groups
    by_release = [
        FailingCalls(group.name, release, tally)
        for group in fleet.groups
        for release, tally in recent.get(group.name, {}).items()
    ]
    calls = CallTally()
    for found in by_release:
        calls.add(found.tally.outcomes, found.tally.times)
    failing = [found for found in by_release if found.tally.errors > max(LEAST_FAILED, MOST_FAILED * found.tally.calls)]
    failing.sort(key=lambda found: found.tally.errors, reverse=True)
    backups = counted_backups(await services.backup_counts.get(), groups)
    return Overview(fleet, _draw(grid, groups), in_flight, await _happened(visit), calls, failing, going, backups)


_drawn: tuple[FleetGrid, dict[str, GroupBlocks]] | None = None


def _draw(grid: FleetGrid, groups: list[str] | None) -> dict[str, GroupBlocks]:
    """Return the blocks of these groups. The last drawing of all groups is cached: most viewers see the same."""
    global _drawn
    if groups is not None:
        return fleet_grid.draw(grid.of(groups))
    if _drawn is None or _drawn[0] is not grid:
        _drawn = grid, fleet_grid.draw(grid)
    return _drawn[1]


def _in_flight(group: GroupSummary) -> bool:
    """Return whether some reachable nodes of a group aren't at its release yet."""
    return group.release is not None and any(group.standings[standing] for standing in ("failing", "syncing", "behind"))


async def _happened(visit: Visit) -> list[Happening]:
    """Return the newest events of the logs that the operator may read."""
    failed, older = await visit.items(syncs.list_syncs, syncs.Sync, syncs.SyncFilter(None, EVENTS, None, "failed"))
    found = [
        Happening(
            sync.ended_at or sync.started_at,
            "fail",
            f"failed its sync to release {sync.release}" if sync.release else "failed its sync",
            f"/nodes/{sync.node}",
            sync.node,
            sync.error.code if sync.error else "",
            1 + sync.folded,
        )
        for sync in failed
    ]
    if found and older is not None:
        found[-1] = replace(found[-1], more=True)
    if visit.rights.allows("admin", None):
        entries, _ = await visit.items(audit.list_audit, AuditEntry, audit.AuditFilter(None, EVENTS))
        found += [Happening(e.at, "info", f"{e.actor}: {e.action} {e.target}") for e in entries]
    else:
        made, _ = await visit.items(releases.list_releases, release_bodies.Release, releases.ReleaseQuery(None, EVENTS))
        found += [Happening(r.created_at, "info", f"{r.created_by} made release {r.group}/{r.number}") for r in made]
    return list(_folded(sorted(found, key=lambda one: one.at, reverse=True)))[:EVENTS]


def _folded(happened: list[Happening]) -> Iterable[Happening]:
    """Combine what happened several times in a row into one line."""
    for _, alike in groupby(happened, key=lambda one: (one.kind, one.text, one.link, one.code)):
        first, *rest = alike
        times = first.times + sum(one.times for one in rest)
        yield replace(first, times=times, more=any(one.more for one in (first, *rest)))


PAGES = (ConsolePage("GET", "/", show, live=live),)
