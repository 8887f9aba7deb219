"""A rollout as pages show it: its state in words, its steps, and what an operator may do with it. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from hashlib import sha256
from typing import Literal

import msgspec

from control.access.rights import ROLES, Role
from control.api.rollout_bodies import (
    GateResult,
    NodeCounts,
    NodeRehearsal,
    Rollout,
    RolloutNode,
    RolloutStep,
    ShownRollout,
)
from control.api.rollout_summaries import ChangeOnCopies, DigestOfNodes
from control.console import formats
from control.console.formats import UNKNOWN, num, plural
from control.rollouts.policy import Policy, PolicyStep, Rules, rules_of
from control.rollouts.rules import OPEN, REHEARSAL, Outcome
from control.telemetry.fleet_summary import Cause

Weight = Literal["light", "middle", "heavy"]
ActName = Literal["pause", "resume", "promote", "abort", "retry", "rollback"]

OUTCOMES: dict[Outcome, str] = {"passed": "ok", "failed": "fail", "unknown": "inc"}
"""The kind of status word of each answer."""
NODE_KINDS = {
    "failed": ("fail", "failing"),
    "offline": ("off", "offline"),
    "held": ("held", "held"),
    "syncing": ("sync", "syncing"),
    "waiting": ("todo", "not begun"),
    "superseded": ("past", "superseded"),
    "left": ("rev", "left"),
    "at_target": ("ok", "at target"),
}
"""The kind and the words of each outcome of a node, the worst first."""
HEAVY_FROM = 100
"""Number of nodes from which an act asks for the release's name to be typed."""
EXAMPLES = 5
"""Nodes named for each error."""


@dataclass(frozen=True)
class RolloutAct:
    """Something that an operator may do with a rollout."""

    name: ActName
    verb: str
    """The text of its button."""
    role: Role
    weight: Weight
    """`light` acts at once; the others show what they would do, and ask."""
    main: bool = False
    """Whether it is the act that the rollout waits for."""


@dataclass(frozen=True)
class ActLine:
    """A line of what an act would do."""

    cls: Literal["del", "mod", "add"]
    op: str
    word: str
    text: str

    @property
    def color(self) -> str:
        """The class of its word."""
        return {"del": "c-fail", "mod": "c-sync", "add": "c-ok"}[self.cls] if self.op != "=" else ""


@dataclass(frozen=True)
class ShownGate:
    """A gate of a step, with its values as text."""

    result: GateResult
    measured: str
    allowed: str
    before: str

    counts: bool
    """Whether it is of calls, and not a webhook's answer."""

    @property
    def kind(self) -> str:
        """The kind of its status word."""
        return OUTCOMES[self.result.outcome]

    @property
    def said(self) -> str:
        """The gate with its values, in a sentence."""
        values = [f"{self.measured} measured"] if self.measured != UNKNOWN else []
        values += [f"{self.allowed} allowed"] if self.allowed != UNKNOWN else []
        values += [f"{self.before} before"] if self.before != UNKNOWN else []
        text = f"{self.result.gate}: {', '.join(values) or 'no value'}"
        return f"{text}. {self.result.why}" if self.result.why else text


@dataclass(frozen=True)
class StepBox:
    """A step as the page shows it."""

    number: int
    text: str
    state: Literal["passed", "now", "not_begun"]
    tag: tuple[str, str]
    counts: NodeCounts
    nodes: int
    """How many nodes it starts: those that it has started, and those that it will start, as of now."""
    starts: bool
    """Whether it starts nodes, and doesn't only wait."""
    gates: list[GateResult]
    later: list[str]
    """What it does after its nodes have started, in words."""

    @property
    def parts(self) -> list[tuple[str, int]]:
        """The parts of its bar."""
        shown = [(NODE_KINDS[name][0], getattr(self.counts, name)) for name in NODE_KINDS if name != "waiting"]
        return [*shown, ("wait", max(0, self.nodes - started(self.counts)))]

    @property
    def said(self) -> str:
        """Its nodes by outcome, in words."""
        return said(self.counts)

    @property
    def gates_said(self) -> str:
        """What its gates say, in words; '' if it has none."""
        found = ((sum(gate.outcome == outcome for gate in self.gates), outcome) for outcome in OUTCOMES)
        return ", ".join(f"{count} {outcome}" for count, outcome in found if count)


@dataclass(frozen=True)
class RehearsalFailure:
    """Nodes whose rehearsal failed, or couldn't be done, for the same reason."""

    outcome: Outcome
    code: str
    message: str
    """Of one of them."""
    nodes: list[NodeRehearsal]


@dataclass(frozen=True)
class RolloutView:
    """A rollout, and what its page shows of it."""

    rollout: ShownRollout
    group_release: int | None
    """The number of the group's release, which nodes run that the rollout hasn't started."""
    rehearsals: list[NodeRehearsal]
    """Those that didn't pass, the failed ones first."""
    more_rehearsals: bool
    """Whether there are more that didn't pass."""
    failing: tuple[Cause, ...]
    """Why its nodes fail, most nodes first."""
    digests: Sequence[DigestOfNodes]
    """The schemas that result, by the rehearsals that passed, most nodes first."""
    changes: Sequence[ChangeOnCopies]
    """What each schema change did, in all rehearsals."""

    @property
    def open(self) -> bool:
        """Whether it hasn't ended."""
        return self.rollout.state in OPEN

    @property
    def name(self) -> str:
        """The text that is typed to confirm an act on it."""
        return f"{self.rollout.group}/{self.rollout.number}"

    @cached_property
    def rules(self) -> Rules:
        """What its policy means."""
        return rules_of(self.rollout.policy, accepted=True)

    @property
    def step(self) -> PolicyStep | None:
        """Its step; None during the rehearsal."""
        return self.rules.steps[self.rollout.step - 1] if self.rollout.step else None

    @cached_property
    def boxes(self) -> list[StepBox]:
        """Its steps."""
        made, begun = list[StepBox](), 0
        for told in self.rollout.plan:
            if told.number == REHEARSAL:
                continue
            step = self.rules.steps[told.number - 1]
            mine = started(told.nodes)
            wanted = 0 if step.until is None else step.until.up(self.rollout.nodes) - begun
            nodes = mine if told.state == "passed" or not self.open else max(mine, wanted)
            begun += max(mine, nodes)
            made.append(
                StepBox(
                    told.number,
                    _share(step),
                    told.state,
                    self._tag(told),
                    told.nodes,
                    nodes,
                    step.until is not None,
                    told.gates,
                    _later(step, self.rollout.policy),
                )
            )
        return made

    def _tag(self, step: RolloutStep) -> tuple[str, str]:
        if step.state != "now":
            return ("ok", "passed") if step.state == "passed" else ("todo", "not begun")
        if not self.open:
            return "off", "stopped"
        if self.rollout.state == "paused":
            return ("wait", "paused") if self.rollout.waits_for == "operator" else ("held", "held")
        words = {"window": "window", "baking": "baking", "pause": "pausing"}
        if self.rollout.waits_for in words:
            return "wait", words[self.rollout.waits_for]
        return ("held", "held") if self.rollout.waits_for in ("approval", "unknown") else ("sync", "now")

    @cached_property
    def gates(self) -> list[ShownGate]:
        """The gates of its step, or of the last one that it reached."""
        told = [step for step in self.rollout.plan if step.number == self.rollout.step and step.number]
        gates = told[0].gates if told else []
        return [_row(result) for result in gates]

    @property
    def measured_at(self) -> datetime | None:
        """When its gates were measured last; None if they weren't."""
        return max((gate.result.measured_at for gate in self.gates if gate.result.measured_at), default=None)

    @cached_property
    def failures(self) -> list[RehearsalFailure]:
        """Why rehearsals didn't pass: by outcome, code and message, the failed ones first, most nodes first."""
        return grouped(self.rehearsals)

    @property
    def waits(self) -> tuple[str, str, str]:
        """Why it waits or ended and who decides: a kind of note, a title, and a text."""
        rollout = self.rollout
        reason = rollout.reason[:1].upper() + rollout.reason[1:]
        if rollout.state == "aborted":
            again = f"Release {rollout.newest} is a newer one, so this one can't begin again."
            if self._is_newest:
                again = "Retry begins again at the rehearsal."
            return (
                "off",
                f"Aborted: {rollout.reason}" if rollout.reason else "Aborted",
                f"Nodes that run release {rollout.number} keep it until the next release; all others run"
                f" {self._earlier}. {again}",
            )
        if rollout.state == "rolled_back":
            return (
                "off",
                f"Rolled back: {rollout.reason}" if rollout.reason else "Rolled back",
                "A later release brings back the functions from before. Nodes keep the schema and the rows that they"
                " have.",
            )
        if rollout.state == "superseded":
            return "off", reason or "Superseded", "A newer release has taken its place: it starts no further node."
        if rollout.state == "done":
            return "ok", "It went out to all nodes", "Nodes that were offline get it when they return."
        return self._open_waits(reason)

    def _open_waits(self, reason: str) -> tuple[str, str, str]:
        rollout, waits = self.rollout, self.rollout.waits_for
        if rollout.state == "paused" and waits == "operator":
            return "warn", reason or "Paused", "No further node starts until somebody with the role deploy resumes it."
        if rollout.state == "paused" and waits == "rehearsed":
            return "ok", reason, "It was only to be rehearsed: resume it to send it out, or abort it."
        if rollout.state == "paused":
            held = "its rehearsal" if rollout.step == REHEARSAL else f"step {rollout.step} of {rollout.steps}"
            said = f"Held at {held}: {rollout.reason}" if rollout.step else f"Held by {held}: {rollout.reason}"
            return (
                "warn",
                said,
                "No further node starts until somebody with the role deploy decides: resume (accept it and go on),"
                " promote (leave out the rest of the step), abort (stop here) or roll back (go back).",
            )
        if waits == "approval":
            role = self.step.role if self.step else "deploy"
            return "warn", f"Waits for approval by somebody with the role {role}", "Promote it, abort it or roll back."
        if waits == "unknown":
            return (
                "warn",
                f"Held at step {rollout.step} of {rollout.steps}: {rollout.reason}",
                "Unknown is neither passed nor failed. It goes on by itself when there is an answer; somebody with the"
                " role deploy may promote it without one, abort it or roll back.",
            )
        return "info", reason or "It goes on", ""

    @property
    def _is_newest(self) -> bool:
        return self.rollout.newest == self.rollout.number

    @property
    def _earlier(self) -> str:
        return "no release" if self.group_release is None else f"release {self.group_release}"

    @property
    def acts(self) -> list[RolloutAct]:
        """What can be done with it as it is."""
        rollout, waits = self.rollout, self.rollout.waits_for
        if rollout.state == "aborted":
            return [RolloutAct("retry", "Retry …", "deploy", "middle"), *self._back()] if self._is_newest else []
        if not self.open:
            return []
        found = []
        if rollout.state == "running":
            found.append(RolloutAct("pause", "Pause", "deploy", "light"))
        elif waits in ("operator", "rehearsed"):
            found.append(RolloutAct("resume", "Resume", "deploy", "light", main=True))
        else:
            found.append(RolloutAct("resume", "Resume …", "deploy", "middle", main=True))
        if waits == "approval" and rollout.state == "running" and self.step:
            found.append(RolloutAct("promote", "Approve …", self.step.role, "middle", main=True))
        else:
            found.append(RolloutAct("promote", "Promote …", self._role_for([self.step]), "middle"))
        found.append(RolloutAct("abort", "Abort …", "deploy", "middle"))
        return [*found, *self._back()]

    @property
    def role_for_all(self) -> Role:
        """The role that it takes to leave out all steps that are left, with the approvals that they wait for."""
        return self._role_for(self.rules.steps[max(0, self.rollout.step - 1) :])

    @staticmethod
    def _role_for(steps: Iterable[PolicyStep | None]) -> Role:
        roles: list[Role] = [step.role for step in steps if step is not None and step.approval]
        return max([*roles, "deploy"], key=ROLES.__getitem__)

    def _back(self) -> list[RolloutAct]:
        if self.group_release is None or not self.rollout.started:
            return []
        return [RolloutAct("rollback", "Roll back …", "deploy", "heavy")]

    def act(self, name: str) -> RolloutAct | None:
        """Return an act by its name; None if it can't be done with the rollout as it is."""
        return next((act for act in self.acts if act.name == name), None)

    @property
    def shape(self) -> str:
        """What only a reload of its page changes: which acts are offered, and which parts there are."""
        acts = [(act.name, act.verb) for act in self.acts]
        what = [self.rollout.state, acts, len(self.rollout.plan), bool(self.gates), self.rollout.rehearsal is None]
        return sha256(msgspec.json.encode(what)).hexdigest()[:12]

    def lines(self, act: RolloutAct) -> list[ActLine]:
        """Return what an act would do, what it takes away first."""
        rollout, counts = self.rollout, self.rollout.counts
        number, earlier = rollout.number, self._earlier
        under_way = counts.syncing + counts.failed
        stay = ActLine("mod", "=", "Stays", f"release {number} on {plural(counts.at_target, 'node')}")
        match act.name:
            case "abort":
                found = []
                if under_way:
                    found.append(
                        ActLine(
                            "del",
                            "-",
                            "Takes back",
                            f"{plural(under_way, 'node')} that don't run it yet: {earlier} again",
                        )
                    )
                if counts.offline:
                    text = f"{plural(counts.offline, 'node')} of the same that went offline: {earlier} when they return"
                    found.append(ActLine("del", "-", "Takes back", text))
                found.append(ActLine("mod", "~", "Stops", "the rollout: no further node starts"))
                found += [stay] if counts.at_target else []
                if counts.waiting:
                    text = f"{earlier} on {plural(counts.waiting, 'node')} that it hasn't started, and on new ones"
                    found.append(ActLine("mod", "=", "Stays", text))
                return found
            case "rollback":
                text = f"release {number} from {plural(self.affected(act), 'node')} that it has started"
                return [ActLine("del", "-", "Takes back", text)]
            case "resume":
                found = []
                if rollout.step == REHEARSAL:
                    told = rollout.rehearsal
                    if told and told.failed:
                        text = f"the rehearsal that failed on {plural(told.failed, 'node')}"
                        found.append(ActLine("del", "!", "Accepts", text))
                    if told and told.unknown + told.pending:
                        text = f"{plural(told.unknown + told.pending, 'node')} of which the rehearsal doesn't know"
                        found.append(ActLine("del", "!", "Accepts", text))
                    return [*found, ActLine("add", "+", "Begins", f"step 1 of {rollout.steps}")]
                if counts.failed:
                    text = f"{plural(counts.failed, 'node')} that failed so far: they no longer count in this step"
                    found.append(ActLine("del", "!", "Accepts", text))
                found += [ActLine("del", "!", "Accepts", gate.said) for gate in self.gates if gate.kind == "fail"]
                found.append(ActLine("mod", "~", "Measures", "the step's gates again, from now on"))
                text = f"at step {rollout.step} of {rollout.steps}: it starts further nodes"
                return [*found, ActLine("add", "+", "Goes on", text)]
            case "promote":
                rows = self.gates if rollout.waits_for != "approval" else []
                found = [ActLine("del", "!", "Leaves out", gate.said) for gate in rows if gate.kind != "ok"]
                if rollout.step == REHEARSAL:
                    found.append(ActLine("del", "!", "Leaves out", "what is left of the rehearsal, and what it found"))
                elif rollout.waits_for != "approval":
                    found.append(ActLine("mod", "~", "Leaves out", f"the rest of step {rollout.step}"))
                if rollout.step == rollout.steps:
                    text = f"the rollout: release {number} becomes the group's, for all nodes"
                    return [*found, ActLine("add", "+", "Ends", text)]
                following = self.rules.steps[rollout.step]
                text = f"step {rollout.step + 1} of {rollout.steps}: {following.text}"
                return [*found, ActLine("add", "+", "Begins", text)]
            case "retry":
                first = "its rehearsal" if rollout.policy.rehearse or rollout.rehearsal is not None else "step 1"
                text = f"at {first}, as attempt {rollout.attempt + 1}"
                return [ActLine("mod", "~", "Begins again", text), *([stay] if counts.at_target else [])]
            case "pause":
                return [ActLine("mod", "~", "Stops", "to start nodes until somebody resumes it"), stay]

    def affected(self, act: RolloutAct) -> int:
        """Return how many nodes an act changes, at most."""
        counts = self.rollout.counts
        match act.name:
            case "abort":
                return counts.syncing + counts.failed + counts.offline + counts.held
            case "rollback":
                return started(counts) - counts.superseded - counts.left
            case "promote":
                return counts.waiting
            case _:
                return 0

    def is_heavy(self, act: RolloutAct) -> bool:
        """Whether an act asks for the release's name to be typed."""
        return act.weight == "heavy" or (act.weight == "middle" and self.affected(act) >= HEAVY_FROM)


def verdict(rollout: Rollout) -> tuple[str, str]:
    """Return the state of a rollout: the kind of its status word, and the words."""
    at = f"step {rollout.step} of {rollout.steps}" if rollout.step else "its rehearsal"
    ended = {"aborted": "aborted", "rolled_back": "rolled back", "superseded": "superseded"}
    if rollout.state in ended:
        return "off", f"{ended[rollout.state]} at {at}"
    if rollout.state == "done":
        return "ok", "done"
    waits = rollout.waits_for
    if rollout.state == "paused":
        if waits == "rehearsed":
            return "ok", "rehearsed"
        if waits == "operator":
            return "wait", f"paused at {at}"
        return "held", f"held at {at}" if rollout.step else "held by its rehearsal"
    if rollout.step == REHEARSAL:
        return "sync", "rehearsing"
    words = {"window": "waits for its window at ", "baking": "baking at ", "pause": "pausing at "}
    if waits in words:
        return "wait", words[waits] + at
    if waits == "approval":
        return "held", f"held for approval at {at}"
    return ("held", f"held at {at}") if waits == "unknown" else ("sync", at)


def is_held(rollout: Rollout) -> bool:
    """Return whether somebody must decide, since something failed or isn't known."""
    return rollout.state in OPEN and rollout.waits_for in ("failed", "unknown")


def started(counts: NodeCounts) -> int:
    """Return how many nodes of these counts were started, with those that have left since."""
    on_its_way = counts.syncing + counts.failed + counts.offline + counts.held
    return counts.at_target + on_its_way + counts.superseded + counts.left


def said(counts: NodeCounts) -> str:
    """Return nodes by outcome, in words, the worst first."""
    found = ((getattr(counts, name), words) for name, (_, words) in NODE_KINDS.items())
    return ", ".join(f"{num(count)} {words}" for count, words in found if count) or "no node"


def grouped(rehearsals: Iterable[NodeRehearsal]) -> list[RehearsalFailure]:
    """Return rehearsals that didn't pass by outcome, code and message, the failed ones first, most nodes first."""
    found: dict[tuple[Outcome, str, str], RehearsalFailure] = {}
    for one in rehearsals:
        if one.outcome != "passed":
            new = RehearsalFailure(one.outcome, one.code, one.message, [])
            found.setdefault((one.outcome, one.code, one.message), new).nodes.append(one)
    order = list(OUTCOMES)
    return sorted(found.values(), key=lambda group: (order.index(group.outcome), -len(group.nodes), group.code))


def causes(group: str, failed: Iterable[RolloutNode]) -> tuple[Cause, ...]:
    """Return why nodes of a rollout fail, most nodes first."""
    by_code: dict[str, list[RolloutNode]] = {}
    for node in failed:
        by_code.setdefault(node.error_code, []).append(node)
    found = [
        Cause(code, nodes[0].error_message, None, {group: len(nodes)}, tuple(node.name for node in nodes[:EXAMPLES]))
        for code, nodes in by_code.items()
    ]
    return tuple(sorted(found, key=lambda cause: (-cause.nodes, cause.code)))


def _share(step: PolicyStep) -> str:
    """Return how far a step goes: `1 node`, `25%`; '' if it only waits."""
    if step.until is None:
        return ""
    return step.text.partition(",")[0] if step.until.count is None else plural(step.until.count, "node")


def _later(step: PolicyStep, policy: Policy) -> list[str]:
    found = []
    if step.until is not None and policy.bake != "0s":
        found.append(f"bakes {policy.bake}")
    if step.approval:
        found.append(f"waits for approval by the role {step.role}")
    elif step.pause is not None:
        found.append(f"pauses {formats.relative(step.pause.total_seconds())}")
    return found


def _row(result: GateResult) -> ShownGate:
    """Return a gate with its values as text; the words of a gate begin with its metric."""
    is_call = result.gate.startswith(("error_ratio", "p99"))
    written = formats.ratio if result.gate.startswith("error_ratio") else formats.duration
    return ShownGate(result, written(result.measured), written(result.allowed), written(result.before), is_call)
