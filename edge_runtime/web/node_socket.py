"""The socket in the state directory through which a node tells `skerry-edge` commands about itself.

Any user with access to the state directory may ask: no token, address or certificate is needed, and no other node can
answer. A question is one line with a document's name; the answer is that document as JSON, up to the end of the stream.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from edge_runtime import clock

FILE: Final = "node.sock"
ANSWER_WAIT: Final = 5.0
"""Seconds for the question to come, and for the answer."""

log = logging.getLogger("skerry.front")


class NodeAbsent(Exception):
    """No node is running on the state directory; the message says so."""


class NodeSilent(Exception):
    """A process holds the state directory but doesn't answer; the message says which one, and what to do."""


class NodeSocket:
    def __init__(self, state: Path, documents: Mapping[str, Callable[[], dict[str, Any]]]) -> None:
        self._state = state
        self.documents = dict(documents)
        """The available documents, by name."""
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Answer from now on. The state directory must be locked: a socket file found there is left over from an
        earlier run.

        A node that can't open it serves anyway, and logs the reason.
        """
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _short_path(self._state) as path:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                made.bind(path)
                os.chmod(path, 0o600)
            self._server = await asyncio.start_unix_server(self._answer, sock=made)
        except OSError as error:
            made.close()
            log.warning("`skerry-edge status` can't ask this node: %s can't be made: %s", self._state / FILE, error)

    def close(self) -> None:
        """Stop answering."""
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(OSError):
                (self._state / FILE).unlink()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with clock.timeout(ANSWER_WAIT):
                name = (await reader.readline()).decode(errors="replace").strip()
                if document := self.documents.get(name):
                    writer.write(orjson.dumps(document(), default=str))
                    await writer.drain()
        except (TimeoutError, ConnectionError, ValueError):
            # The command has disconnected or asked for nothing.
            pass
        except Exception:
            log.exception("a command couldn't be told about this node")
        finally:
            writer.close()


def ask(state: Path, name: str) -> dict[str, Any]:
    """Return a document of the node that runs on the state directory.

    Raises: NodeAbsent, if none is running; NodeSilent, if one holds the directory but doesn't answer.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking, _short_path(state) as path:
            asking.settimeout(ANSWER_WAIT)
            asking.connect(path)
            asking.sendall(name.encode() + b"\n")
            answer = b"".join(iter(lambda: asking.recv(1 << 16), b""))
        document = orjson.loads(answer)
    except PermissionError as error:
        raise NodeSilent(f"the node on {state} can't be asked: {error.strerror}: run this as its user") from None
    except (OSError, orjson.JSONDecodeError) as error:
        holder = _holder(state)
        if holder is None:
            raise NodeAbsent(f"no node runs on {state}") from None
        raise NodeSilent(
            f"process {holder} has {state} and doesn't answer ({error or 'no answer'}): it starts or stops, or is of "
            "an earlier version: ask again, or ask its local HTTP: leave --state out, and give --listen"
        ) from None
    if not isinstance(document, dict):
        raise NodeSilent(f"the node on {state} doesn't know {name}: it is of another version than this command")
    return document


def _holder(state: Path) -> str | None:
    """Return the process that holds the state directory's lock; None if none does."""
    try:
        with (state / "lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return lock.read(32).decode(errors="replace").strip() or "unknown"
    except OSError:
        pass
    return None


@contextlib.contextmanager
def _short_path(state: Path) -> Iterator[str]:
    """Yield the socket's path through a descriptor of its folder: an address has at most 107 bytes, a path may have
    more."""
    folder = os.open(state, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{FILE}"
    finally:
        os.close(folder)
