"""A check of an upload, or calls without a node, that are taken over the moment that they are fenced.

`python -m tests.support.taken_alone PROGRAM ARGUMENT…`, where PROGRAM is `check`, `once` or `fresh`. SKERRY_TAKEN_OVER
has what it tries as a process of a kind: `{"kind": …, "tries": [[what, [argument, …]], …]}` (taken_over.ATTACKS). Each
is told on stderr in a line, `TRIED what: name of the errno, or "worked"`; then it ends.
"""

import errno
import json
import os
import sys

from edge_runtime.oneshot import check, fresh_calls, single_call
from edge_runtime.sandbox import fence
from edge_runtime.sandbox.allowlists import ProcessKind

from .taken_over import ATTACKS

_sealing = fence.seal
_PLAN = json.loads(os.environ["SKERRY_TAKEN_OVER"])


def seal(kind: ProcessKind, writer_lock: int | None = None) -> None:
    _sealing(kind, writer_lock)
    if kind != _PLAN["kind"]:
        return
    for what, arguments in _PLAN["tries"]:
        try:
            ATTACKS[what](*arguments)
        except OSError as error:
            told = errno.errorcode[error.errno or 0]
        else:
            told = "worked"
        os.write(2, f"TRIED {what}: {told}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    fence.seal = seal
    if sys.argv[1] == "check":
        sys.exit(check.main(sys.argv[2:]))
    sys.exit(single_call.main() if sys.argv[1] == "once" else fresh_calls.main())
