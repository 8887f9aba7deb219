"""``python -m bench.parts.large_echo PORT``: the floor under a large body, which passes through two processes and comes
back.

The first reads a request whole and sends its body over a Unix socket to the second, which sends it back once it has all
of it; so does the first.
"""

import os
import socket
import sys

BUFFER = 1 << 20


def main(port: int) -> None:
    front, worker = socket.socketpair()
    if os.fork() == 0:
        front.close()
        _work(worker)
        os._exit(0)
    worker.close()
    # Last: a client that reaches the first process then finds the second ready.
    listener = socket.create_server(("127.0.0.1", port))
    while True:
        client, _ = listener.accept()
        with client:
            while _pass_on(client, front):
                pass


def _pass_on(client: socket.socket, worker: socket.socket) -> bool:
    """Answer one request with what the worker sends back; return False if the client has disconnected."""
    head = b""
    while b"\r\n\r\n" not in head:
        got = client.recv(BUFFER)
        if not got:
            return False
        head += got
    head, _, first = head.partition(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].split()[0])
    body = bytearray(size)
    body[: len(first)] = first
    _fill(client, memoryview(body)[len(first) :])
    worker.sendall(size.to_bytes(8, "big"))
    worker.sendall(body)
    _fill(worker, memoryview(body))
    client.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
    client.sendall(body)
    return True


def _work(front: socket.socket) -> None:
    while size := front.recv(8, socket.MSG_WAITALL):
        body = bytearray(int.from_bytes(size, "big"))
        _fill(front, memoryview(body))
        front.sendall(body)


def _fill(sock: socket.socket, view: memoryview) -> None:
    while view:
        got = sock.recv_into(view)
        if not got:
            raise ConnectionError("the other side has left")
        view = view[got:]


if __name__ == "__main__":
    main(int(sys.argv[1]))
