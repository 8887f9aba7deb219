"""Tests run on what `just compile` has built, as a node does; `just test-pure` runs them without it."""

import pytest

from edge_runtime.built.compiled_modules import FRONT

needs_python = pytest.mark.skipif(
    FRONT.part().runs, reason="compiled code tells no profiler which functions it calls; `just test-pure` has this test"
)
needs_compiled = pytest.mark.skipif(not FRONT.part().runs, reason=f"the front isn't compiled: {FRONT.part().why}")
