"""Plug-ins on a node's runtime and by Extism's own host, side by side: any calls of the kernel, one after the other,
end alike, with the same answers, errors and logs. What doesn't is in docs/reference/other-hosts.md, all of it.

`SKERRY_TEST_GUESTS` is how many sequences of calls are tried; `just faults` tries many more. They are the same in each
run; `SKERRY_TEST_SEED` makes others.
"""

import os
from collections.abc import Sequence
from concurrent.futures import Executor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.guests.guest import LoadedFunction
from tests.support.beside_extism import by_reference
from tests.support.by_extism import Call, alike, by_node
from tests.support.kernel_scripts import Op, Place, Step, encoded, large_scripts, scripts

EXAMPLES = int(os.environ.get("SKERRY_TEST_GUESTS", "60"))


def compare(ours: LoadedFunction, reference: Executor, calls: Sequence[Call]) -> None:
    assert [by_node(ours, call) for call in calls] == [alike(end) for end in by_reference(reference, calls)]


several = st.lists(st.tuples(scripts(), st.binary(max_size=40)), min_size=1, max_size=3)
pytestmark = pytest.mark.timeout(900)
checks = settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@checks
@given(several, st.sampled_from(["plain", "silent"]))
def test_any_calls_of_the_kernel_end_alike(
    ours: LoadedFunction, reference: Executor, made: list[tuple[list[Step], bytes]], export: str
) -> None:
    calls = [Call(name, encoded(steps, data)) for steps, data in made for name in ("traced", export)]
    compare(ours, reference, calls)


def test_a_number_that_is_an_address_by_chance_is_taken_for_none(ours: LoadedFunction, reference: Executor) -> None:
    """Addresses differ: by one host the last block lies where the text's first byte, as a number, would be."""
    text: list[Step] = [(Op.TEXT, "ключ".encode()), (Op.LOAD_U8, Place(0)), (Op.STORE_U8, 0, 0)]
    blocks: list[Step] = [(Op.ALLOC, 1), (Op.TEXT, b"thing"), (Op.ALLOC, 1), (Op.OUTPUT_SET, Place(0), 0)]
    compare(ours, reference, [Call("traced", encoded([*text, *blocks]))])


@checks
@given(large_scripts())
def test_blocks_that_are_used_again_keep_what_they_have(
    ours: LoadedFunction, reference: Executor, steps: list[Step]
) -> None:
    compare(ours, reference, [Call("traced", encoded(steps))])
