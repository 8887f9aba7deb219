"""What guests are compared with on other hosts."""

from collections.abc import Iterator
from concurrent.futures import Executor

import pytest

from tests.support import by_wasmtime


@pytest.fixture(scope="session")
def reference() -> Iterator[Executor]:
    """A process that calls guests by wasmtime, and by Extism's own host."""
    with by_wasmtime.apart() as pool:
        yield pool
