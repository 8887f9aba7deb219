"""The settings of a node, given as flags or SKERRY_EDGE_* variables (docs/settings.md lists them).

Durations are in seconds, sizes in bytes.
"""

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

LISTEN: Final = "127.0.0.1:8087"
MIB: Final = 1024 * 1024
WAL_LIMIT: Final = 256 * MIB
SHORTEST_TOKEN: Final = 16
"""Characters that the node's token has at least."""


class EdgeSettingsError(Exception):
    """A setting is wrong; the message names it and says what it can be."""


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class PoolLimits:
    """The part of the settings that the pool needs."""

    workers: int
    depth: int = 8
    """Calls that one worker may have at once, of functions whose calls are short."""
    concurrency: int = 1
    """Workers that one function's calls may have at once, if its manifest doesn't say."""
    queue: int = 1024
    """Calls that may wait for a worker."""
    function_queue: int = 256
    """Calls of one function that may wait, if its manifest doesn't say."""
    queue_wait: float = 10.0
    """How long a call may wait for a worker, or for a change of release."""
    lock_wait: float = 10.0
    """How long a call may wait for the writer lock."""
    lock_hold: float = 5.0
    """How long a call may hold the writer lock."""
    few: int = 1
    """Workers that one function's calls have at once while they are quick."""


@dataclass(frozen=True)
class EdgeSettings:
    """The settings of `skerry-edge run`. Raises: EdgeSettingsError, when one is wrong."""

    state: Path
    """The state directory."""
    listen: str = LISTEN
    """HOST:PORT of the local HTTP; a host that isn't loopback needs a token or a file of callers."""
    token: str = field(default="", repr=False)
    """If it isn't empty, callers must send it as `Authorization: Bearer`; where there is a file of callers, it is good
    for the node's own pages alone."""
    token_file: Path | None = None
    """The file that `token` was read from, which is read again when it changes."""
    callers: Path | None = None
    """The file with the node's callers; without one all who may ask are one caller, without a name."""
    tls_cert: Path | None = None
    """PEM file with the certificate of the local HTTP and its chain; without one it is plain HTTP."""
    tls_key: Path | None = None
    """PEM file with the certificate's key."""
    tls_client_ca: Path | None = None
    """PEM file with the authorities of callers' certificates; with one, clients are asked for theirs."""
    secrets: Path | None = None
    """The file with the values of functions' secrets; by default secrets.toml in the state directory."""
    http_networks: tuple[str, ...] = ()
    """Networks, as 10.0.0.0/8, to which names may lead functions' HTTP requests besides public addresses."""
    hosts: tuple[str, ...] = ()
    """Names that the Host header may have besides localhost and its addresses, when there is no token."""
    workers: int = field(default_factory=lambda: 2 * processors())
    depth: int = 8
    """Calls that one worker may have at once, of functions whose calls are short."""
    concurrency: int = field(default_factory=processors)
    """Workers that one function may have at once, if its manifest doesn't say; all of them if there are fewer."""
    queue_limit: int = 1024
    """Calls that may wait for a worker."""
    function_queue: int = 256
    """Calls of one function that may wait for a worker, if its manifest doesn't say."""
    queue_wait: float = 10.0
    """How long a call may wait for a worker, or for a change of release."""
    body_limit: int = 10 * MIB
    """Size that one request's body may have."""
    body_memory: int = 256 * MIB
    """Size of all request bodies together that are being received or wait."""
    answer_memory: int = 256 * MIB
    """Size of all answers together that clients haven't read; above it the longest unread one is given up."""
    body_wait: float = 30.0
    """How long a request's body may take to come."""
    flip_limit: float = 5.0
    """How long a change of release waits for calls that may write and have sent what can't be sent twice."""
    apply_limit: float = 60.0
    """How long a release's schema changes and probes may take together."""
    compile_limit: float = 300.0
    """How long the compiler may take for one artifact at the quick level."""
    compile_wait: float = 0.25
    """How long a new function waits for its compiled code before it starts on the interpreter."""
    lock_wait: float = 10.0
    """How long a call may wait for the writer lock."""
    lock_hold: float = 5.0
    """How long a call may hold the writer lock."""
    synchronous: str = "FULL"
    """FULL: what an answered call wrote is on disk. NORMAL: a loss of power may undo the last calls."""
    wal_limit: int = WAL_LIMIT
    """Size of the database's write-ahead log from which on calls that may write are refused."""
    temp_limit: int = 1024 * MIB
    """Size of the temporary data that a call may have on disk, and of the write-ahead log in any case."""
    fence: str = "required"
    """required: run no function if the machine lacks a piece of the workers' fence. partial: run with what it has."""
    worker_memory: int = 512 * MIB
    """Memory that a worker may have besides that of the guest that it runs."""
    records_limit: int = 64 * MIB
    """Size of the files that keep what functions and the node have logged."""
    records_age: float = 7 * 86_400.0
    """How long that is kept."""
    otlp_url: str = ""
    """http(s)://HOST:PORT of the collector that gets the node's traces by OTLP; empty: none are sent. It must be
    https beyond this machine."""
    otlp_headers_file: Path | None = None
    """File with headers that the collector asks for, NAME: VALUE a line."""
    otlp_ca: Path | None = None
    """PEM file with the authority of the collector's certificate, where the system doesn't know it."""
    trace_share: float = 0.01
    """The share of calls that is traced whatever their callers do, where traces are sent."""
    stop_limit: float = 10.0
    """How long running calls may hold up the end of the node."""
    start_wait: float = 15.0
    """How long to wait for the processes of an earlier run to let the state directory go."""

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
        if self.synchronous not in ("FULL", "NORMAL"):
            raise EdgeSettingsError(f"synchronous is {self.synchronous!r}; it can be FULL or NORMAL")
        if self.fence not in ("required", "partial"):
            raise EdgeSettingsError(f"fence is {self.fence!r}; it can be required or partial")
        for name, least, most in (
            ("workers", 1, 100),
            ("depth", 1, 16),
            ("concurrency", 1, 100),
            ("queue_limit", 1, 1_000_000),
            ("function_queue", 1, 1_000_000),
            ("body_limit", 0, 1024 * MIB),
            ("worker_memory", 128 * MIB, 1024 * 1024 * MIB),
            ("body_memory", 1, 1024 * 1024 * MIB),
            ("answer_memory", 1, 1024 * 1024 * MIB),
            ("wal_limit", 16 * MIB, 16 * 1024 * MIB),
            ("records_limit", MIB, 1024 * 1024 * MIB),
            ("temp_limit", 2 * self.wal_limit, 64 * 1024 * MIB),
        ):
            if not least <= getattr(self, name) <= most:
                raise EdgeSettingsError(f"{name} is {getattr(self, name)}; it can be {least} to {most}")
        for name in (
            "queue_wait", "body_wait", "flip_limit", "apply_limit", "compile_limit", "compile_wait", "lock_wait",
            "lock_hold", "stop_limit", "start_wait",
        ):  # fmt: skip
            if not 0 < getattr(self, name) <= 86_400:
                raise EdgeSettingsError(f"{name} is {getattr(self, name)} s; it must be above 0, and a day at most")
        if not 60 <= self.records_age <= 10 * 365 * 86_400:
            raise EdgeSettingsError(f"records_age is {self.records_age} s; it can be a minute to ten years")
        if not 0 <= self.trace_share <= 1:
            raise EdgeSettingsError(f"trace_share is {self.trace_share}; it can be 0 to 1")
        if self.otlp_url and not _fit_for_traces(self.otlp_url):
            # What is before an @ may be a password.
            shown = self.otlp_url.rpartition("@")[2]
            raise EdgeSettingsError(
                f"otlp_url is {shown!r}; it must be https://HOST:PORT, or http:// on this machine itself, without a "
                "user or password: otlp_headers_file is for them"
            )
        if not host:
            raise EdgeSettingsError(f"listen is {self.listen!r}; it must be HOST:PORT, as in {LISTEN}")

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
    def limits(self) -> PoolLimits:
        return PoolLimits(
            self.workers,
            self.depth,
            self.concurrency,
            self.queue_limit,
            self.function_queue,
            self.queue_wait,
            self.lock_wait,
            self.lock_hold,
            max(1, processors() - 1),
        )


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
