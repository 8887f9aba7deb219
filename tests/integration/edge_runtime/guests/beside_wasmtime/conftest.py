"""A node's runtime, whose calls are compared."""

from collections.abc import Iterator

import pytest

from tests.support import wasi_calls
from tests.support.wasi_calls import Ours


@pytest.fixture(scope="session")
def ours() -> Iterator[Ours]:
    with wasi_calls.ours() as made:
        yield made
