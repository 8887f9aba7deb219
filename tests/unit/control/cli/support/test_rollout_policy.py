"""Policies in files: what is read, what is refused by the file's and the field's name, and what is shown."""

from pathlib import Path

import click
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.cli.support import rollout_policy
from control.rollouts.policy import Gate, Policy, StepTable

ISSUE = """
[rollout]
steps = ["1", "5%", { until = "25%", pause = "2h" }, { pause = "approval", role = "deploy" }, "100%"]
bake = "10m"
max_failed = "2%"
on_failure = "pause"
on_unknown = "pause"
unknown_after = "24h"
window = "Mon-Fri 22:00-05:00 Europe/Lisbon"

[[rollout.gate]]
metric = "error_ratio"
than_before = "1.2x"
at_least_calls = 200
"""


def test_the_policy_of_a_file_is_what_a_request_has(tmp_path: Path) -> None:
    file = tmp_path / "rollout.toml"
    file.write_text(ISSUE)
    read = rollout_policy.read(file)
    assert read["steps"] == ["1", "5%", {"until": "25%", "pause": "2h"}, {"pause": "approval"}, "100%"]
    assert read["gate"] == [{"metric": "error_ratio", "than_before": "1.2x", "at_least_calls": 200}]
    assert msgspec.convert(read, Policy) == msgspec.toml.decode(ISSUE, type=rollout_policy.PolicyFile).rollout


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[rollout]\nstep = ["100%"]', "unknown field `step` - at `rollout`; is `steps` meant?"),
        ("[rolout]\n", "unknown field `rolout`; is `rollout` meant?"),
        ('[rollout]\n[[rollout.gate]]\nmetrics = "p99"', "`metrics` - at `rollout.gate[0]`; is `metric` meant?"),
        ('[rollout]\non_failure = "undo"', "at `rollout.on_failure`; there are `pause`, `rollback`"),
        ("[rollout]\nsteps = [5]", "at `rollout.steps[0]`; write it in quotes"),
        ("[rollout]\nmax_failed = 3", "at `rollout.max_failed`; write it in quotes"),
        ("[rollout]\nbake = 10", "at `rollout.bake`; write it in quotes, with its unit"),
        ('[rollout]\n[[rollout.gate]]\nmetric = "p99"\nthan_before = 1.2', "`; write it in quotes"),
        ('[rollout]\nbake = "10 minutes"', "rollout.bake: '10 minutes' is "),
        ('[rollout]\nsteps = ["5%", "200%"]', "rollout.steps[1]: '200%' is "),
        ('[rollout]\nsteps = ["5%"]', "rollout.steps[0]: '5%' is not "),
        ("[rollout\n", "can't be read"),
        ('[rollout]\nbake = "\xff"', "can't be read"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(click.UsageError) as caught:
        rollout_policy.read(file)
    assert told in str(caught.value)
    assert str(file) in str(caught.value)


WORDS = st.text(max_size=20)
GATES = st.builds(
    Gate, metric=st.sampled_from(["p99", "error_ratio"]), than_before=st.none() | WORDS, webhook=st.none() | WORDS
)
STEPS = st.lists(WORDS | st.builds(StepTable, until=st.none() | WORDS, pause=st.none() | WORDS), min_size=1, max_size=4)
POLICIES = st.builds(
    Policy, steps=STEPS, bake=WORDS, rehearse=st.booleans(), window=st.none() | WORDS, gate=st.lists(GATES, max_size=3)
)


@given(POLICIES)
def test_what_is_shown_is_a_file_of_the_same_policy(policy: Policy) -> None:
    text = rollout_policy.as_toml(msgspec.to_builtins(policy))
    assert msgspec.toml.decode(text, type=rollout_policy.PolicyFile).rollout == policy
