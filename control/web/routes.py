"""The table of operations: all of the API but the poll. It is served by `starlette_app` and described by `openapi`."""

from functools import cache

from control.api import probes
from control.api.bodies import fleet_responses, responses
from control.api.fleet import replicas, trust
from control.api.operations import ApiCall, Operation, Reply, encode
from control.protocol.settings_in_force import SettingInForce
from control.web import function_routes, node_routes, openapi, operator_routes, release_routes, webhook_routes


async def describe(call: ApiCall) -> Reply:
    """GET /openapi.json."""
    return Reply(200, _description(), ((b"content-type", b"application/json"),))


@cache
def _description() -> bytes:
    # Made once: it takes 20 ms, and anybody may ask for it.
    return encode(openapi.document(OPERATIONS))


OPERATIONS: tuple[Operation, ...] = (
    *function_routes.OPERATIONS,
    *release_routes.OPERATIONS,
    *node_routes.OPERATIONS,
    *operator_routes.OPERATIONS,
    *webhook_routes.OPERATIONS,
    Operation(
        "GET",
        "/v1/settings",
        "The settings that the replica which answers has, without secrets",
        probes.settings,
        "admin",
        {200: responses.Page[SettingInForce]},
    ),
    Operation(
        "GET",
        "/v1/certificates",
        "The certificates that the replica which answers has in use, and when they end",
        probes.certificates,
        "read",
        {200: responses.Certificates},
        everywhere=False,
    ),
    Operation(
        "GET",
        "/v1/certificates/nodes",
        "Which nodes trust the CAs that the replica which answers gives out",
        trust.nodes,
        "read",
        {200: fleet_responses.NodesTrust},
        everywhere=False,
    ),
    Operation(
        "GET",
        "/v1/replicas",
        "The replicas of control that run, and their versions",
        replicas.running,
        "read",
        {200: responses.Page[fleet_responses.RunningReplica]},
    ),
    # For everybody
    Operation("GET", "/v1/ca", "The CA's certificate", probes.ca, None, {200: bytes}, ("unknown_ca",)),
    Operation("GET", "/healthz", "Is the process alive?", probes.healthz, None, {200: responses.Health}),
    Operation("GET", "/readyz", "Can it serve?", probes.readyz, None, {200: responses.Health}, ("not_ready",)),
    Operation("GET", "/openapi.json", "This description", describe, None, {200: dict}),
)
