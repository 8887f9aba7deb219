"""Rollouts over thousands of random groups keep their promises, and rules that are broken on purpose don't.

`just faults` tries more of them: eight for each of SKERRY_TEST_SEEDS. A failure says how to repeat it.
"""

import inspect
import os
import sys
from types import ModuleType

import pytest

from control.rollouts import rules
from tests.support import simulated_rollouts
from tests.support.simulated_rollouts import Broken

FLEETS = max(1500, 8 * int(os.environ.get("SKERRY_TEST_SEEDS", "0")))
PART = 500
FOUND_WITHIN = 1500
"""Seeds within which broken rules must be found; most are in the first twenty."""
LATE = {
    "earlier steps' nodes may fail": 208,
    "an accepted node that recovered excuses another": 1128,
    "ending one's own pause accepts failures": 1918,
}
"""What the first seeds don't show, and one that does: it is tried first. Where it no longer does, all others are."""


def test_the_fleet_that_a_failure_named_is_run_again() -> None:
    assert simulated_rollouts.run(int(os.environ.get("SKERRY_TEST_SEED", "0"))).trace


@pytest.mark.parametrize("first", range(0, FLEETS, PART))
def test_rollouts_keep_their_promises(first: int) -> None:
    for seed in range(first, min(first + PART, FLEETS)):
        simulated_rollouts.run(seed)


def test_all_ends_come_about_and_a_seed_is_the_same_run_each_time() -> None:
    worlds = [simulated_rollouts.run(seed) for seed in range(100)]
    assert {world.position.state for world in worlds} == {"done", "aborted", "rolled_back", "superseded"}
    again = [simulated_rollouts.run(seed) for seed in range(100)]
    assert [(world.position, list(world.trace)) for world in worlds] == [(w.position, list(w.trace)) for w in again]


BROKEN: dict[str, tuple[str, str, str]] = {
    # What is wrong: the rules' text, what it is made, and what must be said.
    "one node too many": ("[:wanted]", "[: wanted + 1]", "and the step has"),
    "a share rounded down": ("step.until.up(", "step.until.down(", "haven't been started"),
    "only nodes that are there count": ("- group.started", "- len(started)", "and the step has"),
    "nodes of this step alone count": ("- group.started", "- len(mine)", "and the step has"),
    "offline nodes are started": (
        "in order if node.step is None and node.online",
        "in order if node.step is None",
        "isn't online",
    ),
    "nodes start by their names": (
        "order = in_order(group.nodes, group.rollout_id)",
        "order = sorted(group.nodes, key=lambda node: node.id)",
        "start before",
    ),
    "the window is ignored": ("if rules.window is not None and", "if False and", "outside of the window"),
    "failed nodes are forgotten": ("if failed - position.forgiven >", "if 0 >", "after a failure"),
    "one failed node more than may fail": (
        "if failed - position.forgiven > rules",
        "if failed - position.forgiven > 1 + rules",
        "after a failure",
    ),
    "what may fail is rounded up": ("rules.max_failed.down(len(mine))", "rules.max_failed.up(len(mine))", "after a"),
    "earlier steps' nodes may fail": (
        "failed = failed_nodes(started)",
        "failed = failed_nodes(mine)",
        "after a failure",
    ),
    "an accepted node that recovered excuses another": (
        "position = replace(position, forgiven=min(position.forgiven, failed))",
        "",
        "after a failure",
    ),
    "a failed gate is ignored": ('if "failed" in gates:', "if False:", "after a failure"),
    "a failed gate is looked at last": ('if "failed" in gates:', 'if "failed" in gates and not started:', "a failure"),
    "an unknown gate is passed": ('if "unknown" in gates and', "if False and", "with an unknown gate"),
    "the bake is left out": (" + rules.bake", "", "before its time is over"),
    "the bake begins with the first flip": ("begun = max([begun, *(", "begun = min([begun, *(", "before its time"),
    "the pause is left out": ("if step.pause is not None and", "if False and", "before its time is over"),
    "an approval isn't waited for": ("if step.approval:", "if False:", "nobody has approved"),
    "nodes on their way aren't waited for": (
        'if left:\n            return _waiting(position, "nodes"',
        'if False:\n            return _waiting(position, "nodes"',
        "on its way",
    ),
    "offline nodes are waited for": (
        "if node.online and node.reached is None and",
        "if node.reached is None and",
        "doesn't end",
    ),
    "silent nodes end a step": ("if group.nodes and not any(", "if False and not any(", "known to run the release"),
    "a failed rehearsal is passed": ("if failed:\n        said", "if False:\n        said", "after a failed rehearsal"),
    "all may be unknown": ("if unknown > rules.max_unknown", "if unknown > 10**6 + rules.max_unknown", "is unknown on"),
    "a rehearsal passes nowhere": ("if able and not passed:", "if False:", "passed on no node"),
    "a rehearsal isn't waited for": (
        "if left and rehearsal_left(",
        "if False and rehearsal_left(",
        "while nodes rehearse",
    ),
    "a rehearsal alone goes on": ("if position.rehearsal_only:", "if False:", "or one alone"),
    "paused rollouts go on": ('if position.state != "running":', "if False:", "that is"),
    "a rollback doesn't stop": ('state="rolled_back", waits_for=""', 'waits_for=""', "after a failure"),
    "the last step is another one's": (
        "if position.step == len(rules.steps):",
        "if position.step + 1 == len(rules.steps):",
        "followed",
    ),
    "resuming accepts nothing": ('"operator" else failed', '"operator" else 0', "nothing failed"),
    "ending one's own pause accepts failures": ('if position.waits_for == "operator" else', "if False else", "after a"),
}


def broken_rules(old: str, new: str) -> ModuleType:
    """The rules with another text in place of one that they have once, or twice."""
    source = inspect.getsource(rules)
    assert 1 <= source.count(old) <= 2, f"the rules have {old!r} {source.count(old)} times"
    made = ModuleType("broken_rules")
    # Where dataclasses look for it.
    sys.modules[made.__name__] = made
    try:
        exec(compile(source.replace(old, new), "broken_rules.py", "exec"), made.__dict__)
    finally:
        del sys.modules[made.__name__]
    # What is compared with values that the right ones make.
    for name in ("RolloutPosition", "GroupNode", "GroupNodes", "RolloutDecision"):
        made.__dict__[name] = getattr(rules, name)
    return made


@pytest.mark.parametrize("what", BROKEN)
def test_broken_rules_are_found(what: str) -> None:
    old, new, said = BROKEN[what]
    made = broken_rules(old, new)
    assert said in _found(made, LATE.get(what, 0))


def _found(made: ModuleType, first: int) -> str:
    for seed in dict.fromkeys((first, *range(FOUND_WITHIN))):
        try:
            simulated_rollouts.run(seed, made)
        except Broken as broken:
            return str(broken)
    return f"{FOUND_WITHIN} seeds don't show it"
