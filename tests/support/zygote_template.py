"""A process that has made a zygote's imports, and forks a zygote for each request. `forked_zygotes` starts and asks it.

It imports nothing that a zygote wouldn't.
"""

import fcntl
import gc
import json
import os
import select
import socket
import sys
from typing import Any, Final

from edge_runtime.children import immortal, zygote
from edge_runtime.sandbox import fence

REQUEST_BYTES: Final = 1 << 20
"""Bytes of the longest request."""
INHERITED: Final = 16
"""Descriptors that come with a request at most."""


def serve(descriptor: int, parent: int) -> None:
    """Fork zygotes until the test process, which is the parent, closes its end or ends; in a fork, be the zygote.

    A request has the zygote's argument, environment, folder, and the numbers of the descriptors that come along, of
    which the first is the zygote's output. The answer is the zygote's process id, and its pidfd comes along.
    """
    fence.die_with_parent(parent)
    requests = socket.socket(fileno=descriptor)
    made = zygote._imports()
    zygote._imports = lambda: made
    # As each zygote does once it has imported: what is so already costs it nothing more.
    gc.collect()
    immortal.make_immortal()
    gc.freeze()
    requests.send(b"up")
    forks: dict[int, int] = {}
    waiting = select.poll()
    waiting.register(requests, select.POLLIN)
    while True:
        for ready, _ in waiting.poll():
            if ready in forks:
                waiting.unregister(ready)
                os.waitpid(forks.pop(ready), 0)
                os.close(ready)
                continue
            request, given, _, _ = socket.recv_fds(requests, REQUEST_BYTES, INHERITED)
            if not request:
                return
            pid = os.fork()
            if pid == 0:
                requests.close()
                for pidfd in forks:
                    os.close(pidfd)
                zygote.main(_begin(json.loads(request), given))
                return
            for each in given:
                os.close(each)
            os.setpgid(pid, pid)
            pidfd = os.pidfd_open(pid)
            forks[pidfd] = pid
            waiting.register(pidfd, select.POLLIN)
            socket.send_fds(requests, [b"%d" % pid], [pidfd])


def _begin(request: Any, given: list[int]) -> str:
    """Give this process what one that is started by exec would have; return its argument."""
    numbers = [1, *request["descriptors"]]
    above = max(*numbers, *given) + 1
    for at, each in enumerate(given):
        given[at] = fcntl.fcntl(each, fcntl.F_DUPFD, above)
        os.close(each)
    for each, number in zip(given, numbers, strict=True):
        os.dup2(each, number)
        os.close(each)
    os.dup2(1, 2)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv[1:] = [request["argument"]]
    return str(request["argument"])
