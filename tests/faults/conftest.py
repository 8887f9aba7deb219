"""The tests of faults are of nodes as packages have them: the front and the workers' loop compiled.

They say how the nodes run. `just faults` compiles both before, and with its SKERRY_TEST_COMPILED=1 nothing is tried
where they aren't.
"""

import os

import pytest

from edge_runtime.built import parts


def pytest_report_header() -> str:
    """Say what the faults are of."""
    lacking = [name for name, part in parts.document().items() if not part["compiled"]]
    return f"faults of a node {'in Python: ' + ', '.join(lacking) if lacking else 'that is compiled'}"


@pytest.fixture(scope="session", autouse=True)
def _compiled() -> None:
    lacking = [parts.told(name, part) for name, part in parts.document().items() if not part["compiled"]]
    assert not (lacking and os.environ.get("SKERRY_TEST_COMPILED")), f"{'; '.join(lacking)}: `just compile` builds it"
