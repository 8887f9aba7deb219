"""The listening socket that a service manager hands over, following systemd's socket activation protocol.

The manager keeps it open while one process of the node exits and the next one starts: clients' connections wait in the
kernel meanwhile, and none is refused.
"""

import os
import socket
from collections.abc import MutableMapping
from typing import Final

from edge_runtime.settings import EdgeSettingsError

FIRST: Final = 3
"""The file descriptor of the first socket that is handed over."""


def taken(environment: MutableMapping[str, str]) -> socket.socket | None:
    """Take the socket that LISTEN_PID and LISTEN_FDS announce to this process; None if they announce none.

    The variables are removed, so that no child takes them for its own. Raises: EdgeSettingsError, if the socket can't
    be the address of the local HTTP.
    """
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = environment.get("LISTEN_FDS", "")
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        environment.pop(name, None)
    if count != "1":
        raise EdgeSettingsError(f"{count or 'no'} sockets are handed over (LISTEN_FDS): a node takes one ListenStream=")
    try:
        handed = socket.socket(fileno=FIRST)
        handed.set_inheritable(False)
        listens = handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise EdgeSettingsError(f"the socket that is handed over (LISTEN_FDS) can't be used: {error}") from None
    if handed.family not in (socket.AF_INET, socket.AF_INET6) or not listens:
        handed.close()
        raise EdgeSettingsError(
            "the socket that is handed over doesn't listen on an address and port: ListenStream=HOST:PORT, with "
            "Accept=no, is what a node takes"
        )
    return handed


def address(handed: socket.socket) -> str:
    """Return the socket's address as HOST:PORT."""
    host, port = handed.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def has(handed: socket.socket, host: str, port: int) -> bool:
    """Return whether a host and port are the socket's address."""
    try:
        found = socket.getaddrinfo(host, port, handed.family, socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return False
    return any(place[:2] == handed.getsockname()[:2] for *_, place in found)
