"""Settings as people give and see them: names, values, where each is from; and variables that are none of them.

Both packages use it. Secrets are never in it.
"""

import os
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from msgspec import Struct

HIDDEN = "(set, and not shown)"
Origin = Literal["environment", "default", "program", "flag", "file"]
"""`program`: whatever started the process has given it, as `skerry up` does."""

OF_CONTROL = """
    ARTIFACTS_DELIVERY ARTIFACTS_PUBLIC_URL ARTIFACTS_REGION ARTIFACTS_STALL ARTIFACTS_TIMEOUT ARTIFACTS_URL
    ARTIFACT_LIMIT BIND BODY_LIMIT BODY_TIMEOUT CA_CERT CHECKS_AT_ONCE CHECK_TIMEOUT CREDENTIAL_LIFE
    CREDENTIAL_RETURN DATABASE_CONNECTIONS DATABASE_TIMEOUT HOLD LOG_RETENTION METADATA_URL METRICS_LISTEN
    OFFLINE_AFTER OIDC_CLIENT_ID OIDC_CLIENT_SECRET OIDC_GRANTS OIDC_GROUPS_CLAIM OIDC_ISSUER OIDC_NAME
    OIDC_SCOPES OTLP_CA OTLP_HEADERS_FILE OTLP_URL OVERDUE_AFTER PORT PRESIGNED_LIFE PUBLIC_URL SESSION_IDLE
    SESSION_LIFE SESSION_STAY SETTINGS_FILE SPOOL STALL_LIMIT SYNC_LEASE TLS_CERT TLS_KEY TRACE_SHARE
    UNKNOWN_OBJECTS_KEPT UPLOAD_TIMEOUT WEBHOOK_NETWORKS
"""
"""The settings of control, without SKERRY_ at the front, with spaces between them."""

OF_EDGE = """
    ANSWER_MEMORY APPLY_LIMIT BODY_LIMIT BODY_MEMORY BODY_WAIT CALLERS COMPILE_LIMIT COMPILE_WAIT CONCURRENCY
    DEPTH FENCE FLIP_LIMIT FUNCTION_QUEUE HOSTS HTTP_NETWORKS LISTEN LOCK_HOLD LOCK_WAIT OTLP_CA
    OTLP_HEADERS_FILE OTLP_URL QUEUE_LIMIT QUEUE_WAIT RECORDS_AGE RECORDS_LIMIT SECRETS START_WAIT STATE
    STOP_LIMIT SYNCHRONOUS TEMP_LIMIT TLS_CERT TLS_CLIENT_CA TLS_KEY TOKEN TOKEN_FILE TRACE_SHARE WAL_LIMIT
    WORKERS WORKER_MEMORY
"""
"""The settings of a node, without SKERRY_EDGE_ at the front."""

OTHERS = """
    CA EDGE_DEBUG EDGE_LOG EDGE_PURE EDGE_URL FAULTS HOME JOIN_TOKEN LOG_LEVEL TOKEN URL
"""
"""What else the programs read, without SKERRY_ at the front."""
FOR_TESTS: Final = "SKERRY_TEST_"
"""What variables that only tests read begin with."""
KNOWN: Final = frozenset(
    [f"SKERRY_{name}" for name in f"{OF_CONTROL} {OTHERS}".split()]
    + [f"SKERRY_EDGE_{name}" for name in OF_EDGE.split()]
)


class SettingInForce(Struct):
    """A setting of one process."""

    name: str
    """The environment variable."""
    value: str
    """As text; '' where it isn't set. Of what has a secret in it, what is none."""
    origin: Origin


def in_force(
    settings: Any,
    environ: Mapping[str, str] | None = None,
    *,
    prefix: str = "SKERRY_",
    origins: Mapping[str, Origin] | None = None,
) -> list[SettingInForce]:
    """All settings of a dataclass of settings, by name.

    `environ`: the environment that they may be from; None: this process's. `origins`: where they are from, by field,
    where that is known better than by comparing them with it.
    """
    environ = os.environ if environ is None else environ
    found = []
    for each in fields(settings):
        name, value = f"{prefix}{each.name.upper()}", getattr(settings, each.name)
        origin: Origin = "program"
        if origins is not None and each.name in origins:
            origin = origins[each.name]
        elif environ.get(name):
            origin = "environment"
        elif value == each.default or (each.default_factory is not MISSING and value == each.default_factory()):
            origin = "default"
        found.append(
            SettingInForce(name, _text(value, prefix) if each.repr else _without_secret(each.name, value), origin)
        )
    return sorted(found, key=lambda setting: setting.name)


def unknown(environ: Mapping[str, str] | None = None) -> list[str]:
    """A line for each variable that looks like one of ours, is set, and is none; None: of this process's environment.

    Their values aren't in it: one may be a misspelt secret.
    """
    from difflib import get_close_matches  # here, since hardly any start of a command needs it

    environ = os.environ if environ is None else environ
    lines = []
    for name in sorted(environ):
        if not name.upper().startswith("SKERRY_") or name in KNOWN or name.startswith(FOR_TESTS) or not environ[name]:
            continue
        near = get_close_matches(name.upper(), sorted(KNOWN), 1, 0.75)
        meant = f"is {near[0]} meant?" if near else "`docs/settings.md` has all that there are"
        lines.append(f"the environment variable {name} is none of Skerry's, and changes nothing: {meant}")
    return lines


def _text(value: Any, prefix: str) -> str:
    """A value as an environment variable has it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ("," if prefix == "SKERRY_" else " ").join(map(str, value))
    return f"{value:g}" if isinstance(value, float) and value < 1e6 else str(value)


def _without_secret(name: str, value: Any) -> str:
    """A value that has a secret: of a URL its scheme, host, port and path; of anything else that it is set."""
    if not value:
        return ""
    if not name.endswith("_url") or not isinstance(value, str):
        return HIDDEN
    try:
        parts = urlsplit(value)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return HIDDEN
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"
