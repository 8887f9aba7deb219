"""What control says of itself: whether it is alive and ready, its certificates, its settings."""

import logging
import os

from control.api.bodies import responses
from control.api.operations import ApiCall, Reply, operation
from control.problems import ProblemError
from control.protocol import settings_in_force
from control.protocol.counts import counted

LOG_LEVEL = "SKERRY_LOG_LEVEL"


@operation(
    "GET",
    "/healthz",
    "Is the process alive?",
    role=None,
    answers={200: responses.Health},
)
async def healthz(call: ApiCall) -> Reply:
    """The process answers. Nothing else is checked."""
    return Reply(200, responses.Health("ok"))


@operation(
    "GET",
    "/readyz",
    "Can it serve?",
    role=None,
    answers={200: responses.Health},
    errors=("not_ready",),
)
async def readyz(call: ApiCall) -> Reply:
    """The metadata database takes writes, the artifact store answers, and the targets are known."""
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
    return Reply(200, responses.Health("ready", notes))


@operation(
    "GET",
    "/v1/settings",
    "The settings that the replica which answers has, without secrets",
    role="admin",
    answers={200: responses.Page[settings_in_force.SettingInForce]},
)
async def settings(call: ApiCall) -> Reply:
    """Those of the replica that answers."""
    live = call.services.live_settings
    found = settings_in_force.in_force(live.settings, origins=dict.fromkeys(live.named, "file"))
    level, given = logging.getLogger("skerry").getEffectiveLevel(), os.environ.get(LOG_LEVEL, "")
    name = logging.getLevelName(level).lower()
    origin: settings_in_force.Origin = "default" if level == logging.INFO else "flag"
    origin = "file" if live.has_level else "environment" if name == given else origin
    found.append(settings_in_force.SettingInForce(LOG_LEVEL, name, origin))
    return Reply(200, responses.Page(sorted(found, key=lambda setting: setting.name)))


@operation(
    "GET",
    "/v1/certificates",
    "The certificates that the replica which answers has in use, and when they end",
    role="read",
    everywhere=False,
    answers={200: responses.Certificates},
)
async def certificates(call: ApiCall) -> Reply:
    """Those of the replica that answers."""
    held, reread = call.services.certificates, call.services.reread
    listed = [
        responses.CertificateInUse(end.what, end.name, end.sha256, end.begins_at, end.ends_at) for end in held.ends
    ]
    return Reply(200, responses.Certificates(listed, held.trust.digest, reread.errors() + held.warnings()))


@operation(
    "GET",
    "/v1/ca",
    "The CA's certificate",
    role=None,
    answers={200: bytes},
    errors=("unknown_ca",),
)
async def ca(call: ApiCall) -> Reply:
    """PEM: to be compared with the fingerprint in a join token before it is trusted."""
    pem = call.services.certificates.trust.pem
    if not pem:
        raise ProblemError(
            "unknown_ca",
            "there is no CA to give out: control's certificate is to be trusted as the system trusts others",
        )
    return Reply(200, pem, ((b"content-type", b"application/x-pem-file"),))
