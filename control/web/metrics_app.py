"""`GET /metrics` on a listener of its own, without a token: for a Prometheus on the same machine."""

from collections.abc import Callable

from starlette.types import Receive, Scope, Send

from control.api import operations, probes
from control.api.services import Services
from control.problems import ProblemError

PATH = "/metrics"


class MetricsApp:
    """The ASGI application; it serves nothing else."""

    def __init__(self, services: Callable[[], Services]) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request of HTTP; the server lets no other one through."""
        if scope["path"] != PATH:
            reply = operations.refusal(ProblemError("no_such_path", f"only {PATH} is served here"))
        elif scope["method"] != "GET":
            reply = operations.refusal(ProblemError("method_not_allowed", f"{PATH} takes GET", allow="GET"))
        else:
            reply = operations.prepared(await probes.scraped(self._services()))
        await reply(scope, receive, send)
