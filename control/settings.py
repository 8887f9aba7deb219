"""Control's settings, from the environment variables SKERRY_*; docs/settings.md has all of them."""

import ipaddress
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from control.protocol.public_addresses import Network

LEAST_STALL_LIMIT = 0.1
"""Seconds of the setting `stall_limit` at least: what is expected to take less isn't told."""
LEAST_IDLE = 120.0
"""Seconds of the setting `session_idle` at least: the last use of a session is recorded once a minute."""
LONGEST_RETURN = 100 * 365 * 86400.0
"""Seconds of the setting `credential_return` at most."""
TLS_MODES = ("require", "verify-ca", "verify-full")


class ControlSettingsError(Exception):
    """A setting is missing or wrong; the message names the variable and says what it must be."""


def _temporary_folder() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        # None of them takes a file, as on a full disk: uploads say so.
        return Path("/tmp")  # noqa: S108


@dataclass(frozen=True)
class StoreAddress:
    """The parts of the artifact store's URL, ``http(s)://KEY:SECRET@HOST:PORT/BUCKET``."""

    endpoint: str
    key: str = field(repr=False)
    secret: str = field(repr=False)
    bucket: str


@dataclass(frozen=True)
class ControlSettings:
    """All settings. Sizes are in bytes, times in seconds."""

    metadata_url: str = field(repr=False)
    """``postgresql://USER:PASSWORD@HOST:PORT/DATABASE``; to another machine with ``sslmode=verify-full``."""
    artifacts_url: str = field(repr=False)
    """``http(s)://KEY:SECRET@HOST:PORT/BUCKET``; http on loopback only."""
    artifacts_public_url: str = ""
    """``http(s)://HOST:PORT`` under which nodes reach the store, if it isn't that of `artifacts_url`."""
    artifacts_delivery: Literal["presigned", "control"] = "presigned"
    """How nodes get artifacts: by a presigned URL of the store, or through control."""
    artifacts_region: str = "us-east-1"
    artifacts_timeout: float = 15.0
    """Time for the store to answer a request without a body."""
    artifacts_stall: float = 60.0
    """Time after which an upload to the store or a download from it is ended, if it makes no progress."""
    unknown_objects_kept: float = 7 * 86400.0
    """Time for which an object of the bucket that the metadata don't know is kept, from when that was first seen."""
    bind: str = "127.0.0.1"
    port: int = 8443
    metrics_listen: str = ""
    """``HOST:PORT``, or a port of 127.0.0.1, where /metrics is served by plain HTTP, without a token; '': nowhere."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    ca_cert: Path | None = None
    """The CA that nodes are to trust, which /v1/ca answers; None where the certificate is publicly trusted."""
    spool: Path = field(default_factory=_temporary_folder)
    """The folder in which uploads are kept until their digest is known."""
    artifact_limit: int = 64 * 1024 * 1024
    body_limit: int = 4 * 1024 * 1024
    """Bytes of the largest JSON body."""
    body_timeout: float = 30.0
    """Time for a JSON body to arrive, and for the next bytes of an upload."""
    upload_timeout: float = 600.0
    check_timeout: float = 60.0
    """Time for the check of a module or of a schema change."""
    checks_at_once: int = 2
    database_connections: int = 16
    database_timeout: float = 10.0
    """Time for one statement."""
    presigned_life: int = 3600
    sync_lease: float = 60.0
    stall_limit: float = 1.0
    """Time for which schema changes may hold the writers of a node up without being asked."""
    credential_life: float = 90 * 86400.0
    """Age at which a node's credential ends: from then on it is good only to get its successor."""
    credential_return: float = 365 * 86400.0
    """Age from which on it isn't good for that either."""
    public_url: str = ""
    """``https://HOST:PORT`` at which browsers reach control; '' where it is what they send as Host."""
    oidc_issuer: str = ""
    """The issuer of an OpenID provider at which operators may sign in; '' for none."""
    oidc_name: str = ""
    """What the page for signing in calls it; '' for the issuer's host."""
    oidc_client_id: str = ""
    oidc_client_secret: Path | None = None
    """The file with the client's secret; None for a client that has none."""
    oidc_scopes: str = "openid profile email"
    oidc_groups_claim: str = "groups"
    """The claim that has the groups of whoever signs in."""
    oidc_grants: Path | None = None
    """The file with the grants of each group (`control.access.group_grants`)."""
    session_life: float = 12 * 3600.0
    """Age at which a session ends, whether it is used or not."""
    session_idle: float = 2 * 3600.0
    """Time without a request after which a session of the console ends."""
    session_stay: float = 7 * 86400.0
    """Age at which a session of the console ends whose browser was told to stay signed in; idle or not."""
    hold: float = 25.0
    """Time for which a poll is held at most."""
    offline_after: float = 75.0
    overdue_after: float = 300.0
    log_retention: float = 90 * 86400.0
    webhook_networks: tuple[Network, ...] = ()
    """Networks to which messages of webhooks may be sent besides public addresses, also by plain http."""
    otlp_url: str = ""
    """``http(s)://HOST:PORT`` of the collector that gets traces by OTLP over HTTP; '': no traces; http on loopback."""
    otlp_headers_file: Path | None = field(default=None, repr=False)
    """A file of headers that the collector asks for, ``NAME: VALUE`` a line."""
    otlp_ca: Path | None = None
    """The CA that the collector's certificate must be of; None: those of the system."""
    settings_file: Path | None = None
    """A file of NAME=VALUE lines; those that `control.access.live_settings` names are read again while control runs."""
    trace_share: float = 1.0
    """Which share of requests and syncs is traced, where traces are sent: more than 0, at most 1."""

    def store_address(self) -> StoreAddress:
        """`artifacts_url` in its parts."""
        url = urlsplit(self.artifacts_url)
        return StoreAddress(
            f"{url.scheme}://{url.netloc.rpartition('@')[2]}",
            unquote(url.username or ""),
            unquote(url.password or ""),
            url.path.strip("/"),
        )


def from_environment(environ: Mapping[str, str]) -> ControlSettings:
    """Read and check the settings. Raises: ControlSettingsError, when one is missing or wrong."""
    given = {name: environ.get(f"SKERRY_{name.upper()}", "") for name in _KINDS}
    values = convert({name: text for name, text in given.items() if text})
    for name in ("metadata_url", "artifacts_url"):
        if name not in values:
            raise ControlSettingsError(
                f"SKERRY_{name.upper()} isn't set: it says where that service is (docs/settings.md)"
            )
    settings = ControlSettings(**values)
    check(settings)
    return settings


def convert(texts: Mapping[str, str]) -> dict[str, Any]:
    """The values of settings, by the names of their fields, from their texts. Raises: ControlSettingsError."""
    values: dict[str, Any] = {}
    for name, text in texts.items():
        kind = _KINDS[name]
        try:
            values[name] = kind(text)
        except ValueError:
            wanted = _WANTED.get(kind, "valid")
            raise ControlSettingsError(f"SKERRY_{name.upper()} must be {wanted}, not {text!r}") from None
    return values


def check(settings: ControlSettings) -> None:
    """Raises: ControlSettingsError, when settings can't work or aren't safe. Its message contains no secret."""
    check_metadata_url(settings.metadata_url)
    _check_url("SKERRY_ARTIFACTS_URL", settings.artifacts_url)
    address = settings.store_address()
    if not (address.key and address.secret and address.bucket) or "/" in address.bucket:
        raise ControlSettingsError("SKERRY_ARTIFACTS_URL must be http(s)://KEY:SECRET@HOST:PORT/BUCKET")
    if settings.artifacts_public_url:
        _check_url("SKERRY_ARTIFACTS_PUBLIC_URL", settings.artifacts_public_url)
    if settings.artifacts_delivery not in ("presigned", "control"):
        raise ControlSettingsError("SKERRY_ARTIFACTS_DELIVERY must be 'presigned' or 'control'")
    if settings.otlp_url:
        _check_url("SKERRY_OTLP_URL", settings.otlp_url)
    if settings.trace_share > 1:
        raise ControlSettingsError("SKERRY_TRACE_SHARE must be at most 1, which is everything")
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ControlSettingsError("SKERRY_TLS_CERT and SKERRY_TLS_KEY belong together: set both or none")
    files = (
        *("tls_cert", "tls_key", "ca_cert", "settings_file", "otlp_headers_file", "otlp_ca"),
        *("oidc_client_secret", "oidc_grants"),
    )
    for name in files:
        path = getattr(settings, name)
        if path is not None and not path.is_file():
            raise ControlSettingsError(f"SKERRY_{name.upper()}: there is no file {path}")
    if settings.metrics_listen:
        listen_address(settings.metrics_listen)
    if not 0 <= settings.port <= 65535:
        raise ControlSettingsError(f"SKERRY_PORT must be between 0 and 65535, not {settings.port}")
    for name, kind in _KINDS.items():
        if name != "port" and kind in (int, float) and not getattr(settings, name) > 0:
            raise ControlSettingsError(f"SKERRY_{name.upper()} must be more than 0")
    if settings.stall_limit < LEAST_STALL_LIMIT:
        raise ControlSettingsError(f"SKERRY_STALL_LIMIT must be at least {LEAST_STALL_LIMIT:g} s")
    if settings.public_url:
        _check_public_url(settings.public_url)
    if settings.oidc_issuer:
        _check_oidc(settings)
    if settings.session_idle < LEAST_IDLE:
        raise ControlSettingsError(f"SKERRY_SESSION_IDLE must be at least {LEAST_IDLE:g} s")
    if not settings.credential_life <= settings.credential_return <= LONGEST_RETURN:
        raise ControlSettingsError(
            "SKERRY_CREDENTIAL_RETURN must be at least SKERRY_CREDENTIAL_LIFE, after which a node's credential is good "
            f"only to return with, and at most {LONGEST_RETURN:.0f} s (100 years)"
        )


def listen_address(text: str) -> tuple[str, int]:
    """The host and the port of ``HOST:PORT``, ``[HOST]:PORT`` or ``PORT``. Raises: ControlSettingsError, when it is
    something else.
    """
    host, _, port = text.rpartition(":") if ":" in text else ("127.0.0.1", "", text)
    bare = host.removeprefix("[").removesuffix("]")
    if not bare or (":" in bare and bare == host) or not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ControlSettingsError(
            f"SKERRY_METRICS_LISTEN must be HOST:PORT, as 127.0.0.1:9464, or a port of this machine, not {text!r}"
        )
    return bare, int(port)


def check_metadata_url(url: str) -> None:
    """Raises: ControlSettingsError, when the connection to another machine wouldn't be encrypted."""
    parts = urlsplit(url)
    if parts.scheme not in ("postgresql", "postgres") or not parts.hostname:
        raise ControlSettingsError("SKERRY_METADATA_URL must be postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    mode = parse_qs(parts.query).get("sslmode", [""])[-1]
    if not is_loopback(parts.hostname) and mode not in TLS_MODES:
        raise ControlSettingsError(
            f"SKERRY_METADATA_URL: the connection to {parts.hostname} would not be encrypted; add "
            "?sslmode=verify-full&sslrootcert=FILE to it (plain connections are for loopback only)"
        )


def _check_url(variable: str, url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ControlSettingsError(f"{variable} must begin with https:// (or http:// on loopback) and name a host")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ControlSettingsError(f"{variable}: plain http to {parts.hostname} is refused; use https")


def _check_oidc(settings: ControlSettings) -> None:
    """What must be set together for signing in at an OpenID provider."""
    parts = urlsplit(settings.oidc_issuer)
    if not is_safe(settings.oidc_issuer) or parts.query or parts.fragment:
        raise ControlSettingsError("SKERRY_OIDC_ISSUER must be https://HOST/… (http on loopback only), without a query")
    for name in ("public_url", "oidc_client_id", "oidc_grants"):
        if not getattr(settings, name):
            raise ControlSettingsError(f"SKERRY_{name.upper()} must be set where SKERRY_OIDC_ISSUER is")
    if "openid" not in settings.oidc_scopes.split():
        raise ControlSettingsError("SKERRY_OIDC_SCOPES must have `openid` among the scopes, with spaces between them")


def _check_public_url(url: str) -> None:
    parts = urlsplit(url)
    if not is_safe(url) or "@" in parts.netloc or parts.path or parts.query or parts.fragment:
        raise ControlSettingsError(
            f"SKERRY_PUBLIC_URL must be https://HOST or https://HOST:PORT (http on loopback only), not {url!r}"
        )


def is_safe(url: str) -> bool:
    """Whether what is sent to a URL is encrypted, or stays on this machine."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    host = parts.hostname or ""
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host)))


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def networks(text: str) -> tuple[Network, ...]:
    """Networks with commas between them. Raises: ValueError, when one of them isn't a network."""
    return tuple(ipaddress.ip_network(part.strip()) for part in text.split(","))


_WANTED: dict[Callable[[str], object], str] = {
    int: "a whole number",
    float: "a number",
    networks: "networks such as 10.0.0.0/8, with commas between them",
}
_KINDS: dict[str, Callable[[str], object]] = {
    "metadata_url": str,
    "artifacts_url": str,
    "artifacts_public_url": str,
    "artifacts_delivery": str,
    "artifacts_region": str,
    "artifacts_timeout": float,
    "artifacts_stall": float,
    "unknown_objects_kept": float,
    "bind": str,
    "port": int,
    "metrics_listen": str,
    "tls_cert": Path,
    "tls_key": Path,
    "ca_cert": Path,
    "spool": Path,
    "artifact_limit": int,
    "body_limit": int,
    "body_timeout": float,
    "upload_timeout": float,
    "check_timeout": float,
    "checks_at_once": int,
    "database_connections": int,
    "database_timeout": float,
    "presigned_life": int,
    "sync_lease": float,
    "stall_limit": float,
    "credential_life": float,
    "credential_return": float,
    "public_url": str,
    "oidc_issuer": str,
    "oidc_name": str,
    "oidc_client_id": str,
    "oidc_client_secret": Path,
    "oidc_scopes": str,
    "oidc_groups_claim": str,
    "oidc_grants": Path,
    "session_life": float,
    "session_idle": float,
    "session_stay": float,
    "hold": float,
    "offline_after": float,
    "overdue_after": float,
    "log_retention": float,
    "webhook_networks": networks,
    "otlp_url": str,
    "otlp_headers_file": Path,
    "otlp_ca": Path,
    "settings_file": Path,
    "trace_share": float,
}
