"""What anybody may ask: is it alive, is it ready, its counters, its CA."""

from control import answers
from control import metrics as counters
from control.calls import Answer, Call
from control.problems import ProblemError


async def healthz(call: Call) -> Answer:
    """GET /healthz: the process answers; nothing else is looked at."""
    return Answer(200, answers.Health("ok"))


async def readyz(call: Call) -> Answer:
    """GET /readyz: the metadata database and the artifact store answer, and the targets are known."""
    services = call.services
    try:
        await services.db.ready()
        await services.store.ready()
    except ProblemError as error:
        raise ProblemError("not_ready", error.detail) from error
    if not services.fleet.fresh:
        raise ProblemError("not_ready", "the targets haven't been read lately")
    return Answer(200, answers.Health("ready"))


async def metrics(call: Call) -> Answer:
    """GET /metrics."""
    return Answer(200, call.services.metrics.render(), ((b"content-type", counters.CONTENT_TYPE.encode()),))


async def ca(call: Call) -> Answer:
    """GET /v1/ca, PEM: to be compared with the fingerprint in the join token before it is trusted."""
    if not call.services.ca_pem:
        raise ProblemError("unknown_ca", "the certificate is to be trusted as the system does; no CA is given out")
    return Answer(200, call.services.ca_pem, ((b"content-type", b"application/x-pem-file"),))
