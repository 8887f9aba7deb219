"""Releases: the list, one release, and the forms that make one.

A release's page shows what it changed, its progress or its rollout, and which nodes fail at it and why. The forms make
a new release, or an earlier one again. The plan is shown first, and nothing else is done. The form that is sent has the
digest of the plan that was shown, and a key: if the plan has changed since, the new plan is shown and nothing is done,
and a form sent twice acts once.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.datastructures import QueryParams

from control.access.auth import AuthError
from control.access.rights import ROLES
from control.api import functions, releases, request_input, rollout_summaries
from control.api.operations import Reply
from control.api.release_bodies import MadeRelease, NewRelease, Release
from control.api.releases import ShownRelease
from control.api.rollout_bodies import Rollout
from control.console import fleet_grid, rendering, shown_rollout
from control.console.fleet_grid import GroupBlocks
from control.console.formats import num, plural
from control.console.hub import Make, Parts
from control.console.pages import page_input, rollout_pages
from control.console.pages.page_input import path_of, wire_name
from control.console.shown_rollout import RolloutView
from control.console.visits import ConsolePage, Visit
from control.problems import ProblemError
from control.telemetry.fleet_summary import Cause, GroupSummary

SHOWN = 25
"""Releases per page of the list."""
EVERY = "/releases"
ONE = "/releases/{group}/{number}"
NEW = "/releases/new"
ROLLBACK = f"{ONE}/rollback"
CONSENTS = ("allow_unfit", "allow_loss", "allow_stall")
ROWS = 100
"""Functions with their own row in the form; others are named in its text field."""
OUTSIDE = 20
"""Least rows for functions that aren't in the previous release."""
GROUPS = 200
"""Groups that the form suggests; others are typed."""
GOES = ("now", "rehearsal_only")
"""How a release may go out other than its group's policy says, as fields of the API."""
_ITEM = re.compile(r"([^=\s]+)=(\S+)|-(\S+)")


@dataclass(frozen=True)
class Progress:
    """The progress of a release in its group."""

    release: Release
    group: GroupSummary
    blocks: GroupBlocks | None
    """The group's nodes; None if another release is the group's target."""
    rollout: Rollout | None = None
    """How it goes out, if that is known and it doesn't go to all nodes at once."""
    view: RolloutView | None = None
    """The same with all that its page shows."""
    successor: int | None = None
    """The number of the release that a rollout brings to its group now."""

    @property
    def is_target(self) -> bool:
        """Whether the nodes of the group should run this release now."""
        return self.release.number == self.group.release

    @property
    def kind(self) -> str:
        """The kind of page: how many blocks it has, if any, as only a reload changes them."""
        kind = "superseded" if self.blocks is None else f"target-{len(self.blocks.blocks) + self.blocks.left_out}"
        return kind if self.view is None else f"{kind}-{self.view.shape}"

    @property
    def is_tried(self) -> bool:
        """Whether nodes may be trying it: those of the group, or those that its rollout has started."""
        return self.is_target or (self.rollout is not None and self.rollout.state in ("running", "paused", "aborted"))

    @property
    def failing(self) -> int:
        """How many of these nodes fail."""
        if self.view is not None and not self.is_target:
            return self.view.rollout.counts.failed
        return self.group.standings["failing"]

    @property
    def causes(self) -> tuple[Cause, ...]:
        """Why they fail."""
        return self.view.failing if self.view is not None and not self.is_target else self.group.causes

    @property
    def nodes(self) -> int:
        """How many nodes run it, as far as is known."""
        return sum(n for (_, number), n in self.group.counts.items() if number == self.release.number)

    @property
    def verdict(self) -> tuple[str, str]:
        """The state of the release: its kind and its description."""
        stands = self.group.standings
        if self.rollout is not None and self.rollout.state != "done":
            return shown_rollout.verdict(self.rollout)
        if self.release.rollout is not None and self.release.rollout.state != "done":
            return "off", self.release.rollout.state.replace("_", " ")
        if self.is_target and self.successor is not None and self.successor != self.release.number:
            return "sync", f"{self.successor} goes out in its place"
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
    going = {one.group: one for one in await rollout_pages.open_ones(visit)}
    # A group made after the summary was read isn't in it.
    rows = [_row(release, groups[release.group], going) for release in found if release.group in groups]
    policy = None
    if query.group is not None:
        policy = await visit.ask(rollout_summaries.policy_of, {"group": query.group})
    return await visit.html(
        "releases.html",
        rows=rows,
        next=next,
        group=query.group,
        names=list(groups)[:100],
        empty=not found,
        policy=policy,
    )


def _row(release: Release, group: GroupSummary, going: Mapping[str, Rollout]) -> Progress:
    """Return a release of the list, by the open rollouts of groups."""
    rollout = going.get(release.group)
    own = rollout if rollout is not None and rollout.number == release.number else None
    return Progress(release, group, None, own, successor=rollout.number if rollout else None)


async def show_one(visit: Visit) -> Reply:
    """GET /releases/{group}/{number}"""
    release, number = await _release(visit), int(visit.path["number"])
    progress = await _progress(visit, release)
    retried = visit.query.get("retried", "")
    done = rollout_pages.DONE.get(visit.query.get("done", ""))
    return await visit.html(
        "release.html",
        kind=progress.kind,
        release=release,
        progress=progress,
        view=progress.view,
        earlier=number - 1,
        may={role: visit.rights.allows(role, release.group, ()) for role in ROLES},
        done=done,
        retried=int(retried) if retried.isdecimal() and len(retried) < 7 else None,
    )


async def live(visit: Visit) -> Make:
    """Return the parts of a release's page that change. Its list of changes stays as it was when the stream began."""
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
            **rollout_pages.parts(visit, progress.view),
            **blocks,
        }

    return make


async def retry(visit: Visit) -> Reply:
    """POST /releases/{group}/{number}/retry"""
    told = await visit.ask(releases.retry, path_of(visit), key=page_input.form_key(visit))
    group, number = visit.path["group"], visit.path["number"]
    return rendering.redirect(f"/releases/{group}/{number}?retried={told['nodes']}")


async def _release(visit: Visit) -> ShownRelease:
    found: ShownRelease = await visit.ask(releases.get_release, path_of(visit))
    return found


async def _progress(visit: Visit, release: Release) -> Progress:
    services = visit.services
    summary, grid = await services.standings.both()
    of_group = summary.of([release.group]).groups
    # A group made after the summary was read isn't in it: no node has joined it yet.
    group = of_group[0] if of_group else GroupSummary(release.group, release.number, {}, {}, ())
    blocks = None
    if group.release == release.number:
        blocks = fleet_grid.draw(grid.of([release.group])).get(release.group, GroupBlocks([], 0))
    view = None if release.rollout is None else await rollout_pages.read(visit)
    going = await rollout_pages.open_ones(visit, release.group) if blocks is not None else []
    successor = going[0].number if going else None
    return Progress(release, group, blocks, None if view is None else view.rollout, view, successor)


@dataclass(frozen=True)
class FunctionChoice:
    """A function that a release may include."""

    name: str
    version: int | None
    """The version in the group's newest release; None if that doesn't have the function."""
    newest: int | None
    """The number of its newest version; None if it no longer has any."""

    @property
    def is_older(self) -> bool:
        """Whether the release has a version other than the newest."""
        return self.version is not None and self.newest is not None and self.version < self.newest


@dataclass(frozen=True)
class PlanForm:
    """A plan, and what the form has to send to carry it out."""

    plan: MadeRelease
    action: str
    """The address that the form is sent to."""
    fields: list[tuple[str, str]]
    """The fields sent besides the consents: names and values."""
    command: str
    """The command that does the same in a terminal."""

    @property
    def name(self) -> str:
        """The text that is typed to confirm it."""
        return f"{self.plan.group}/{self.plan.number}"

    @property
    def is_heavy(self) -> bool:
        """Whether it removes something that can't be restored: functions or rows."""
        return bool(self.plan.changes.remove or self.plan.losses)

    @property
    def does_nothing(self) -> bool:
        """Whether the release would be the same as the previous one."""
        return not any(msgspec.structs.astuple(self.plan.changes)) and self.plan.schema_floor == self.plan.floor_before


async def show_new(visit: Visit) -> Reply:
    """GET /releases/new: a form, and the plan of its contents."""
    return await _show_new(visit, visit.query, planned="do" in visit.query)


async def make_new(visit: Visit) -> Reply:
    """POST /releases/new"""
    return await _make(visit, _new_body(visit.form), NEW)


async def show_rollback(visit: Visit) -> Reply:
    """GET /releases/{group}/{number}/rollback: the plan of an earlier release made again."""
    body, action = _rollback_body(visit, visit.query)
    return await visit.html("rollback.html", form=await _plan(visit, body, action), body=body, error=None)


async def make_rollback(visit: Visit) -> Reply:
    """POST /releases/{group}/{number}/rollback"""
    return await _make(visit, *_rollback_body(visit, visit.form))


async def _make(visit: Visit, body: NewRelease, action: str) -> Reply:
    key, fields = page_input.form_key(visit), visit.form
    digest = fields.get("plan_digest", "")
    body = request_input.convert(
        {
            **msgspec.to_builtins(body),
            "plan_digest": digest,
            **{name: page_input.flag(fields.get(name)) for name in CONSENTS},
        },
        NewRelease,
        "invalid_body",
    )
    # The digest covers the number, so it refuses a typed number that isn't the one to be made.
    typed = fields.get("typed", "").strip() == f"{body.group}/{fields.get('number', '')}"
    try:
        if not typed:
            form = await _plan(visit, body, action)
            if form.is_heavy and form.plan.plan_digest == digest:
                page_input.refuse_untyped(visit, form.name)
        made = await visit.ask(releases.create, {}, releases.PlanQuery(), body, key=key)
    except AuthError:
        raise
    except ProblemError as error:
        if error.status >= 500:
            raise
        return await _show_again(visit, body, action, error)
    return rendering.redirect(f"/releases/{made['group']}/{made['number']}")


async def _show_again(visit: Visit, body: NewRelease, action: str, error: ProblemError) -> Reply:
    """Return the page with the current plan and why nothing was done."""
    if action == NEW:
        return await _show_new(visit, visit.form, planned=True, error=error)
    try:
        form = await _plan(visit, body, action)
    except ProblemError as now:
        raise now from error
    return await visit.html("rollback.html", error.status, form=form, body=body, error=error)


async def _show_new(visit: Visit, fields: QueryParams, *, planned: bool, error: ProblemError | None = None) -> Reply:
    summary = (await visit.services.standings.summary()).of(visit.rights.groups("push"))
    names = [group.name for group in summary.groups if visit.rights.allows("push", group.name, ())]
    fields = fields if fields.get("group") else QueryParams({"group": names[0] if names else "default"})
    body, form = None, None
    try:
        body = _new_body(fields)
        if planned:
            form = await _plan(visit, body, NEW)
    except AuthError:
        raise
    except ProblemError as problem:
        if problem.status >= 500:
            raise
        error = error or problem
    before = await _newest(visit, body.group) if body else None
    inside, outside, more = await _rows(visit, before)
    return await visit.html(
        "release_new.html",
        error.status if error else 200,
        names=names[:GROUPS],
        group=body.group if body else fields["group"],
        before=before,
        inside=inside,
        outside=outside,
        more=more,
        fields=fields,
        form=form,
        error=error,
    )


async def _newest(visit: Visit, group: str) -> Release | None:
    """Return the newest release of a group. Raises: ProblemError unknown_group, also if the operator may not see it."""
    found, _ = await visit.items(releases.list_releases, Release, releases.ReleaseQuery(None, 1, group))
    return found[0] if found else None


async def _rows(visit: Visit, before: Release | None) -> tuple[list[FunctionChoice], list[FunctionChoice], bool]:
    """Return the functions of the group's newest release, those with a newer version first, and other functions; and
    whether there are more of either."""
    has = {f.name: f.version for f in before.functions} if before else {}
    newest = dict(await visit.ask(functions.newest_of, {"names": list(has)}))
    inside = [FunctionChoice(name, version, newest.get(name)) for name, version in has.items()]
    inside.sort(key=lambda row: (not row.is_older, row.name))
    room = max(ROWS - len(inside), OUTSIDE)
    others = await visit.ask(functions.not_among, {"names": list(has), "count": room + 1})
    outside = [FunctionChoice(name, None, version) for name, version in others[:room]]
    return inside[:ROWS], outside, len(inside) > ROWS or len(others) > room


async def _plan(visit: Visit, body: NewRelease, action: str) -> PlanForm:
    plan = await visit.ask(releases.create, {}, releases.PlanQuery(plan=True), body)
    fields = [
        ("group", body.group),
        ("reason", body.reason),
        ("number", str(plan.number)),
        ("plan_digest", plan.plan_digest),
    ]
    if body.now or body.rehearsal_only:
        fields.append(("goes", "now" if body.now else "rehearsal_only"))
    if body.rollback_to is None:
        fields.append(("items", _items(body)))
        if body.schema is not None:
            fields.append(("schema", str(body.schema)))
    return PlanForm(plan, action, fields, _command(body))


def _new_body(fields: QueryParams) -> NewRelease:
    """Return the request body for a form. Raises: ProblemError invalid_body, when the form isn't valid."""
    wanted: dict[str, Any] = {"group": fields.get("group", ""), "reason": fields.get("reason", "").strip()}
    versions = {name[2:]: text.strip() for name, text in fields.multi_items() if name.startswith("f:") and text.strip()}
    removed = fields.getlist("remove")
    for item in fields.get("items", "").split():
        match = _ITEM.fullmatch(item)
        if match is None:
            raise ProblemError("invalid_body", f"{item[:100]} is neither name=version nor -name", field="items")
        if match[3]:
            removed.append(match[3])
        else:
            versions[match[1]] = match[2]
    wanted |= {"functions": versions, "remove": sorted(set(removed))}
    if fields.get("goes") in GOES:
        wanted[fields["goes"]] = True
    if fields.get("schema", "").strip():
        wanted["schema"] = fields["schema"].strip()
    return request_input.convert(wanted, NewRelease, "invalid_body", strict=False)


def _rollback_body(visit: Visit, fields: QueryParams) -> tuple[NewRelease, str]:
    path = path_of(visit)
    wanted = {"group": path["group"], "rollback_to": path["number"], "reason": fields.get("reason", "").strip()}
    body = request_input.convert(wanted, NewRelease, "invalid_body")
    return body, f"/releases/{path['group']}/{path['number']}/rollback"


def _items(body: NewRelease) -> str:
    return " ".join([f"{name}={version}" for name, version in body.functions.items()] + [f"-{n}" for n in body.remove])


def _command(body: NewRelease) -> str:
    parts = [f"skerry release {'rehearse' if body.rehearsal_only else 'create'}", f"--group {body.group}"]
    parts += [f"--set {name}={version}" for name, version in body.functions.items()]
    parts += [f"--remove {name}" for name in body.remove]
    if body.schema is not None:
        parts.append(f"--schema {body.schema}")
    if body.rollback_to is not None:
        parts.append(f"--rollback-to {body.rollback_to}")
    if body.now:
        parts.append("--now")
    return " ".join(parts if body.rehearsal_only else [*parts, "--plan"])


PAGES = (
    ConsolePage("GET", EVERY, show_list),
    ConsolePage("GET", ONE, show_one, live=live),
    ConsolePage("POST", f"{ONE}/retry", retry, "deploy"),
    ConsolePage("GET", NEW, show_new, "push"),
    ConsolePage("POST", NEW, make_new, "push"),
    ConsolePage("GET", ROLLBACK, show_rollback, "push"),
    ConsolePage("POST", ROLLBACK, make_rollback, "push"),
)
