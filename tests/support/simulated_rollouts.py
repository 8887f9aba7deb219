"""Random groups of nodes, and rollouts over them that the rules of control carry out, without anything that runs.

`run` makes the world of a seed: a metadata database with one rollout, two replicas that read it, decide and write, but
for those that are killed on the way, nodes that flip, fail, flap, leave and join, operators, gates, and a clock that
jumps both ways. What must never happen is looked for at each write, by calculations that have nothing of the rules.
"""

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from random import Random
from types import ModuleType
from typing import Any

import msgspec

from control.rollouts import rules as program
from control.rollouts.policy import Policy, Rules, rules_of
from control.rollouts.rules import GroupNode, GroupNodes, Outcome, RolloutPosition

LONGEST_CALM = 400
"""Ticks within which a rollout has ended once nothing goes wrong any more."""
ENDED = ("done", "aborted", "superseded", "rolled_back")
MINUTE = timedelta(minutes=1)
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
OUTCOMES: tuple[Outcome, ...] = ("passed", "failed", "unknown")


class Broken(AssertionError):
    """Something happened that must not; the text says what, and how to repeat it."""


@dataclass(slots=True)
class SimulatedNode:
    """A node, and what the database knows of it."""

    id: str
    label: str
    rehearses: bool
    speed: float
    """How likely it is in a tick that it ends a sync."""
    bad: bool
    """Whether the release fails on it."""
    online: bool = True
    away_for: int = 0
    """Ticks for which it stays offline."""
    runs: str = "old"
    """The release that it runs: always a whole one."""
    own: bool = False
    """Whether the rollout's release is its own target."""
    told: bool = False
    """Whether the database knows that it runs its own target."""
    reached: datetime | None = None
    failed: bool = False
    rehearsed: Outcome | None = None


class World:
    """A group with a rollout."""

    def __init__(self, seed: int, rules: ModuleType) -> None:
        self.seed = seed
        self.rules = rules
        self.random = Random(seed)
        self.trace: deque[str] = deque(maxlen=25)
        self.now = datetime(2026, 6, 1, tzinfo=UTC) + self.random.randrange(7 * 24 * 60) * MINUTE
        self.calm = False
        draw = self.random
        self.window: tuple[frozenset[int], int, int] | None = None
        self.fields = self._policy()
        self.policy = _meant(msgspec.json.encode(self.fields))
        self.trouble = draw.choice((0.0, 0.0, 0.03, 0.2, 0.2))
        """How likely it is that the release fails on a node."""
        self.gates: list[Outcome] = [draw.choice(OUTCOMES) for _ in self.policy.gates]
        self.group: dict[str, SimulatedNode] = {}
        self.gone: dict[str, SimulatedNode] = {}
        self.made = 0
        for _ in range(draw.choice((0, 1, 2, 5, 9, 17, 40))):
            self._joins()
        self.group_runs = "old"
        """The release of the group."""
        self.steps: dict[str, int] = {}
        """By node that the rollout has ever started: the step that did it."""
        self.attempt = 1
        self.position: RolloutPosition = rules.first(
            self.policy, rehearse=self.policy.rehearse, rehearsal_only=draw.random() < 0.1, now=self.now
        )
        self.stopped = False
        """Whether a failure was seen in this step, and no operator has decided about it since."""
        self.accepted = 0
        """How many failed nodes there were when the step began, or when somebody went on with them; fewer, where they
        have become fewer since."""

    def _policy(self) -> dict[str, Any]:
        draw = self.random
        shares = sorted(draw.sample(("2%", "5%", "12.5%", "33.3%", "50%", "90%"), draw.randrange(4)), key=_thousandths)
        steps: list[Any] = [*draw.choice(((), ("1",), ("3",), ("1", "7"))), *shares]
        steps = [
            {"until": step, "pause": draw.choice(("30m", "2h"))} if draw.random() < 0.2 else step for step in steps
        ]
        steps.append("100%" if draw.random() < 0.9 else {"until": "100%", "pause": draw.choice(("1h", "approval"))})
        for pause in ("1h", "approval"):
            if draw.random() < 0.2:
                steps.insert(draw.randrange(len(steps)), {"pause": pause})
        fields: dict[str, Any] = {
            "steps": steps,
            "bake": draw.choice(("0s", "5m", "30m")),
            "max_failed": draw.choice(("0%", "0%", "10%", "50%", "1")),
            "on_failure": draw.choice(("pause", "pause", "rollback")),
            "on_unknown": draw.choice(("pause", "pause", "rollback")),
            "rehearse": draw.random() < 0.5,
            "max_unknown": draw.choice(("0%", "25%", "100%")),
            "gate": [{"metric": "p99", "at_most": f"{most}s"} for most in range(1, 1 + draw.choice((0, 0, 1, 2)))],
        }
        if draw.random() < 0.4:
            first, length = draw.randrange(7), draw.randrange(1, 7)
            begins, ends = draw.sample(range(0, 24 * 60, 30), 2)
            self.window = frozenset((first + day) % 7 for day in range(length)), begins, ends
            days = f"{DAYS[first]}-{DAYS[(first + length - 1) % 7]}"
            fields["window"] = f"{days} {begins // 60:02}:{begins % 60:02}-{ends // 60:02}:{ends % 60:02} Etc/UTC"
        return fields

    # What happens

    def run(self) -> None:
        """Let things happen, then let the world become calm."""
        for _ in range(self.random.choice((10, 30, 60))):
            self.tick()
        self.settle()

    def tick(self) -> None:
        """Let some time pass, and what happens in it."""
        draw = self.random
        self.now += draw.choice((MINUTE, MINUTE, 5 * MINUTE, 20 * MINUTE, 300 * MINUTE))
        if not self.calm and draw.random() < 0.05:
            self.now += draw.choice((-400, -60, -7, 45, 3000)) * MINUTE
            self.trace.append(f"the clock jumps to {self.now:%a %H:%M}")
        for node in list(self.group.values()):
            self._lives(node)
        if not self.calm:
            self._group_changes()
            for at in range(len(self.gates)):
                if draw.random() < 0.3:
                    self.gates[at] = draw.choices(OUTCOMES, (6, 1, 3))[0]
            if draw.random() < (0.3 if self.position.state == "paused" else 0.1):
                self._operator()
        self._replicas()

    def _lives(self, node: SimulatedNode) -> None:
        draw = self.random
        if node.away_for:
            node.away_for -= 1
            node.online = not node.away_for
        elif not self.calm and draw.random() < 0.06:
            node.online, node.away_for = False, draw.choice((1, 1, 2, 8, 40))
            # Its sync expires, if one was open.
            node.failed = node.failed or (node.own and not node.told and draw.random() < 0.3)
        if not node.online:
            return
        asked = self.position.state == "running" and self.position.step == 0 and node.rehearses
        if asked and node.rehearsed is None and draw.random() < node.speed:
            node.rehearsed = "failed" if node.bad else draw.choice(("passed", "passed", "passed", "unknown"))
        target = "new" if node.own else self.group_runs
        if node.runs != target:
            if draw.random() >= node.speed:
                return
            if target == "new" and node.bad:
                node.failed = node.own
                return
            node.runs = target
        # The report is another message, which may come later, or after the node's target is another one.
        if node.own and not node.told and draw.random() < 0.7:
            node.told, node.reached, node.failed = True, self.now, False

    def _group_changes(self) -> None:
        draw = self.random
        if draw.random() < 0.1:
            self._joins()
        if self.gone and draw.random() < 0.05:
            node = self.gone.pop(draw.choice(sorted(self.gone)))
            self.group[node.id] = node
        if self.group and draw.random() < 0.08:
            node = self.group.pop(draw.choice(sorted(self.group)))
            self.gone[node.id] = node
            self._disown(node)
        if self.group and draw.random() < 2 * self.trouble:
            draw.choice(list(self.group.values())).bad = True
        failing = [node for node in self.group.values() if node.failed]
        if failing and draw.random() < 0.2:
            draw.choice(failing).bad = False

    def _joins(self) -> None:
        draw = self.random
        self.made += 1
        id = f"node {self.made}"
        self.group[id] = SimulatedNode(
            id,
            draw.choice(("north", "north", "south", "")),
            draw.random() < 0.9,
            draw.choice((1.0, 0.8, 0.8, 0.2)),
            draw.random() < self.trouble,
            draw.random() < 0.85,
            away_for=1,
        )

    def _disown(self, node: SimulatedNode) -> None:
        node.own = node.told = node.failed = False
        node.reached = None

    def _replicas(self) -> None:
        """One or both replicas look; what one has seen may be an old story when it writes."""
        draw = self.random
        if self.position.state != "running" and draw.random() < 0.8:
            return
        seen = [
            (self.position, self.attempt, tuple(self.gates)) for _ in range(1 if self.calm else draw.choice((1, 1, 2)))
        ]
        for position, attempt, gates in seen:
            if not self.calm and draw.random() < 0.1:
                self._operator()
            if (position, attempt) == (self.position, self.attempt):
                self._decides(gates, killed=not self.calm and draw.random() < 0.2)

    def _decides(self, gates: tuple[Outcome, ...], *, killed: bool) -> None:
        """A transaction of a replica; one that is killed before its end has written nothing."""
        before, group = self.position, self._seen()
        decision = self.rules.decide(before, self.policy, group, gates, self.now)
        if self.rules.decide(before, self.policy, group, gates, self.now) != decision:
            self.broken("the same was decided otherwise")
        known = self.stopped, self.accepted
        self._check(before, decision, gates)
        if killed:
            # What it has seen is lost with it.
            self.stopped, self.accepted = known
            return
        returned = self.steps.keys() & set(decision.start)
        for id in decision.start:
            self.steps[id] = before.step
            node = self.group[id]
            self._disown(node)
            node.own = True
        self._write(decision.position)
        if decision.start:
            self.trace.append(f"{self.now:%a %H:%M} step {before.step} starts {len(decision.start)} nodes")
            again = self.rules.decide(decision.position, self.policy, self._seen(), gates, self.now)
            if again.start and not returned:
                self.broken(f"the step was full, and {len(again.start)} nodes more start")

    def _write(self, after: RolloutPosition) -> None:
        before, self.position = self.position, after
        if (before.state, before.step) != (after.state, after.step):
            self.trace.append(f"{self.now:%a %H:%M} step {after.step}, {after.state}: {after.reason}")
        if after.state == "done":
            self.group_runs = "new"
        if after.state == "rolled_back":
            # A newer release, with what the group's has: all started nodes go back to it.
            for node in self.group.values():
                self._disown(node)
        elif after.state in ENDED:
            for node in self.group.values():
                if node.own and (after.state == "done" or not node.told):
                    self._disown(node)
                    if after.state != "done":
                        del self.steps[node.id]
        if after.step != before.step or after.state in ENDED or before.state in ENDED:
            self._decided_anew()

    def _decided_anew(self) -> None:
        """Another step has begun, or an operator has gone on with what there is."""
        self.stopped, self.accepted = False, self._failed()

    def _failed(self) -> int:
        return sum(node.own and node.failed for node in self.group.values())

    def _operator(self) -> None:
        draw, before, failed = self.random, self.position, self.rules.failed_nodes(self._seen().nodes)
        act = draw.choice(("pause", "resume", "resume", "promote", "promote", "all", "abort", "retry", "newer", "back"))
        if act == "pause" and before.state == "running":
            after = self.rules.paused(before, "an operator", self.now)
        elif act == "resume" and before.state == "paused":
            after = self.rules.resumed(before, self.policy, failed, self.now)
            if before.waits_for != "operator":
                self._decided_anew()
        elif act in ("promote", "all") and before.state in self.rules.OPEN:
            after = self.rules.promoted(before, self.policy, failed, self.now, everything=act == "all")
        elif act == "abort" and before.state in self.rules.OPEN:
            after = replace(before, state="aborted", waits_for="", reason="an operator")
        elif act == "retry" and before.state == "aborted":
            after = self.rules.first(self.policy, rehearse=self.policy.rehearse, rehearsal_only=False, now=self.now)
            self.attempt += 1
            self.steps = {id: step for id, step in self.steps.items() if id in self.group and self.group[id].own}
            for node in (*self.group.values(), *self.gone.values()):
                node.rehearsed = None
        elif act in ("newer", "back") and before.state in self.rules.OPEN and draw.random() < 0.3:
            after = replace(before, state="superseded" if act == "newer" else "rolled_back", waits_for="")
        else:
            return
        self.trace.append(f"{self.now:%a %H:%M} an operator's {act}")
        self._write(after)

    def _seen(self) -> GroupNodes:
        """The group as the database has it."""
        nodes = [
            GroupNode(
                node.id,
                node.label,
                node.online,
                node.rehearses,
                node.rehearsed,
                self.steps.get(node.id) if node.own else None,
                node.reached,
                node.failed,
            )
            for node in self.group.values()
        ]
        return GroupNodes(nodes, len(self.steps), f"rollout {self.seed}")

    # What must be so

    def broken(self, why: str) -> None:
        """Say what must not be, with what happened last and how to repeat it."""
        last = "\n  ".join(self.trace)
        raise Broken(
            f"seed {self.seed}: {why}\nthe policy: {self.fields}\nthe last that happened:\n  {last}\nto repeat it:"
            f" SKERRY_TEST_SEED={self.seed} just test tests/simulation/test_rollout_fleets.py"
        )

    def _check(self, before: RolloutPosition, decision: program.RolloutDecision, gates: tuple[Outcome, ...]) -> None:
        after, nodes = decision.position, list(self.group.values())
        if before.state != "running" and (after != before or decision.start):
            self.broken(f"something was decided about a rollout that is {before.state}")
        if before.state != "running":
            return
        text = self._until(before.step)
        mine = [node for node in nodes if node.own and self.steps[node.id] == before.step]
        self.accepted = min(self.accepted, self._failed())
        more = self._failed() - self.accepted
        if before.step and ("failed" in gates or more > _down(self.fields["max_failed"], len(mine))):
            self.stopped = True
        if self.stopped and (after.state == "running" or (after.state == "rolled_back") != decision.roll_back):
            self.broken(f"it is {after.state} after a failure")
        if self.stopped and (after.state == "rolled_back") != (self.fields["on_failure"] == "rollback"):
            self.broken(f"it is {after.state} after a failure, and on_failure is {self.fields['on_failure']}")
        if after.state == "paused" and before.step and not self.stopped:
            self.broken("it was paused, and nothing failed")
        quiet = "unknown" in gates and self.fields["on_unknown"] == "rollback"
        if after.state == "rolled_back" and not self.stopped and not quiet:
            self.broken("it was rolled back for nothing")
        if decision.start:
            self._check_starts(before, after, decision, text)
        if after.step != before.step or after.state == "done":
            last = before.step == len(self.fields["steps"])
            if (after.step, after.state) != ((before.step, "done") if last else (before.step + 1, "running")):
                self.broken(f"step {before.step} is followed by {after.step}, {after.state}")
            if before.step == 0:
                self._check_rehearsal_passed(before)
            else:
                self._check_step_over(before, gates, text, mine)

    def _check_starts(
        self, before: RolloutPosition, after: RolloutPosition, decision: program.RolloutDecision, text: str | None
    ) -> None:
        if self.stopped or after.state != "running" or before.step == 0 or after.step != before.step:
            self.broken(f"nodes start in step {before.step} while it is {after.state}")
        if len(set(decision.start)) != len(decision.start) or not all(
            id in self.group and self.group[id].online and not self.group[id].own for id in decision.start
        ):
            self.broken("a node starts that isn't there, isn't online, or was started")
        if not self._window_open():
            self.broken("nodes start outside of the window")
        if text is None:
            self.broken("a pause starts nodes")
        elif text != "100%":
            ever = len(self.steps.keys() | set(decision.start))
            if ever > _up(text, len(self.group)):
                self.broken(f"{ever} of {len(self.group)} nodes were started, and the step has {text}")
        # Nodes with the same label start by their hash, whatever they are called and whenever they joined.
        for label in {node.label for node in self.group.values()}:
            free = [n.id for n in self.group.values() if n.label == label and n.online and not n.own]
            free.sort(key=lambda id: hashlib.sha256(f"rollout {self.seed} {id}".encode()).digest())
            begun = [id for id in decision.start if self.group[id].label == label]
            if begun != free[: len(begun)]:
                self.broken(f"{begun} start before {free[0]}")

    def _check_rehearsal_passed(self, before: RolloutPosition) -> None:
        outcomes = [node.rehearsed for node in self.group.values()]
        unknown = len(outcomes) - outcomes.count("passed")
        if "failed" in outcomes or before.rehearsal_only:
            self.broken("the first step begins after a failed rehearsal, or one alone")
        if unknown > _down(self.fields["max_unknown"], len(outcomes)):
            self.broken(f"the first step begins, and the rehearsal is unknown on {unknown} of {len(outcomes)} nodes")
        could = [node for node in self.group.values() if node.online and node.rehearses]
        if could and "passed" not in outcomes:
            self.broken("the first step begins, and the rehearsal passed on no node")
        if any(n.rehearsed is None for n in could) and self.now < before.measured_from + 10 * MINUTE:
            self.broken("the first step begins while nodes rehearse")

    def _check_step_over(
        self, before: RolloutPosition, gates: tuple[Outcome, ...], text: str | None, mine: list[SimulatedNode]
    ) -> None:
        step = self.fields["steps"][before.step - 1]
        pause = step.get("pause") if isinstance(step, dict) else None
        if pause == "approval":
            self.broken("a step ends that nobody has approved")
        begun = before.measured_from
        if text is not None:
            if "unknown" in gates:
                self.broken("a step ends with an unknown gate")
            nodes = list(self.group.values())
            missing = len(nodes) if text == "100%" else _up(text, len(nodes)) - len(self.steps)
            if missing > 0 and any(node.online and not node.own for node in nodes):
                self.broken(f"a step ends, and {missing} nodes of it haven't been started")
            if any(node.own and node.online and not node.told and not node.failed for node in nodes):
                self.broken("a step ends, and a node is on its way")
            if nodes and not any(node.told for node in (mine if mine and text != "100%" else nodes)):
                self.broken("a step ends, and no node is known to run the release")
            begun = max([begun, *(node.reached for node in mine if node.reached)]) + _minutes(self.fields["bake"])
        if self.now < begun + _minutes(pause or "0m"):
            self.broken("a step ends before its time is over")

    def _until(self, step: int) -> str | None:
        if step == 0:
            return None
        written = self.fields["steps"][step - 1]
        text: str | None = written.get("until") if isinstance(written, dict) else written
        return text

    def _window_open(self) -> bool:
        if self.window is None:
            return True
        days, begins, ends = self.window
        for ago in (0, 1):
            day = (self.now - timedelta(days=ago)).date()
            if day.weekday() in days:
                opens = datetime(day.year, day.month, day.day, tzinfo=UTC) + begins * MINUTE
                if opens <= self.now < opens + (ends - begins) % 1440 * MINUTE:
                    return True
        return False

    # The end

    def settle(self) -> None:
        """Let nothing go wrong any more, and see where everything comes to."""
        self.calm = True
        self.trace.append("nothing goes wrong any more")
        for node in self.group.values():
            node.bad, node.speed = False, 1.0
            # Some are away until it has ended: they block nothing.
            node.away_for, node.online = 0, self.random.random() < 0.8
        self.gates = ["passed" for _ in self.gates]
        ended, before = self.position.state in ENDED, self.position
        targets = {node.id: "new" if node.own else self.group_runs for node in self.group.values()}
        for _ in range(LONGEST_CALM):
            if self.position.state in ENDED:
                break
            self._looked_after()
            self.tick()
        else:
            self.broken(f"it doesn't end: step {self.position.step} waits for {self.position.waits_for}")
        for node in self.group.values():
            node.online = True
        for _ in range(10):
            self.tick()
        if ended and self.position != before:
            self.broken(f"it was {before.state}, and is {self.position.state}")
        self._settled(targets if ended else None)

    def _looked_after(self) -> None:
        """Do what nothing but an operator does."""
        waits, step = self.position.waits_for, self.position.step
        if self.position.state == "paused" and step == 0 and waits == "failed":
            self._write(replace(self.position, state="aborted", waits_for="", reason="an operator"))
        elif self.position.state == "paused":
            failed = self.rules.failed_nodes(self._seen().nodes)
            self._write(self.rules.resumed(self.position, self.policy, failed, self.now))
            if waits != "operator":
                self._decided_anew()
        elif waits == "approval" or (waits == "unknown" and self._silent()):
            failed = self.rules.failed_nodes(self._seen().nodes)
            self._write(self.rules.promoted(self.position, self.policy, failed, self.now, everything=False))
        while self.position.waits_for == "window" and not self._window_open():
            self.now += 30 * MINUTE

    def _silent(self) -> bool:
        """Whether each node that could show that the release runs is away or has left."""
        own = [node for node in self.group.values() if node.own]
        mine = [node for node in own if self.steps[node.id] == self.position.step]
        whole = self._until(self.position.step) == "100%"
        return not any(node.told for node in (own if whole or not mine else mine))

    def _settled(self, targets: dict[str, str] | None) -> None:
        state = self.position.state
        for node in self.group.values():
            expected = {"done": "new", "rolled_back": "old"}.get(state) or ("new" if node.own else "old")
            if node.runs != expected:
                self.broken(f"it is {state}, and {node.id} runs {node.runs}")
            if state in ("aborted", "superseded") and node.own and not node.told:
                self.broken(f"it is {state}, and {node.id} was left on its way")
            if targets is not None and node.runs != targets[node.id]:
                self.broken(f"it was {state}, and {node.id} has changed to {node.runs}")


def run(seed: int, rules: ModuleType = program) -> World:
    """Run the world of a seed by these rules; raises `Broken`."""
    world = World(seed, rules)
    world.run()
    return world


@lru_cache(maxsize=4096)
def _meant(policy: bytes) -> Rules:
    return rules_of(msgspec.json.decode(policy, type=Policy))


def _thousandths(share: str) -> int:
    """A share in thousandths of a percent."""
    whole, _, part = share.removesuffix("%").partition(".")
    return int(whole) * 1000 + int(f"{part:0<3}")


def _up(amount: str, nodes: int) -> int:
    if not amount.endswith("%"):
        return min(nodes, int(amount))
    return -(-_thousandths(amount) * nodes // 100_000)


def _down(amount: str, nodes: int) -> int:
    if not amount.endswith("%"):
        return min(nodes, int(amount))
    return _thousandths(amount) * nodes // 100_000


def _minutes(text: str) -> timedelta:
    units: dict[str, Callable[[int], timedelta]] = {
        "s": lambda n: timedelta(seconds=n),
        "m": lambda n: timedelta(minutes=n),
        "h": lambda n: timedelta(hours=n),
    }
    return units[text[-1]](int(text[:-1]))
