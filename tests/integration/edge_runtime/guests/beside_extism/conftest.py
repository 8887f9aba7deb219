"""The function whose calls are compared, and a site."""

import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer

import pytest

from edge_runtime.guests.guest import LoadedFunction
from tests.guests.build import guest
from tests.support.beside_extism import Site, function


@pytest.fixture(scope="session", params=["compiled", "interpreted"])
def ours(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedFunction]:
    loaded = function(guest("kernel_calls"), tmp_path_factory.mktemp("code"), request.param)
    yield loaded
    loaded.close()


@pytest.fixture(scope="session")
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()
