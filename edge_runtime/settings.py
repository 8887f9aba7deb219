"""The settings of a node, given as flags or SKERRY_EDGE_* variables.

Durations are in seconds, sizes in bytes.
"""

import ipaddress
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin
from urllib.parse import urlsplit

from control.protocol.settings_table import About, about, about_of, setting

LISTEN: Final = "127.0.0.1:8087"
MIB: Final = 1024 * 1024
GIB: Final = 1024 * MIB
DAY: Final = 86_400.0
WAL_LIMIT: Final = 256 * MIB
SHORTEST_TOKEN: Final = 16
"""Characters that the node's token has at least."""


class EdgeSettingsError(Exception):
    """A setting is wrong; the message names it and says what it can be."""


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0))


def seconds(default: float, text: str, more: str = "") -> float:
    """Declare a setting in seconds, of more than 0 and a day at most."""
    return setting(default, text, more, most=DAY)


@dataclass(frozen=True)
class EdgeSettings:
    """The settings of `skerry-edge run`, each a flag, and a variable SKERRY_EDGE_ and its name.

    This is the table that all else comes from (`control.protocol.settings_table`). Raises: EdgeSettingsError, when one
    is wrong.
    """

    state: Path = field(
        metadata=about(
            "The state directory: identity, artifacts, compiled functions, database. Not on a `noexec` mount."
        )
    )
    listen: str = setting(
        LISTEN,
        "`HOST:PORT` of the local HTTP. A host other than loopback needs a file of callers, or a token in "
        "`SKERRY_EDGE_TOKEN` or in the file that `SKERRY_EDGE_TOKEN_FILE` names.",
    )
    token: str = setting(
        "",
        "Token that callers must send as `Authorization: Bearer`; at least 16 characters.",
        "With `SKERRY_EDGE_CALLERS` it is valid only for `/_skerry/`, not for functions.",
        secret=True,
    )
    token_file: Path | None = setting(None, "File that contains the token instead; it is reloaded when it changes.")
    callers: Path | None = setting(
        None,
        "TOML file with the callers, and what each may call; `skerry-edge caller add` creates it.",
        "Only the node's user may have access to it (mode 0600), and it is reloaded when it changes ([how "
        "to](how-to/name-callers.md)). Without it, everyone who may call is one caller without a name.",
    )
    tls_cert: Path | None = setting(
        None,
        "PEM file with the certificate of the local HTTP and its chain; without it, local HTTP isn't encrypted.",
        "With it, the node serves HTTPS, with TLS 1.2 or later and at most 4,096 connections. It is reloaded when it "
        "changes, and at SIGHUP, as are the key and the CAs ([how to](how-to/name-callers.md#https)).",
    )
    tls_key: Path | None = setting(
        None, "PEM file with the certificate's key.", "Other users must not be able to read it."
    )
    tls_client_ca: Path | None = setting(
        None,
        "PEM file with the CAs of callers' certificates; if set, clients are asked for a certificate.",
        "It may also contain the callers' certificates themselves. A client without a certificate may use a token.",
    )
    hosts: tuple[str, ...] = setting(
        (),
        "Name that the Host header may contain besides `localhost`, if there is no token; may be repeated.",
        "The flag is `--host`; in the variable, separate names with spaces. Hosts in a function's "
        "[route](functions.md#routes) needn't be listed here.",
    )
    secrets: Path | None = setting(
        None,
        "TOML file with the values of functions' secrets (default: `secrets.toml` in the state directory).",
        "Only the node's user may have access to it (mode 0600; [how to](how-to/give-secrets.md)).",
    )
    http_networks: tuple[str, ...] = setting(
        (),
        "Network, such as `10.0.0.0/8`, that functions' HTTP requests may reach by name, in addition to public ones; "
        "may be repeated.",
        "The flag is `--http-network`; in the variable, separate networks with spaces.",
    )
    workers: int = field(
        default_factory=lambda: 2 * processors(),
        metadata=about(
            "Processes that run functions (default: two for each processor).",
            "One more is kept ready as a spare, in case one dies.",
            least=1,
            most=100,
            default="twice the number of processors",
        ),
    )
    depth: int = setting(
        8, "Calls that one worker may hold at once, for functions whose calls are short.", least=1, most=16
    )
    concurrency: int = field(
        default_factory=processors,
        metadata=about(
            "Workers that one function's calls may use at once, unless its manifest says otherwise (default: the "
            "number of processors).",
            "Keep it below `SKERRY_EDGE_WORKERS`, or a slow function can occupy all of them.",
            least=1,
            most=100,
            default="the number of processors",
        ),
    )
    queue_limit: int = setting(1024, "Calls that may wait for a worker.", least=1, most=1_000_000)
    function_queue: int = setting(
        256,
        "Calls of one function that may wait for a worker, unless its manifest says otherwise.",
        least=1,
        most=1_000_000,
    )
    queue_wait: float = seconds(10.0, "Seconds that a call may wait for a worker, or for a change of release.")
    body_limit: int = setting(10 * MIB, "Bytes that a request's body may have.", least=0, most=GIB)
    body_memory: int = setting(
        256 * MIB,
        "Bytes that all request bodies that are being received or are waiting may take.",
        least=1,
        most=1024 * GIB,
    )
    answer_memory: int = setting(
        256 * MIB,
        "Bytes that all unread answers to clients may take; above that, the one unread for the longest time is "
        "dropped.",
        "Its connection is closed.",
        least=1,
        most=1024 * GIB,
    )
    body_wait: float = seconds(30.0, "Seconds that a request's body may take to arrive.")
    flip_limit: float = seconds(
        5.0,
        "Seconds that a change of release waits for calls that may write and have sent an HTTP request that can't be "
        "sent twice.",
    )
    apply_limit: float = seconds(60.0, "Seconds that a release's schema changes and probes may take together.")
    compile_limit: float = seconds(300.0, "Seconds that the compiler may take for one artifact at the quick level.")
    compile_wait: float = seconds(
        0.25, "Seconds that a new function waits for its compiled code before it starts on the interpreter."
    )
    engine_compile_limit: float = seconds(
        1800.0,
        "Seconds that the compiler may take for the engine of a snapshot, such as JavaScript's, at the best level.",
        "It is compiled once for all functions of the engine; the release that brings the first one waits for it: a "
        "minute for JavaScript's, on a machine with two cores.",
    )
    lock_wait: float = seconds(10.0, "Seconds that a call may wait for the writer lock.")
    lock_hold: float = seconds(5.0, "Seconds that a call may hold the writer lock.")
    wal_limit: int = setting(
        WAL_LIMIT,
        "Bytes of the database's write-ahead log at which calls that may write are refused.",
        "The error is `wal_full`; before that, calls with SQL are delayed briefly.",
        least=16 * MIB,
        most=16 * GIB,
    )
    temp_limit: int = setting(
        GIB,
        "Bytes of temporary data that a call may use; at least twice `wal_limit`.",
        "The data are in `temp/` of the state directory.",
        least=32 * MIB,
        most=64 * GIB,
    )
    backup_limit: int = setting(
        4 * GIB,
        "Bytes that files of the database's backup may take that aren't at the store yet.",
        "They are in `backup/` of the state directory. While the store is away, those that wait are merged once they "
        "take half of it. If that isn't enough, the backup pauses, says so, and goes on with a snapshot once they are "
        "at the store. A snapshot must fit, which is smaller than the database.",
        least=64 * MIB,
        most=1024 * GIB,
    )
    synchronous: Literal["FULL", "NORMAL"] = setting(
        "FULL",
        "`FULL`: a call's writes are on disk before it is answered. `NORMAL`: a power failure may undo the last calls.",
    )
    fence: Literal["required", "partial"] = setting(
        "required",
        "`required`: run nothing if this machine lacks part of the workers' fence. `partial`: run anyway.",
        "The log and `status` say which part of the [fence](operations.md#the-fence) is missing. `skerry-edge call` "
        "follows this setting too.",
    )
    worker_memory: int = setting(
        512 * MIB,
        "Bytes of memory that a worker may have besides its guest's.",
        "A guest's memory is limited by `memory_pages`. Half of the worker's own memory is for loaded functions.",
        least=128 * MIB,
        most=1024 * GIB,
    )
    backup_bandwidth: int = setting(
        0,
        "Bytes a second that the node's backup may send to the store; 0 means no limit.",
        "A limit below what is written makes the [backup](operations.md#a-nodes-backup) fall behind.",
        least=0,
        most=GIB,
    )
    records_limit: int = setting(
        64 * MIB,
        "Bytes that the files with the logs of functions and the node may take.",
        "The oldest lines are deleted.",
        least=MIB,
        most=1024 * GIB,
    )
    records_age: float = setting(
        7 * DAY,
        "Seconds for which these logs are kept.",
        "A line may be kept up to a sixteenth longer.",
        least=60,
        most=10 * 365 * DAY,
        bounds="a minute to ten years",
    )
    otlp_url: str = setting(
        "",
        "`http(s)://HOST:PORT` of the collector that gets the node's traces by OTLP; if unset, none are sent.",
        "`/v1/traces` is added to it. Plain http is allowed only on this machine.",
    )
    otlp_headers_file: Path | None = setting(
        None, "File with headers that the collector requires, one NAME: VALUE a line."
    )
    otlp_ca: Path | None = setting(
        None, "PEM file with the CA of the collector's certificate, if the system doesn't trust it."
    )
    trace_share: float = setting(
        0.01, "Share of calls that is traced regardless of their callers, if traces are sent.", least=0, most=1
    )
    stop_limit: float = seconds(10.0, "Seconds that running calls may delay the node's exit.")
    start_wait: float = seconds(
        15.0, "Seconds to wait for the processes of an earlier run to release the state directory."
    )

    def __post_init__(self) -> None:
        host, _ = self.address
        _ = self.networks
        if not self.token and self.callers is None and not self.loopback:
            raise EdgeSettingsError(
                f"listen is {self.listen}, which others can reach: set SKERRY_EDGE_CALLERS to a file of callers, or "
                "SKERRY_EDGE_TOKEN (or SKERRY_EDGE_TOKEN_FILE) to a secret that callers must send, or listen on "
                "127.0.0.1"
            )
        if self.token and len(self.token) < SHORTEST_TOKEN:
            raise EdgeSettingsError(f"the token is shorter than {SHORTEST_TOKEN} characters: take a long random one")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise EdgeSettingsError("tls_cert and tls_key go together: the certificate and its key")
        if self.tls_client_ca is not None and (self.tls_cert is None or self.callers is None):
            raise EdgeSettingsError(
                "tls_client_ca is for the certificates of callers: it needs tls_cert and tls_key, and callers"
            )
        for each in fields(self):
            self._check(each.name, each.type, about_of(each))
        if self.otlp_url and not _fit_for_traces(self.otlp_url):
            # What is before an @ may be a password.
            shown = self.otlp_url.rpartition("@")[2]
            raise EdgeSettingsError(
                f"otlp_url is {shown!r}; it must be https://HOST:PORT, or http:// on this machine itself, without a "
                "user or password: otlp_headers_file is for them"
            )
        if not host:
            raise EdgeSettingsError(f"listen is {self.listen!r}; it must be HOST:PORT, as in {LISTEN}")

    def _check(self, name: str, kind: Any, said: About) -> None:
        """Check a value. Raises: EdgeSettingsError, when it isn't what the table says of the setting."""
        value = getattr(self, name)
        if get_origin(kind) is Literal and value not in get_args(kind):
            raise EdgeSettingsError(f"{name} is {value!r}; it can be {' or '.join(get_args(kind))}")
        if said.most is None:
            return
        if said.least is None:
            if not 0 < value <= said.most:
                raise EdgeSettingsError(f"{name} is {value} s; it must be above 0, and a day at most")
            return
        least = 2 * self.wal_limit if name == "temp_limit" else said.least
        if not least <= value <= said.most:
            unit = " s" if said.unit == "seconds" else ""
            raise EdgeSettingsError(f"{name} is {value}{unit}; it can be {said.bounds or f'{least} to {said.most}'}")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to listen on."""
        host, colon, port = self.listen.rpartition(":")
        if not colon or not port.isdigit() or int(port) > 65_535:
            raise EdgeSettingsError(f"listen is {self.listen!r}; it must be HOST:PORT, as in {LISTEN}")
        return host.removeprefix("[").removesuffix("]"), int(port)

    @property
    def code_memory(self) -> int:
        """Memory that the loaded functions of a worker may take, in bytes."""
        return self.worker_memory // 2

    @property
    def loopback(self) -> bool:
        return _is_loopback(self.address[0])

    @property
    def networks(self) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
        """The networks that `http_networks` names."""
        try:
            return [ipaddress.ip_network(text) for text in self.http_networks]
        except ValueError as error:
            raise EdgeSettingsError(f"http_networks has what is no network: {error}") from None

    @property
    def few(self) -> int:
        """Workers that one function's calls have at once while they are quick."""
        return max(1, processors() - 1)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _fit_for_traces(url: str) -> bool:
    """Tell whether spans, and the headers that go with them, may be sent to a URL."""
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        return False
    fit = parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host or ""))
    return fit and bool(host) and not ("@" in parts.netloc or parts.query or parts.fragment)
