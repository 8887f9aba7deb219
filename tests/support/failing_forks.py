"""A zygote that can't fork as long as the file exists that SKERRY_NO_FORKS names.

It is run in place of `edge_runtime.children.zygote`.
The limit of processes, which would do the same, doesn't hold for root.
"""

import errno
import os
import sys
from pathlib import Path

from edge_runtime.children import zygote

_fork = os.fork


def fork() -> int:
    if Path(os.environ["SKERRY_NO_FORKS"]).exists():
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return _fork()


if __name__ == "__main__":
    os.fork = fork
    zygote.main(sys.argv[1])
