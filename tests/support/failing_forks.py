"""A zygote that can't fork as long as the file exists that SKERRY_NO_FORKS names; where that has something in it, it
can't send descriptors.

It is run in place of `edge_runtime.children.zygote`.
The limit of processes, which would do the same, doesn't hold for root.
"""

import errno
import os
import socket
import sys
from pathlib import Path
from typing import Any

from edge_runtime.children import zygote

_fork, _send_fds = os.fork, socket.send_fds
_FILE = Path(os.environ["SKERRY_NO_FORKS"])


def fork() -> int:
    if _FILE.exists() and not _FILE.read_text():
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return _fork()


def send_fds(*given: Any) -> int:
    if _FILE.exists() and _FILE.read_text():
        raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
    return _send_fds(*given)


if __name__ == "__main__":
    os.fork, socket.send_fds = fork, send_fds  # type: ignore[assignment]
    zygote.main(sys.argv[1])
