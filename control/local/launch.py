"""A script that becomes another program, one that exits when its parent process does.

``python launch.py PARENT UID GID SIGNAL PROGRAM ARGUMENT…``: switches to the user and group, asks the kernel to send
SIGNAL when the parent dies (even by kill -9), and executes PROGRAM. `control.local.process` runs it: doing this between
fork and exec isn't safe in a parent with threads. It imports only the standard library, and nothing imports it.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    parent, uid, gid, death_signal = (int(a) for a in arguments[:4])
    program = arguments[4:]
    os.umask(0o077)
    if uid != os.geteuid():
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    # After setuid, which would clear it. The parent is checked below, since it may have died before this call.
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        sys.exit("the parent is gone")
    os.execv(program[0], program)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
