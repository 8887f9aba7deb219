"""Control's settings, from the environment variables SKERRY_*; docs/settings.md has all of them."""

import ipaddress
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from urllib.parse import parse_qs, unquote, urlsplit

from control.protocol.public_addresses import Network
from control.protocol.settings_table import about, about_of, setting

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
    """All settings, each as SKERRY_ and its name. Sizes are in bytes, times in seconds; numbers are more than 0, where
    they have no `least`.

    This is the table that all else comes from (`control.protocol.settings_table`).
    """

    metadata_url: str = field(
        repr=False,
        metadata=about(
            "`postgresql://USER:PASSWORD@HOST:PORT/DATABASE`; except on loopback, with "
            "`?sslmode=verify-full&sslrootcert=FILE` (or `require`, `verify-ca`).",
            "`skerry migrate` needs only this one.",
        ),
    )
    artifacts_url: str = field(
        repr=False,
        metadata=about(
            "`https://KEY:SECRET@HOST:PORT/BUCKET` of an S3 store; http on loopback only.", "The bucket must exist."
        ),
    )
    artifacts_public_url: str = setting(
        "", "`https://HOST:PORT` at which nodes reach the store, if it differs from control's."
    )
    artifacts_delivery: Literal["presigned", "control"] = setting(
        "presigned",
        "How nodes get artifacts: `presigned` (from the store) or `control` (through control, for a private store).",
    )
    artifacts_region: str = setting("us-east-1", "S3 region for which requests are signed.")
    artifacts_timeout: float = setting(15.0, "Seconds that the store may take to answer a request without a body.")
    artifacts_stall: float = setting(
        60.0, "Seconds that an upload to the store, or a download from it, may make no progress."
    )
    unknown_objects_kept: float = setting(
        7 * 86400.0,
        "Seconds that an artifact's object that has no row in the metadata stays in the bucket, after that was first "
        "noticed.",
    )
    bind: str = setting("127.0.0.1", "Address to listen on; any other than loopback requires TLS.")
    port: int = setting(8443, "Port to listen on.", least=0, most=65535)
    metrics_listen: str = setting(
        "",
        "`HOST:PORT`, or a port of 127.0.0.1, at which `/metrics` is served without a token, over plain HTTP, to "
        "anyone who can connect; use `9464` for a Prometheus on the same machine.",
        "If unset, there is no such address, and `/metrics` needs an operator's token.",
    )
    tls_cert: Path | None = setting(
        None,
        "PEM file with the certificate and its chain.",
        "It is reloaded when it changes, and at SIGHUP, as are the key and the CAs ([how "
        "to](how-to/rotate-credentials.md#controls-certificate)).",
    )
    tls_key: Path | None = setting(None, "PEM file with the certificate's key.")
    ca_cert: Path | None = setting(
        None,
        "PEM file with the CAs that nodes should trust, served at `/v1/ca` and named in join tokens; leave it unset "
        "if the certificate is publicly trusted.",
        "Nodes follow when the CAs [change](how-to/change-the-ca.md).",
    )
    spool: Path = field(
        default_factory=_temporary_folder,
        metadata=about(
            "Folder where uploads wait until their digest is known, and where databases of backups are made.",
            default="the system's folder for temporary files",
        ),
    )
    backup_limit: int = setting(
        16 * 1024**3,
        "Bytes of the largest database that control makes of a backup, to prove it or to give it to an operator; its "
        "files and the database are in the spool meanwhile.",
    )
    backup_drill_bytes: int = setting(
        200 * 1024**3,
        "Bytes a day that control reads from the store to prove backups, those whose proof is oldest "
        "first. `skerry data list` says which weren't reached.",
    )
    artifact_limit: int = setting(64 * 1024 * 1024, "Bytes that an artifact may have.")
    body_limit: int = setting(
        4 * 1024 * 1024,
        "Bytes that a JSON body may have.",
        "Most calls allow less: 256 KiB, and 1.5 MiB for a node's poll or report.",
    )
    body_timeout: float = setting(30.0, "Seconds that a JSON body, or the next bytes of an upload, may take to arrive.")
    upload_timeout: float = setting(600.0, "Seconds that a whole upload may take.")
    check_timeout: float = setting(60.0, "Seconds that the check of a module or a schema change may take.")
    checks_at_once: int = setting(2, "Checks of uploads that may run at once, and as many checks of schema changes.")
    database_connections: int = setting(
        16,
        "Connections to the metadata database for requests, half of them for lists; control uses up to 14 more for "
        "itself.",
    )
    database_timeout: float = setting(10.0, "Seconds that one statement may take.")
    presigned_life: int = setting(3600, "Seconds for which a presigned URL is valid.")
    sync_lease: float = setting(60.0, "Seconds after which a sync expires unless the node renews it.")
    stall_limit: float = setting(
        1.0,
        "Seconds for which the schema changes of a release, a move or an amendment may block a node's calls that "
        "write; anything expected to take longer is refused without `--allow-stall`.",
        "Plans show statements that are expected to take at least that long.",
        least=LEAST_STALL_LIMIT,
    )
    credential_life: float = setting(
        90 * 86400.0,
        "Seconds after its creation at which a node's credential expires: then it is valid only for getting a new one.",
        "Nodes get a new one after 30 days anyway; with a shorter life here, each does so when it is refused. A "
        "change also applies to existing credentials.",
    )
    credential_return: float = setting(
        365 * 86400.0,
        "Seconds after its creation until which an expired credential is still valid for that; at least the life, and "
        "at most 100 years.",
        "A node that was offline for longer must join again.",
    )
    public_url: str = setting(
        "",
        "`https://HOST` at which browsers reach control.",
        "Required with an OpenID provider, and if browsers don't send that name in the header Host: behind a proxy "
        "that gives control another name.",
    )
    oidc_issuer: str = setting(
        "",
        "The issuer of an OpenID provider with which people may sign in, such as `https://id.example/realms/prod`: "
        "exactly the `issuer` in its metadata ([how-to](how-to/sign-in-with-oidc.md)).",
    )
    oidc_name: str = setting("", "The provider's name on the sign-in page; if unset, the issuer's host.")
    oidc_client_id: str = setting("", "Control's client ID at the provider; required with the issuer.")
    oidc_client_secret: Path | None = setting(
        None, "File with the client's secret; leave it unset for a client that has none."
    )
    oidc_scopes: str = setting("openid profile email", "The scopes to request, separated by spaces.")
    oidc_groups_claim: str = setting("groups", "The claim that contains the groups.")
    oidc_grants: Path | None = setting(
        None, "TOML file that says what each of the provider's groups may do; required with the issuer."
    )
    session_life: float = setting(
        12 * 3600.0,
        "Seconds after sign-in at which a session ends.",
        "A change also applies to existing sessions.",
    )
    session_idle: float = setting(
        2 * 3600.0,
        "Seconds without a request after which a session of the console ends.",
        least=LEAST_IDLE,
    )
    session_stay: float = setting(
        7 * 86400.0,
        'Seconds after sign-in at which a session of the console ends if "Stay signed in" was chosen.',
        "Being idle doesn't end it.",
    )
    hold: float = setting(25.0, "Seconds for which a poll is held at most.")
    offline_after: float = setting(75.0, "Seconds without contact after which a node is offline.")
    overdue_after: float = setting(300.0, "Seconds away from its target after which a node gets the overdue warning.")
    log_retention: float = setting(
        90 * 86400.0, "Seconds for which syncs, audit rows and refused authentications are kept."
    )
    webhook_networks: tuple[Network, ...] = setting(
        (),
        "Networks, such as `10.0.0.0/8,fd00::/8`, that [webhooks](how-to/send-events.md) may reach in addition to "
        "public addresses, also over plain http.",
    )
    otlp_url: str = setting(
        "",
        "`http(s)://HOST:PORT` of the collector, to which `/v1/traces` is added; http on loopback only.",
    )
    otlp_headers_file: Path | None = setting(
        None, "File of headers that the collector requires, one `NAME: VALUE` a line.", secret=True
    )
    otlp_ca: Path | None = setting(
        None, "PEM file with the CA of the collector's certificate, if the system doesn't trust it."
    )
    settings_file: Path | None = setting(
        None,
        "File of `NAME=VALUE` lines, like systemd's `EnvironmentFile`; it may be the same file.",
        "It is reloaded when it changes, and at SIGHUP. These settings are read from it, and override the "
        "environment: `SKERRY_LOG_LEVEL`, `SKERRY_ARTIFACT_LIMIT`, `SKERRY_BODY_LIMIT`, `SKERRY_BODY_TIMEOUT`, "
        "`SKERRY_STALL_LIMIT`, `SKERRY_HOLD`. If you remove a line, the environment's value applies again.",
    )
    trace_share: float = setting(1.0, "Share of requests and syncs that is traced, more than 0.", most=1)

    def store_address(self) -> StoreAddress:
        """Return `artifacts_url` in its parts."""
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
    """Return the values of settings, by the names of their fields, from their texts. Raises: ControlSettingsError."""
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
    """Check settings. Raises: ControlSettingsError, without a secret in it, when they can't work or aren't safe."""
    check_metadata_url(settings.metadata_url)
    _check_url("SKERRY_ARTIFACTS_URL", settings.artifacts_url)
    address = settings.store_address()
    if not (address.key and address.secret and address.bucket) or "/" in address.bucket:
        raise ControlSettingsError("SKERRY_ARTIFACTS_URL must be http(s)://KEY:SECRET@HOST:PORT/BUCKET")
    if settings.artifacts_public_url:
        _check_url("SKERRY_ARTIFACTS_PUBLIC_URL", settings.artifacts_public_url)
    if settings.otlp_url:
        _check_url("SKERRY_OTLP_URL", settings.otlp_url)
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ControlSettingsError("SKERRY_TLS_CERT and SKERRY_TLS_KEY belong together: set both or none")
    for each in fields(settings):
        _check_value(f"SKERRY_{each.name.upper()}", each, getattr(settings, each.name))
    if settings.metrics_listen:
        listen_address(settings.metrics_listen)
    if settings.public_url:
        _check_public_url(settings.public_url)
    if settings.oidc_issuer:
        _check_oidc(settings)
    if not settings.credential_life <= settings.credential_return <= LONGEST_RETURN:
        raise ControlSettingsError(
            "SKERRY_CREDENTIAL_RETURN must be at least SKERRY_CREDENTIAL_LIFE, after which a node's credential is good "
            f"only to return with, and at most {LONGEST_RETURN:.0f} s (100 years)"
        )


def _check_value(variable: str, each: "Field[Any]", value: Any) -> None:
    """Check a value. Raises: ControlSettingsError, when it isn't what the table says of the setting."""
    said = about_of(each)
    if get_origin(each.type) is Literal and value not in get_args(each.type):
        choices = " or ".join(map(repr, get_args(each.type)))
        raise ControlSettingsError(f"{variable} must be {choices}")
    if each.type == Path | None and value is not None and not value.is_file():
        raise ControlSettingsError(f"{variable}: there is no file {value}")
    if each.type not in (int, float):
        return
    if said.least is None and not value > 0:
        raise ControlSettingsError(f"{variable} must be more than 0")
    if said.least is not None and said.most is not None and not said.least <= value <= said.most:
        raise ControlSettingsError(f"{variable} must be between {said.least:g} and {said.most:g}, not {value}")
    if said.least is not None and not said.least <= value:
        raise ControlSettingsError(f"{variable} must be at least {said.least:g} s")
    if said.most is not None and not value <= said.most:
        raise ControlSettingsError(f"{variable} must be at most {said.most:g}, which is everything")


def listen_address(text: str) -> tuple[str, int]:
    """Return the host and the port of ``HOST:PORT``, ``[HOST]:PORT`` or ``PORT``. Raises: ControlSettingsError, when it
    is something else."""
    host, _, port = text.rpartition(":") if ":" in text else ("127.0.0.1", "", text)
    bare = host.removeprefix("[").removesuffix("]")
    if not bare or (":" in bare and bare == host) or not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ControlSettingsError(
            f"SKERRY_METRICS_LISTEN must be HOST:PORT, as 127.0.0.1:9464, or a port of this machine, not {text!r}"
        )
    return bare, int(port)


def check_metadata_url(url: str) -> None:
    """Check the URL. Raises: ControlSettingsError, when the connection to another machine wouldn't be encrypted."""
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
    """Check what must be set together for signing in at an OpenID provider. Raises: ControlSettingsError."""
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
    """Return whether what is sent to a URL is encrypted, or stays on this machine."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    host = parts.hostname or ""
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host)))


def is_loopback(host: str) -> bool:
    """Return whether `host` is this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def networks(text: str) -> tuple[Network, ...]:
    """Parse networks with commas between them. Raises: ValueError, when one of them isn't a network."""
    return tuple(ipaddress.ip_network(part.strip()) for part in text.split(","))


_WANTED: dict[Callable[[str], object], str] = {
    int: "a whole number",
    float: "a number",
    networks: "networks such as 10.0.0.0/8, with commas between them",
}


def _kind(hint: Any) -> Callable[[str], object]:
    """Return what makes a value of a field's type from its text."""
    if hint == Path | None:
        return Path
    if hint == tuple[Network, ...]:
        return networks
    kind: Callable[[str], object] = str if get_origin(hint) is Literal else hint
    return kind


_KINDS: dict[str, Callable[[str], object]] = {each.name: _kind(each.type) for each in fields(ControlSettings)}
