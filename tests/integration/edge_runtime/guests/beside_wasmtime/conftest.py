"""A node's runtime and wasmtime, which answer the same calls."""

from collections.abc import Iterator
from concurrent.futures import Executor

import pytest

from tests.support import by_wasmtime, wasi_calls
from tests.support.wasi_calls import Ours


@pytest.fixture(scope="session")
def reference() -> Iterator[Executor]:
    with by_wasmtime.apart() as pool:
        yield pool


@pytest.fixture(scope="session")
def ours() -> Iterator[Ours]:
    with wasi_calls.ours() as made:
        yield made
