"""What Prometheus reads: `GET /metrics`, for operators that may read everything, or on the listener of its own."""

from control.api.operations import ApiCall, Reply, operation
from control.api.services import Services
from control.metrics import CONTENT_TYPE


@operation(
    "GET",
    "/metrics",
    "Metrics for Prometheus",
    role="read",
    when_stale=True,
    answers={200: bytes},
)
async def metrics(call: ApiCall) -> Reply:
    return await scraped(call.services)


async def scraped(services: Services) -> Reply:
    """The metrics of this replica and of the fleet."""
    body = services.metrics.render() + await services.fleet_metrics.render()
    return Reply(200, body, ((b"content-type", CONTENT_TYPE.encode()),))
