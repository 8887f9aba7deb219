"""Releases: the list of them, and one: what it changed, how far it is, which nodes fail at it and why."""

from dataclasses import dataclass

from control.api import releases, request_input
from control.api.operations import Reply
from control.api.release_bodies import Release
from control.api.releases import ShownRelease
from control.console import fleet_grid, rendering
from control.console.fleet_grid import GroupBlocks
from control.console.formats import num, plural
from control.console.hub import Make, Parts
from control.console.pages import confirming
from control.console.visits import ConsolePage, Visit
from control.protocol import wire
from control.telemetry.fleet_summary import GroupSummary

SHOWN = 25
"""Releases of a page of the list."""
EVERY = "/releases"
ONE = "/releases/{group}/{number}"


@dataclass(frozen=True)
class Progress:
    """How far a release is in its group."""

    release: Release
    group: GroupSummary
    blocks: GroupBlocks | None
    """The group's nodes; None where another release is the group's target by now."""

    @property
    def is_target(self) -> bool:
        """Whether it is what the nodes of the group should run now."""
        return self.release.number == self.group.release

    @property
    def kind(self) -> str:
        """What the page is: how many blocks it has, if it has any, as only a page loaded anew has others."""
        return "superseded" if self.blocks is None else f"target-{len(self.blocks.blocks) + self.blocks.left_out}"

    @property
    def nodes(self) -> int:
        """How many nodes run it, as far as that is known."""
        return sum(n for (_, number), n in self.group.counts.items() if number == self.release.number)

    @property
    def verdict(self) -> tuple[str, str]:
        """The kind and the words of how it is."""
        stands = self.group.standings
        if not self.is_target:
            return "off", f"superseded by {self.group.release}"
        if stands["failing"]:
            return "fail", f"{num(stands['failing'])} failing"
        if stands["syncing"] or stands["behind"]:
            return "sync", "in flight"
        if not self.group.nodes:
            return "off", "no nodes"
        return "ok", f"at target on {plural(stands['at_target'], 'node')}"


async def show_list(visit: Visit) -> Reply:
    """GET /releases?group="""
    query = releases.ReleaseQuery(
        visit.query.get("cursor") or None, SHOWN, wire_name(visit.query.get("group", ""), "group")
    )
    found, next = await visit.items(releases.list_releases, Release, query)
    summary = (await visit.services.standings.summary()).of(visit.rights.groups("read"))
    groups = {group.name: group for group in summary.groups}
    # A group that was made since the summary was read isn't in it.
    rows = [Progress(release, groups[release.group], None) for release in found if release.group in groups]
    return await visit.html(
        "releases.html", rows=rows, next=next, group=query.group, names=list(groups)[:100], empty=not found
    )


async def show_one(visit: Visit) -> Reply:
    """GET /releases/{group}/{number}"""
    release, number = await _release(visit), int(visit.path["number"])
    progress = await _progress(visit, release)
    retried = visit.query.get("retried", "")
    return await visit.html(
        "release.html",
        kind=progress.kind,
        release=release,
        progress=progress,
        earlier=number - 1,
        may={role: visit.rights.allows(role, release.group, ()) for role in ("push", "deploy")},
        retried=int(retried) if retried.isdecimal() and len(retried) < 7 else None,
    )


async def live(visit: Visit) -> Make:
    """The parts of a release's page that change. What it changed stays as it was when the stream began."""
    release = await _release(visit)

    async def make() -> Parts:
        progress = await _progress(visit, release)
        made = rendering.parts("release_parts.html", visit.now, visit=visit, progress=progress)
        blocks = {b.id: made("block", block=b) for b in progress.blocks.blocks} if progress.blocks else {}
        title = f"{progress.verdict[1]} · {release.group} {release.number} · Skerry"
        return {
            "kind": progress.kind,
            "title": title,
            **{name: made(name) for name in ("verdict", "standings", "failing")},
            **blocks,
        }

    return make


async def retry(visit: Visit) -> Reply:
    """POST /releases/{group}/{number}/retry"""
    told = await visit.ask(releases.retry, path_of(visit), key=confirming.form_key(visit))
    group, number = visit.path["group"], visit.path["number"]
    return rendering.redirect(f"/releases/{group}/{number}?retried={told['nodes']}")


def path_of(visit: Visit) -> dict[str, object]:
    """The parameters in the path, checked as the API's. Raises: ProblemError."""
    return {name: request_input.path_value(name, text) for name, text in visit.path.items()}


def wire_name(text: str, field: str) -> str | None:
    """A name in a query; None where it isn't given. Raises: ProblemError invalid_parameter, when it can't be one."""
    if not text:
        return None
    found: str = request_input.convert({field: text}, dict[str, wire.Name], "invalid_parameter")[field]
    return found


async def _release(visit: Visit) -> ShownRelease:
    found: ShownRelease = await visit.ask(releases.get_release, path_of(visit))
    return found


async def _progress(visit: Visit, release: Release) -> Progress:
    services = visit.services
    summary, grid = await services.standings.both()
    of_group = summary.of([release.group]).groups
    # A group that was made since the summary was read isn't in it: nobody has joined it yet.
    group = of_group[0] if of_group else GroupSummary(release.group, release.number, {}, {}, ())
    blocks = None
    if group.release == release.number:
        blocks = fleet_grid.draw(grid.of([release.group])).get(release.group, GroupBlocks([], 0))
    return Progress(release, group, blocks)


PAGES = (
    ConsolePage("GET", EVERY, show_list),
    ConsolePage("GET", ONE, show_one, live=live),
    ConsolePage("POST", f"{ONE}/retry", retry, "deploy"),
)
