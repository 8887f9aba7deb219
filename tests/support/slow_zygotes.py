"""A zygote that comes a step further in its start with each line of the FIFO that SKERRY_STEPS names, and is up at its
end. It forks no children.

It is run in place of `edge_runtime.children.zygote`.
"""

import os
import socket
import sys
from pathlib import Path

import msgspec

from edge_runtime.ipc import frames
from edge_runtime.ipc.births import MESSAGE_BYTES, Arguments, Starting, ZygoteUp

if __name__ == "__main__":
    control = socket.socket(fileno=msgspec.json.decode(sys.argv[1], type=Arguments).control)
    with Path(os.environ["SKERRY_STEPS"]).open() as lines:
        for _ in lines:
            control.send(frames.encode_json(Starting()))
    control.send(frames.encode_json(ZygoteUp()))
    control.recv(MESSAGE_BYTES)
