"""A rollout in words and tables: where it stands, why it waits, what goes on, and what its gates saw. Pure.

Rollouts are as the API answers them (`control/api/rollout_bodies.py`).
"""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from control.cli.support import output, undoing
from control.cli.support.client import Json
from control.protocol.counts import counted

NODE_COUNTS = ("at_target", "syncing", "failed", "offline", "held", "waiting", "superseded", "left")
"""The outcomes of nodes, as `NodeCounts` has them."""
ASKED_ABOVE = 100
"""The most nodes that are started at once without a question."""
ENDED = ("done", "aborted", "superseded", "rolled_back")
"""States that are never left, but for an aborted rollout that is tried again."""
STYLES = {"passed": "green", "failed": "red", "unknown": "yellow"}
_STATE_STYLES = {"done": "green", "paused": "yellow", "aborted": "red", "rolled_back": "red"}


def word(name: str) -> str:
    """Return one of control's words as text: `at_target` is `at target`."""
    return name.replace("_", " ")


def name(rollout: Json) -> str:
    """Return what people call a rollout."""
    return f"the rollout of release {rollout['number']} of group {rollout['group']}"


def place(rollout: Json) -> str:
    """Return the step at which a rollout is: `rehearsal`, or `step 2 of 5`."""
    return f"step {rollout['step']} of {rollout['steps']}" if rollout["step"] else "rehearsal"


def standing(rollout: Json) -> str:
    """Return where a rollout stands and why, in a sentence."""
    state, reason = rollout["state"], rollout["reason"]
    match state:
        case "running":
            where = place(rollout)
        case "paused":
            where = f"paused at {place(rollout)}"
        case _:
            where = word(state)
    return f"{where}: {reason}" if reason else where


def onward(rollout: Json, number: int | None = None) -> str:
    """Return what goes on by itself, or the commands that go on; '' where there is nothing to do.

    `number`: of the release, if the commands must name it.
    """
    group = rollout["group"] + (f" --number {number}" if number is not None else "")
    commands = {act: f"`skerry rollout {act} {group}`" for act in ("pause", "resume", "promote", "abort", "retry")}
    commands["rollback"] = f"`skerry rollout rollback {group}`"
    step = rollout["step"] > 0
    match rollout["state"], rollout["waits_for"]:
        case "paused", "rehearsed":
            return f"{commands['resume']} sends it to nodes, {commands['abort']} drops it"
        case "paused", ("failed" | "unknown") if step:
            back = f"{commands['abort']} leaves it at that, {commands['rollback']} takes its nodes back"
            return f"{commands['resume']} accepts what failed so far and goes on; {back}"
        case "paused", ("failed" | "unknown"):
            return f"{commands['abort']} drops it; {commands['resume']} sends it to nodes all the same"
        case "paused", _:
            return f"{commands['resume']} goes on"
        case "running", "approval":
            return f"{commands['promote']} approves it; {commands['abort']} leaves it at that"
        case "running", "unknown":
            return f"it goes on once that is known, or by {commands['promote']}, which doesn't wait for it"
        case "running", ("baking" | "pause" | "window"):
            return f"it goes on by itself; {commands['promote']} doesn't wait, {commands['pause']} holds it"
        case "running", _:
            return f"it goes on by itself; {commands['pause']} holds it"
        # An older control doesn't say which one is the newest.
        case "aborted", _ if rollout.get("newest", rollout["number"]) == rollout["number"]:
            return f"{commands['retry']} begins again, with the rehearsal"
    return ""


def would(act: str, rollout: Json, *, everything: bool = False) -> str:
    """Return what an operator's act would do to a rollout, for the middle of a sentence.

    `everything`: with `promote`, leave out all steps that are left.
    """
    found, number, where = rollout["counts"], rollout["number"], place(rollout)
    waiting = counted(found["waiting"], "node that wasn't started yet", "nodes that weren't started yet")
    run = f"{counted(found['at_target'], 'node that runs', 'nodes that run')} release {number}"
    on_their_way = ("syncing", "failed", "offline", "held")  # an older control doesn't know the last
    others = counted(sum(found.get(outcome, 0) for outcome in on_their_way), "other started node")
    match act:
        case "pause":
            return f"no further node is started; {waiting} wait"
        case "resume" if rollout["waits_for"] == "failed" and rollout["step"]:
            accepted = counted(found["failed"], "failed node is", "failed nodes are")
            return f"{accepted} accepted, and it goes on at {where}"
        case "resume" if rollout["waits_for"] == "unknown" and rollout["step"]:
            return f"its gates are measured from now on, and it goes on at {where}"
        case "resume" if rollout["waits_for"] in ("failed", "unknown", "rehearsed"):
            return f"what the rehearsal found ({rehearsal(rollout['rehearsal'])}) is accepted, and it goes on"
        case "resume":
            return f"it goes on at {where}"
        case "promote" if everything:
            return f"all steps that are left are left out: {waiting} are started"
        case "promote":
            return f"the rest of {where} is left out"
        case "abort":
            return f"{run} keep it, {others} go back to the group's release, {waiting} don't get it"
        case "retry":
            return f"it begins again, as attempt {rollout['attempt'] + 1}; {run} keep it"
        case _:
            return f"a new release takes {run}, and {others}, back to the functions of before, at once"


def is_asked(act: str, rollout: Json, *, everything: bool = False) -> bool:
    """Return whether an act is confirmed first: it takes the release away, or goes on past what would stop it."""
    match act:
        case "abort" | "rollback":
            return True
        case "promote" if everything and rollout["counts"]["waiting"] > ASKED_ABOVE:
            return True
        case "resume" | "promote":
            return rollout["state"] == "paused" and rollout["waits_for"] in ("failed", "unknown")
    return False


def counts(found: Json) -> str:
    """Return how many nodes there are of each outcome that there is: `48 at target, 2 failed`."""
    return ", ".join(f"{found[name]:,} {word(name)}" for name in NODE_COUNTS if found.get(name))


def rehearsal(found: Json | None) -> str:
    """Return how many nodes' rehearsals had each outcome; passed, failed and unknown are always named."""
    if found is None:
        return "left out"
    told = ", ".join(f"{found[outcome]:,} {outcome}" for outcome in STYLES)
    return told + (f", {found['pending']:,} haven't told yet" if found.get("pending") else "")


def going_out(plan: Json | None) -> str:
    """Return how a release goes out, in a line."""
    if plan is None:
        return "goes to all nodes at once"
    steps = plan["steps"]
    then = "to all nodes at once" if steps == ["100%"] else f"in {counted(len(steps), 'step')}: {', '.join(steps)}"
    if plan.get("rehearsal_only"):
        return f"is only rehearsed, on the nodes' own data; resumed, it goes out {then}"
    return f"is rehearsed on the nodes' own data first, and goes out {then}" if plan["rehearse"] else f"goes out {then}"


def drawn(rollout: Json, number: int | None = None) -> RenderableType:
    """Return everything about a rollout: where it stands, its steps, and what their gates saw.

    `number`: as for `onward`.
    """
    parts: list[RenderableType] = [output.drawn_pairs(_head(rollout)), Text()]
    shown = [outcome for outcome in OUTCOMES if outcome not in RARE or rollout["counts"].get(outcome)]
    columns = (*STEPS, *(word(outcome).upper() for outcome in shown))
    now = "stopped" if rollout["state"] in ENDED else "now"
    parts.append(output.drawn_table(columns, [_step(step, shown, now) for step in rollout["plan"]]))
    gates = [(step, gate) for step in rollout["plan"] for gate in step["gates"]]
    if gates:
        parts += [Text(), output.drawn_table(GATES, [_gate(step, gate) for step, gate in gates])]
    style = _STATE_STYLES.get(rollout["state"], "")
    parts += [Text(), Text(output.clean(standing(rollout) + _since(rollout)), style=style)]
    if (further := onward(rollout, number)) != "":
        parts.append(Text(output.clean(f"  {further}")))
    return Group(*parts)


def _since(rollout: Json) -> str:
    if rollout["state"] in ENDED:
        return f" ({output.ago(rollout['ended_at'])})" if rollout["ended_at"] else ""
    return f" (since {output.ago(rollout['waits_since']).removesuffix(' ago')})" if rollout["waits_for"] else ""


def _head(rollout: Json) -> Iterator[tuple[str, object]]:
    attempt = f", attempt {rollout['attempt']}" if rollout["attempt"] > 1 else ""
    yield "rollout", f"release {rollout['number']} of group {rollout['group']}{attempt}"
    yield "state", word(rollout["state"])
    away = f", {rollout['offline']:,} of them offline" if rollout["offline"] else ""
    yield "nodes", f"{rollout['nodes']:,} in the group{away}; {rollout['started']:,} started"
    yield "outcomes", counts(rollout["counts"])
    if rollout.get("undo"):
        yield "data", f"{undoing.counts(rollout['undo'])} (back with release {rollout['undo']['release']})"
    if rollout["policy"].get("rehearse", True) or rollout["rehearsal"]:
        yield "rehearsal", rehearsal(rollout["rehearsal"])
    yield "made", f"{output.ago(rollout['made_at'])} by {rollout['made_by']}"


STEPS = ("STEP", "UNTIL", "STATE", "STARTED")
OUTCOMES = tuple(outcome for outcome in NODE_COUNTS if outcome != "waiting")
"""The outcomes of nodes that a step has started."""
RARE = ("held", "superseded")
"""Those that are a column only where there are such."""


def _step(step: Json, shown: Sequence[str], now: str) -> tuple[object, ...]:
    nodes, state = step["nodes"], now if step["state"] == "now" else word(step["state"])
    started = sum(nodes.get(outcome, 0) for outcome in OUTCOMES)
    counted_nodes = (nodes.get(outcome) or "" for outcome in shown)
    return (step["number"] or "rehearsal", step["text"], state, started or "", *counted_nodes)


GATES = ("STEP", "GATE", "OUTCOME", "MEASURED", "ALLOWED", "BEFORE", "CALLS", "WHY")


def _gate(step: Json, gate: Json) -> tuple[object, ...]:
    values = [measure(gate["gate"], gate[name]) for name in ("measured", "allowed", "before")]
    calls = f"{gate['calls']:,} of at least {gate['at_least_calls']:,}" if gate["at_least_calls"] else ""
    return (step["number"], gate["gate"], gate["outcome"], *values, calls, gate["why"])


def measure(gate: str, value: float | None) -> str:
    """Return a value that a gate saw: a share of calls, or a time. `gate` is the gate in words."""
    if value is None:
        return ""
    return output.latency(value) if gate.startswith("p99") else f"{100 * value:.2f} %"
