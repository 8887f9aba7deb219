"""Ports of 127.0.0.1 that are bound later than they are chosen, or are to be had again after an end."""

import errno
import socket

from control.local.process import choose_port, port_is_free

PORTS = range(61000, 65500)
"""Above those that Linux gives to sockets that name none, and below which each local service chooses its own."""


def free_port() -> int:
    """Return a port of 127.0.0.1 that the system gives to no one else, and no other test while this process lives."""
    return choose_port(None, PORTS, _taken)


def _taken(port: int) -> bool:
    """Take a port that is free; whether it could be had.

    Its mark is a name that the kernel knows once, and forgets with the process that has it.
    """
    if not port_is_free(port):
        return False
    with socket.socket(socket.AF_UNIX) as mark:
        try:
            mark.bind(f"\0skerry-test-port-{port}")
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
        # The name is kept by the descriptor, which nobody closes.
        mark.detach()
    return True
