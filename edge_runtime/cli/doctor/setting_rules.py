"""The node's settings: the files that they name (callers, certificate, token, secrets), the address, the collector."""

import errno
import ipaddress
import socket
import time
from pathlib import Path
from typing import Final

from control.protocol.counts import counted
from control.protocol.findings import Finding
from edge_runtime import files
from edge_runtime.cli.doctor.control_connection import DAY, SOON, shown
from edge_runtime.files import FileUnfit
from edge_runtime.release import secrets
from edge_runtime.settings import SHORTEST_TOKEN, EdgeSettingsError
from edge_runtime.telemetry import span_sender
from edge_runtime.web import callers_file
from edge_runtime.web.tls_files import TlsFiles

Values = dict[str, str]
"""The settings in force as text, by variable name; '' if one isn't set."""

PREFIX: Final = "SKERRY_EDGE_"


def file_findings(state: Path, values: Values) -> list[Finding]:
    """Check whether each file that the settings name can be used, as a node would use it."""
    found = []
    if values[PREFIX + "TLS_CERT"] and values[PREFIX + "TLS_KEY"]:
        authority = values[PREFIX + "TLS_CLIENT_CA"]
        certificate, key = Path(values[PREFIX + "TLS_CERT"]), Path(values[PREFIX + "TLS_KEY"])
        found += tls_findings(certificate, key, Path(authority) if authority else None)
    if values[PREFIX + "CALLERS"]:
        found += _callers(Path(values[PREFIX + "CALLERS"]), asks=bool(values[PREFIX + "TLS_CLIENT_CA"]))
    if values[PREFIX + "TOKEN_FILE"]:
        found += _token(Path(values[PREFIX + "TOKEN_FILE"]))
    found += _secrets(Path(values[PREFIX + "SECRETS"] or state / secrets.FILE))
    return found


def tls_findings(certificate: Path, key: Path, client_ca: Path | None) -> list[Finding]:
    """Check whether a certificate matches its key, and until when it is valid."""
    tls = TlsFiles(certificate, key, client_ca)
    cure = f"put a certificate and its key into the places of {certificate} and {key}"
    try:
        tls.start()
    except FileUnfit as unfit:
        return [Finding("tls", "wrong", str(unfit), cure)]
    if tls.expires is None:
        return [Finding("tls", "ok", f"{certificate} can be used")]
    left = tls.expires - time.time()
    if left > SOON:
        return [Finding("tls", "ok", f"the certificate in {certificate} is good until {shown(tls.expires)}")]
    text = f"the certificate in {certificate} ended at {shown(tls.expires)}: clients refuse it"
    if left > 0:
        text = f"the certificate in {certificate} ends at {shown(tls.expires)}"
    return [Finding("tls", "wrong" if left < DAY else "note", text, cure)]


def _callers(path: Path, *, asks: bool) -> list[Finding]:
    cure = f"skerry-edge caller list --file {path}"
    try:
        entries = callers_file.parse(files.read_private(path, callers_file.SIZE_LIMIT), str(path))
    except FileNotFoundError:
        return [Finding("callers", "wrong", f"{path} isn't there", f"skerry-edge caller add NAME --file {path}")]
    except FileUnfit as unfit:
        return [Finding("callers", "wrong", str(unfit), cure)]
    if not asks and (names := [entry.name for entry in entries if entry.certificates]):
        text = f"{path} knows {', '.join(names)} by a certificate, and clients aren't asked for theirs"
        return [Finding("callers", "wrong", text, "set SKERRY_EDGE_TLS_CLIENT_CA")]
    if not entries:
        add = f"skerry-edge caller add NAME --file {path}"
        return [Finding("callers", "note", f"{path} has no caller: nobody can call a function", add)]
    return [Finding("callers", "ok", f"{path} has {counted(len(entries), 'caller')}")]


def _token(path: Path) -> list[Finding]:
    cure = f"head -c 32 /dev/urandom | base64 >{path}"
    try:
        token = path.read_text().strip()
        mode = path.stat().st_mode & 0o777
    except (OSError, UnicodeDecodeError) as error:
        return [Finding("token", "wrong", f"the token can't be read from {path}: {error}", cure)]
    if len(token) < SHORTEST_TOKEN:
        return [Finding("token", "wrong", f"{path} has a token of less than {SHORTEST_TOKEN} characters", cure)]
    if mode & 0o077:
        return [Finding("token", "note", f"others may read {path}, whose mode is {mode:04o}", f"chmod 600 {path}")]
    return [Finding("token", "ok", f"{path} has a token")]


def _secrets(path: Path) -> list[Finding]:
    try:
        values = secrets.read(path)
    except FileNotFoundError:
        return [Finding("secrets", "ok", f"there is no {path}, which only functions with secrets need")]
    except FileUnfit as unfit:
        return [Finding("secrets", "wrong", str(unfit), f"ls -l {path}")]
    return [Finding("secrets", "ok", f"{path} has secrets of {counted(len(values), 'function')}")]


def listen_findings(values: Values, *, runs: bool) -> list[Finding]:
    """Check whether the address can be bound, if no node is running; and who can reach it."""
    listen = values[PREFIX + "LISTEN"]
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    found = []
    if not runs and (why := _taken(host, int(port))):
        text = f"a node can't listen on {listen}: {why}. Where systemd holds it (skerry-edge.socket), all is well"
        found.append(Finding("listen", "note", text, f"ss -ltnp 'sport = :{port}'"))
    if not _is_loopback(host) and not values[PREFIX + "TLS_CERT"]:
        text = f"others can reach {listen}, and it is plain HTTP: tokens and answers can be read on the way"
        found.append(Finding("listen", "note", text, "set SKERRY_EDGE_TLS_CERT and SKERRY_EDGE_TLS_KEY"))
    return found or [Finding("listen", "ok", f"the local HTTP is at {listen}")]


def _taken(host: str, port: int) -> str:
    """Return why this address can't be bound; '' if it can."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        with socket.socket(family, kind) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
    except OSError as error:
        return "another process has it" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
    return ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def risk_findings(values: Values) -> list[Finding]:
    """Return the settings that weaken the defaults' guarantees."""
    found = []
    if values[PREFIX + "SYNCHRONOUS"] != "FULL":
        text = "SKERRY_EDGE_SYNCHRONOUS is NORMAL: a loss of power may undo calls that were answered"
        found.append(Finding("risks", "note", text, "unset SKERRY_EDGE_SYNCHRONOUS"))
    if values[PREFIX + "FENCE"] != "required":
        text = "SKERRY_EDGE_FENCE is partial: functions run although pieces of their fence may be missing"
        found.append(Finding("risks", "note", text, "unset SKERRY_EDGE_FENCE"))
    if values[PREFIX + "HTTP_NETWORKS"]:
        text = f"functions may reach these networks by HTTP, by names: {values[PREFIX + 'HTTP_NETWORKS']}"
        found.append(Finding("risks", "ok", text))
    return found or [Finding("risks", "ok", "no setting gives up what the defaults guarantee")]


def trace_findings(values: Values) -> list[Finding]:
    """Ask the collector that the settings name, with the headers and the CA from their files."""
    url = values[PREFIX + "OTLP_URL"]
    if not url:
        return [Finding("traces", "ok", "no traces are sent")]
    headers, ca = values[PREFIX + "OTLP_HEADERS_FILE"], values[PREFIX + "OTLP_CA"]
    try:
        sender = span_sender.of_files(url, Path(headers) if headers else None, Path(ca) if ca else None, "")
    except EdgeSettingsError as error:
        # A node doesn't start with this.
        return [Finding("traces", "wrong", str(error), "docs/how-to/send-traces.md")]
    if why := sender.refusal():
        text = f"traces can't be sent to {url}, and are dropped: {why}"
        return [Finding("traces", "note", text, f"curl -v {url}/v1/traces (docs/how-to/send-traces.md)")]
    return [Finding("traces", "ok", f"{url} takes traces")]
