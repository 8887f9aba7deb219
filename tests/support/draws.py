"""What hypothesis draws: the same examples in each run, whatever ran before, or those of SKERRY_TEST_SEED, a number.

So a run on a commit that has passed passes again, and what others find with their seeds doesn't fail it by chance.
SKERRY_TEST_EXAMPLES says how many examples a property has that names no number of its own, and how many more it has
whose number is `examples`.
"""

import os

import hypothesis
from hypothesis.internal.conjecture import providers


def examples(few: int) -> int:
    """The number of examples of a property that is run with `few` where nobody asks for more."""
    return max(few, int(os.environ.get("SKERRY_TEST_EXAMPLES", "0")))


def settle() -> None:
    """Load the settings of all properties; before modules with tests are imported."""
    seed = os.environ.get("SKERRY_TEST_SEED")
    # What `--hypothesis-seed` sets.
    hypothesis.core.global_force_seed = None if seed is None else int(seed)
    # Else it also draws numbers and texts of those modules that are imported by then: that hangs on the tests before.
    none = providers.Constants()
    providers._get_local_constants = lambda: none
    hypothesis.settings.register_profile(
        "skerry",
        derandomize=seed is None,
        max_examples=int(os.environ.get("SKERRY_TEST_EXAMPLES", "50")),
        # An example that was kept would be one that other runs don't have.
        database=None,
        # Its limit of 200 ms for each example is one on the machine, which may be busy with something else meanwhile.
        deadline=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    hypothesis.settings.load_profile("skerry")
