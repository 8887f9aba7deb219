"""The zygotes of fronts in the tests' own process, forked from a process that has made their imports already.

By exec a zygote's start takes 0.25 s of a processor, nearly all of it for imports; a fork takes 0.03. What is different
for the zygote: its parent is that process, which ends with the test process, and it shares memory with it. Tests of a
zygote's start, command line or memory therefore have the fixture `zygotes_by_exec`.
"""

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Final

import msgspec
import pytest

from edge_runtime.ipc import births, frames, zygote_client

_OWN: Final = "PYTEST_CURRENT_TEST"
"""The variable that is another one for each test, and that no program looks at."""
_TEMPLATE: Final = "tests.support.zygote_template"
_WORDS: Final = [sys.executable, "-P", "-m", zygote_client.ZygoteClient.PROGRAM]


class Forked:
    """A zygote that the template has forked, and reaps: what a front uses of a `subprocess.Popen`."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._pidfd = pidfd

    def poll(self) -> int | None:
        """Return None while the process is there, reaped or not, and then 0, however it ended."""
        if self._pidfd >= 0:
            try:
                signal.pidfd_send_signal(self._pidfd, 0)
                return None
            except ProcessLookupError:
                os.close(self._pidfd)
                self._pidfd = -1
        return 0

    def kill(self) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


class Template:
    """The process that is forked, started with an environment."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.like = _conditions(environment)
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", f"from {_TEMPLATE} import serve; serve({theirs.fileno()}, {os.getpid()})"],
                pass_fds=(theirs.fileno(),),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # As for a zygote: Ctrl-C is for the test process alone.
                process_group=0,
            )
        self._answer()

    def fork(self, argument: str, environment: Mapping[str, str], descriptors: Sequence[int], output: int) -> Forked:
        """Fork a zygote. Raises: OSError, when the template has ended."""
        arguments = msgspec.json.decode(argument, type=births.Arguments)
        arguments = msgspec.structs.replace(arguments, parent=self._process.pid)
        request = {
            "argument": frames.encode_json(arguments).decode(),
            "environment": dict(environment),
            "descriptors": list(descriptors),
            "folder": os.getcwd(),
        }
        socket.send_fds(self._requests, [json.dumps(request).encode()], [output, *descriptors])
        pid, pidfds = self._answer()
        return Forked(int(pid), *pidfds)

    def _answer(self) -> tuple[bytes, list[int]]:
        answer, descriptors, _, _ = socket.recv_fds(self._requests, 64, 1)
        if not answer:
            raise ConnectionError("the process that zygotes are forked from has ended")
        return answer, descriptors

    def end(self) -> None:
        """End the process, and so the zygotes that are left."""
        self._requests.close()
        self._process.wait()


class Zygotes:
    """Starts zygotes as `subprocess.Popen` does: by a fork where that is the same, by exec where it isn't."""

    def __init__(self) -> None:
        self._usual = dict(os.environ)
        self._template: Template | None = None

    def start(self, words: list[str], *, pass_fds: Sequence[int], env: Mapping[str, str], **more: Any) -> Any:
        """Take what `ZygoteClient` starts a zygote with."""
        template = self._fitting(words, env)
        if template is None:
            return subprocess.Popen(words, pass_fds=pass_fds, env=env, **more)
        output = more.pop("stdout")
        assert more == {"stdin": subprocess.DEVNULL, "stderr": output, "process_group": 0}, more
        try:
            return template.fork(words[-1], env, pass_fds, output)
        except BaseException:
            # It has ended, or its answer is still to come.
            self.end()
            raise

    def _fitting(self, words: list[str], environment: Mapping[str, str]) -> Template | None:
        """Return the template if what it forks is what exec would make, else None."""
        # The kernel takes the thread for the parent that starts a process.
        if words[:-1] != _WORDS or threading.current_thread() is not threading.main_thread():
            return None
        if self._template is None:
            changed = {name for name, value in environment.items() if self._usual.get(name) != value}
            if changed - {_OWN, "PYTHONPATH"}:
                return None
            self._template = Template(environment)
        return self._template if self._template.like == _conditions(environment) else None

    def end(self) -> None:
        if self._template is not None:
            self._template.end()
            self._template = None


def _conditions(environment: Mapping[str, str]) -> tuple[object, ...]:
    """What a process gets of the one that starts it, and may look at while it imports."""
    limits = [resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")]
    # A test may have ended what this process was started with: a program in the background ignores SIGQUIT.
    ignored = {number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN}
    return {name: value for name, value in environment.items() if name != _OWN}, limits, os.getresuid(), ignored


@contextlib.contextmanager
def used() -> Iterator[None]:
    """Have all fronts in this process start their zygotes so, until the block ends."""
    zygotes = Zygotes()
    with pytest.MonkeyPatch.context() as patched:
        started = SimpleNamespace(Popen=zygotes.start, DEVNULL=subprocess.DEVNULL)
        patched.setattr(zygote_client, "subprocess", started)
        try:
            yield
        finally:
            zygotes.end()
