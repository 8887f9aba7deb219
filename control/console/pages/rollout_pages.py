"""Rollouts of releases: what a release's page shows of one, its nodes, its rehearsal, and what an operator does to it.

Pausing and resuming act at once. All else shows first what it would do, and does it if the rollout, and the plan of a
rollback, are still as they were shown.
"""

from hashlib import sha256
from typing import Any

import msgspec
from starlette.datastructures import QueryParams

from control.access.auth import AuthError
from control.api import releases, request_input, rollout_summaries, rollouts
from control.api.operations import Handler, Reply
from control.api.release_bodies import MadeRelease, NewRelease
from control.api.rollout_bodies import Act, NodeRehearsal, Rollout, RolloutNode, ShownRollout
from control.api.rollout_summaries import RehearsalSummary
from control.console import rendering, shown_rollout
from control.console.hub import Parts
from control.console.pages import page_input
from control.console.shown_rollout import NODE_KINDS, OUTCOMES, RolloutAct, RolloutView
from control.console.visits import ConsolePage, Visit
from control.problems import ProblemError

ONE = "/releases/{group}/{number}"
NODES = f"{ONE}/nodes"
REHEARSAL = f"{ONE}/rehearsal"
ACT = f"{ONE}/rollout/{{act}}"
SHOWN = 50
"""Nodes per page of a list."""
READ = 200
"""Rehearsals that didn't pass that are read to group them by error."""
OPEN_SHOWN = 200
"""The most open rollouts that lists of releases know."""
PARTS = {
    "waits": "waits",
    "steps": "steps",
    "outcomes": "outcomes",
    "gates": "gates",
    "rehearsal": "rehearsal",
    "would-fail": "rehearsal_failures",
}
"""The live parts, by their ids: the names of their macros."""
DONE: dict[str, str] = {
    "pause": "It is paused: no further node starts",
    "resume": "It goes on",
    "promote": "It goes on at its next step",
    "abort": "It is aborted: no further node starts",
    "retry": "It begins again",
    "rollback": "It is rolled back",
}
"""What is said after an act."""


async def read(visit: Visit) -> RolloutView:
    """Return the rollout of the release in the path, with why rehearsals didn't pass and why nodes fail.

    Raises: ProblemError unknown_rollout, when it has none.
    """
    path = _path(visit)
    shown: ShownRollout = await visit.ask(rollouts.get_rollout, path)
    found = RehearsalSummary((), ())
    rehearsals, more = list[NodeRehearsal](), False
    if (told := shown.rehearsal) is not None:
        found = await visit.ask(rollout_summaries.rehearsed, path)
        if told.failed + told.unknown:
            # Those that didn't pass are listed first.
            query = rollouts.RehearsalQuery(limit=min(READ, told.failed + told.unknown))
            rehearsals, _ = await visit.items(rollouts.list_rehearsals, NodeRehearsal, query, path)
            more = told.failed + told.unknown > READ
    failed = list[RolloutNode]()
    if shown.counts.failed:
        failing = rollouts.NodeQuery(limit=READ, outcome="failed")
        failed, _ = await visit.items(rollouts.list_nodes, RolloutNode, failing, path)
    group = (await visit.services.standings.summary()).of([shown.group]).groups
    return RolloutView(
        shown,
        group[0].release if group else None,
        rehearsals,
        more,
        shown_rollout.causes(shown.group, failed),
        found.digests,
        found.changes,
    )


async def open_ones(visit: Visit, group: str | None = None) -> list[Rollout]:
    """Return the rollouts of a group, or of all that the operator may see, that haven't ended, the newest first."""
    query = rollouts.RolloutQuery(limit=OPEN_SHOWN, group=group, open=True)
    found, _ = await visit.items(rollouts.list_rollouts, Rollout, query)
    return found


def parts(visit: Visit, view: RolloutView | None) -> Parts:
    """Return the live parts of a release's page about its rollout, if it has one."""
    if view is None:
        return {}
    made = rendering.parts("rollout_parts.html", visit.now, visit=visit, view=view)
    return {id: made(macro) for id, macro in PARTS.items()}


async def show_nodes(visit: Visit) -> Reply:
    """GET /releases/{group}/{number}/nodes?outcome="""
    found = await _listed(visit, rollouts.list_nodes, rollouts.NodeQuery, RolloutNode)
    return await visit.html("rollout_nodes.html", kinds=NODE_KINDS, **found)


async def show_rehearsal(visit: Visit) -> Reply:
    """GET /releases/{group}/{number}/rehearsal?outcome="""
    found = await _listed(visit, rollouts.list_rehearsals, rollouts.RehearsalQuery, NodeRehearsal)
    return await visit.html("rollout_rehearsal.html", kinds=OUTCOMES, **found)


async def _listed(
    visit: Visit, operation: Handler, query: type[rollouts.NodeQuery | rollouts.RehearsalQuery], item: type[Any]
) -> dict[str, Any]:
    """Return what a page of nodes shows, all or those of an outcome, as the operation lists them."""
    path, given = _path(visit), {name: visit.query[name] for name in ("outcome", "cursor") if visit.query.get(name)}
    shown: ShownRollout = await visit.ask(rollouts.get_rollout, path)
    asked = request_input.convert({"limit": SHOWN, **given}, query, "invalid_parameter", strict=False)
    nodes, next = await visit.items(operation, item, asked, path)
    return {"rollout": shown, "nodes": nodes, "next": next, "outcome": asked.outcome or ""}


async def show_act(visit: Visit) -> Reply:
    """GET /releases/{group}/{number}/rollout/{act}: what it would do."""
    view, act = await _asked(visit)
    return await _ask(visit, view, act, visit.query)


async def do_act(visit: Visit) -> Reply:
    """POST /releases/{group}/{number}/rollout/{act}"""
    key, fields, path = page_input.form_key(visit), visit.form, _path(visit)
    name = visit.path["act"]
    body = request_input.convert(
        {"reason": fields.get("reason", "").strip(), "all": page_input.flag(fields.get("all"))}, Act, "invalid_body"
    )
    done = rendering.redirect(f"/releases/{path['group']}/{path['number']}?done={name}")
    # A form that is sent twice finds the rollout changed by itself.
    if await visit.ask(rollout_summaries.answered, path, body=body, key=key) is not None:
        return done
    try:
        view, act = await _asked(visit)
        if act.weight != "light":
            if fields.get("digest") != _digest(view, act, await _plan(visit, view, act)):
                raise ProblemError("plan_changed", "the rollout isn't as it was shown any more: this is what is so now")
            if view.is_heavy(act):
                page_input.refuse_untyped(visit, view.name)
        await visit.ask(OPERATIONS[name], path, body=body, key=key)
    except AuthError:
        raise
    except ProblemError as error:
        if error.status not in (409, 422):
            raise
        return await _show_again(visit, error)
    return done


async def _asked(visit: Visit) -> tuple[RolloutView, RolloutAct]:
    """Return the rollout and the act in the path. Raises: ProblemError, when it can't be done with it as it is."""
    name = visit.path["act"]
    if name not in OPERATIONS:
        raise ProblemError("no_such_path", f"nothing is called {name[:40]}: there are {', '.join(OPERATIONS)}")
    view = await read(visit)
    act = view.act(name)
    if act is None:
        state = shown_rollout.verdict(view.rollout)[1]
        raise ProblemError("rollout_not_possible", f"release {view.name} is {state}: there is nothing to {name}")
    visit.operator.need(act.role, view.rollout.group)
    return view, act


async def _plan(visit: Visit, view: RolloutView, act: RolloutAct) -> MadeRelease | None:
    """Return the plan of the release that an act makes; None if it makes none."""
    if act.name != "rollback":
        return None
    body = NewRelease(view.rollout.group, rollback_to=view.group_release)
    planned: MadeRelease = await visit.ask(releases.create, {}, releases.PlanQuery(plan=True), body)
    return planned


def _digest(view: RolloutView, act: RolloutAct, plan: MadeRelease | None) -> str:
    """Return the digest of what an act would do; if it differs, that has changed."""
    rollout = view.rollout
    what: list[Any] = [act.name, rollout.state, rollout.step, rollout.attempt, plan.plan_digest if plan else ""]
    # A name that must be typed is asked for before it is missed.
    what.append(view.is_heavy(act))
    if act.name == "resume":
        what += [rollout.waits_for, rollout.counts.failed, [gate.result.outcome for gate in view.gates]]
    return sha256(msgspec.json.encode(what)).hexdigest()[:32]


async def _show_again(visit: Visit, error: ProblemError) -> Reply:
    """Return the act's page as it is now, and why nothing was done."""
    try:
        view, act = await _asked(visit)
        return await _ask(visit, view, act, visit.form, error)
    except ProblemError as now:
        raise now from error


async def _ask(
    visit: Visit, view: RolloutView, act: RolloutAct, fields: QueryParams, error: ProblemError | None = None
) -> Reply:
    plan = await _plan(visit, view, act)
    return await visit.html(
        "rollout_act.html",
        error.status if error else 200,
        view=view,
        act=act,
        plan=plan,
        digest=_digest(view, act, plan),
        may_all=visit.rights.allows(view.role_for_all, view.rollout.group, ()),
        fields=fields,
        error=error,
    )


def _path(visit: Visit) -> dict[str, object]:
    """Return the release in the path, checked as in the API. Raises: ProblemError."""
    return {name: request_input.path_value(name, visit.path[name]) for name in ("group", "number")}


OPERATIONS: dict[str, Handler] = {
    "pause": rollouts.pause,
    "resume": rollouts.resume,
    "promote": rollouts.promote,
    "abort": rollouts.abort,
    "retry": rollouts.retry,
    "rollback": rollouts.rollback,
}
PAGES = (
    ConsolePage("GET", NODES, show_nodes),
    ConsolePage("GET", REHEARSAL, show_rehearsal),
    ConsolePage("GET", ACT, show_act, "push"),
    ConsolePage("POST", ACT, do_act, "push"),
)
