"""Requests of monitoring: whether control is alive and ready, and its metrics."""

from msgspec import Struct, field

from control.api.operations import ApiCall, Reply, operation
from control.api.services import Services
from control.metrics import CONTENT_TYPE
from control.problems import ProblemError
from control.protocol.counts import counted


class Health(Struct, omit_defaults=True):
    status: str
    notes: list[str] = field(default_factory=list)
    """What an operator should know, although control serves."""


@operation("GET", "/healthz", "Is the process alive?", role=None, answers={200: Health})
async def healthz(call: ApiCall) -> Reply:
    """Answer that the process is alive. Nothing else is checked."""
    return Reply(200, Health("ok"))


@operation("GET", "/readyz", "Can it serve?", role=None, answers={200: Health}, errors=("not_ready",))
async def readyz(call: ApiCall) -> Reply:
    """Check that the database takes writes, the artifact store answers, and the targets are known."""
    await call.services.readiness.check()
    held, access = call.services.ownership.held, call.services.access
    if not call.services.fleet.fresh:
        why = "the targets haven't been read lately from the metadata database"
        if access.answered and not access.looked:
            why = f"the bucket's access lists are being read; {access.unverified} so far can't be verified: see the log"
        raise ProblemError("not_ready", f"{why}; ask again")
    notes = [] if held is None else [f"no artifact is deleted: {held.reason}"]
    if not access.looked:
        notes.append("the bucket's access lists weren't read yet: the store hasn't answered since the start")
    if access.unverified:
        unverified = counted(access.unverified, "access list")
        notes.append(f"in the bucket can't be verified: {unverified}: see the log")
    notes += call.services.reread.errors() + call.services.certificates.warnings()
    return Reply(200, Health("ready", notes))


@operation(
    "GET", "/metrics", "Metrics for Prometheus", role="read", when_stale=True, answers={200: bytes}, media="text/plain"
)
async def metrics(call: ApiCall) -> Reply:
    return await scraped(call.services)


async def scraped(services: Services) -> Reply:
    """Render the metrics of this replica and of the fleet."""
    body = services.metrics.render() + await services.fleet_metrics.render()
    return Reply(200, body, ((b"content-type", CONTENT_TYPE.encode()),))
