"""Our programs as processes of their own, forked from one that has imported them: what `subprocess.Popen` starts.

A start by exec takes 0.2 to 1 s of a processor, nearly all of it for imports; a fork takes 0.02. The fork is this
process' own child (`program_template`), has the command line, environment, folder, descriptors, session and limits that
an exec would give it, and runs the program's `__main__`. What is different: it shares memory with others. Tests of a
start, of imports or of memory therefore have the fixture `programs_by_exec`; SKERRY_TEST_EXEC=1 has all tests do so.

Forked are the programs of `MODULES`, and those by ``-c`` whose text went through `may_be_forked`. Whatever is unusual,
such as another user, other limits, variables that Python or the C library look at first, is started by exec. Programs
with a library of ours preloaded (`may_be_preloaded`) are forked from a template that has it as well.
"""

import contextlib
import importlib
import inspect
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import control
import edge_runtime
from tests.support.environment import without_settings
from tests.support.program_request import Kind, Request

MODULES: Final[dict[str, Kind]] = {
    "control.cli": "programs",
    "edge_runtime.children.zygote": "zygotes",
    "edge_runtime.cli": "programs",
    "edge_runtime.cli.main": "programs",
    "edge_runtime.oneshot.check": "programs",
    "edge_runtime.oneshot.fresh_calls": "programs",
    "edge_runtime.oneshot.single_call": "programs",
}
"""What may follow ``python -m``, and which template forks it."""
STARTING: Final = {
    "control.cli": {"build", "dev", "push", "serve", "test", "up"},
    "edge_runtime.cli": {"call", "check", "doctor", "run"},
}
"""By program, commands that start programs of ours: their first or second words."""

_ROOT: Final = Path(__file__).parents[2]
_LAUNCH: Final = str(_ROOT / "control" / "local" / "launch.py")
_LAUNCH_UMASK: Final = 0o077
_EARLY: Final = ("PYTHON", "LD_", "MALLOC_", "GLIBC_", "SKERRY_EDGE_PURE")
"""Beginnings of the names of variables that are looked at before a program's own code, or while it imports."""
_TAKEN_ON: Final = {"PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}
"""Those of them that a fork takes on as well."""
_exec: Final = subprocess.Popen._execute_child  # type: ignore[attr-defined]
_PARAMETERS: Final = inspect.signature(_exec)
_TEMPLATE: Final = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.support.program_template import serve
serve(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
"""
_codes: Final[dict[str, bool]] = {}
_preloaded: Final[set[str]] = set()

Which = tuple[Kind, str]
"""A template: of the kind, and with the preloaded library."""
_PIPES: Final = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")

by_exec = False
"""Whether all programs are started by exec."""
real_compilation = False
"""Whether programs that are forked take no code that `kept_code` has."""


def may_be_preloaded(library: Path) -> None:
    """Say that programs with this library in LD_PRELOAD may be forked: its function `begin` does in a fork what its
    constructor does after an exec."""
    _preloaded.add(str(library))


def may_be_forked(code: str, *, starts_others: bool = False) -> str:
    """Say that a program for ``python -c`` with this text may be forked, and whether it starts programs of ours;
    return the text."""
    _codes[code] = starts_others
    return code


class Template:
    """A process that is asked for forks: `start` makes it."""

    def __init__(self, requests: socket.socket, process: subprocess.Popen[bytes] | None = None) -> None:
        self._requests = requests
        self._process = process

    @classmethod
    def start(cls, kind: Kind, environment: Mapping[str, str], code: str) -> "Template":
        """Start one that has made the imports of these programs. Raises: OSError, when it can't fork."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        start = [sys.executable, "-P", "-c", _TEMPLATE]
        with theirs:
            process = subprocess.Popen(
                [*start, str(_ROOT), str(theirs.fileno()), str(os.getpid()), kind, code],
                pass_fds=(theirs.fileno(),),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        made = cls(ours, process)
        try:
            made._answer()
        except BaseException:
            made.end()
            raise
        return made

    def fork(self, request: Request, descriptors: list[int]) -> int:
        """Return the process id of a new program. Raises: OSError, when the template has ended."""
        socket.send_fds(self._requests, [json.dumps(vars(request)).encode()], descriptors)
        return int(self._answer())

    @property
    def pid(self) -> int:
        """Its process id; 0 where this process didn't start it."""
        return 0 if self._process is None else self._process.pid

    def _answer(self) -> bytes:
        answer = self._requests.recv(64)
        if not answer:
            raise ConnectionError("the process that programs are forked from has ended")
        return answer

    def end(self) -> None:
        """End the process; the programs stay."""
        self._requests.close()
        if self._process is not None:
            self._process.wait()


class Programs:
    """Starts programs as `subprocess.Popen` does: by a fork where that is the same, by exec where it isn't."""

    def __init__(self, templates: dict[Which, Template], *, may_start: bool, code: str = "") -> None:
        """`may_start` tells whether a template that isn't there is started, with this file of `kept_code`."""
        self.forked = 0
        """How many programs were forked."""
        self._templates = templates
        self._may_start = may_start
        self._code = code
        self._environment = {name: value for name, value in without_settings().items() if name != "PYTHONPATH"}
        self._usual = _conditions(os.environ)
        self._owner = os.getpid()

    def fork(self, given: Mapping[str, Any]) -> int | None:
        """Take the arguments of `Popen._execute_child`; return the program's id, or None where it is to be exec."""
        # The kernel takes the thread for the parent that starts a process.
        if by_exec or os.getpid() != self._owner or threading.current_thread() is not threading.main_thread():
            return None
        request = _request(given)
        if request is None or _conditions(request.environment) != self._usual:
            return None
        preload = request.environment.get("LD_PRELOAD", "")
        # What is preloaded is for programs of nodes.
        which = kind, _ = "nodes" if preload else MODULES.get(request.module, "programs"), preload
        if which not in self._templates and not self._may_start:
            return None
        streams = ("p2cread", 0), ("c2pwrite", 1), ("errwrite", 2)
        descriptors = [*(number if given[name] == -1 else given[name] for name, number in streams), *given["pass_fds"]]
        try:
            if which not in self._templates:
                more = {"LD_PRELOAD": preload} if preload else {}
                self._templates[which] = Template.start(kind, {**self._environment, **more}, self._code)
            pid = self._templates[which].fork(request, descriptors)
        except BaseException as error:
            # It has ended, or its answer is still to come.
            if which in self._templates:
                self._templates.pop(which).end()
            if not isinstance(error, OSError):
                raise
            return None
        self.forked += 1
        return pid

    @property
    def template_pids(self) -> list[int]:
        """The process ids of the templates that are there."""
        return [template.pid for template in self._templates.values()]

    def end(self) -> None:
        """End the templates; the programs stay."""
        for template in self._templates.values():
            template.end()


def _request(given: Mapping[str, Any]) -> Request | None:
    """What the arguments of `Popen._execute_child` ask for; None where it isn't a program of ours, or is unusual."""
    unusual = ("executable", "preexec_fn", "shell", "startupinfo", "gid", "gids", "uid")
    if (
        any(given[name] for name in unusual)
        or not (given["close_fds"] and given["restore_signals"])
        or isinstance(given["args"], str | bytes | os.PathLike)
    ):
        return None
    words = [os.fsdecode(word) for word in given["args"]]
    mask, death = given["umask"], None
    if words[1:4] == ["-I", "-S", _LAUNCH]:
        parent, uid, gid, number = map(int, words[4:8])
        if (parent, uid, gid) != (os.getpid(), os.geteuid(), os.getegid()):
            return None
        mask, death, words = _LAUNCH_UMASK, (number, parent), words[8:]
    environment = os.environ if given["env"] is None else given["env"]
    request = _program(words)
    if request is None:
        return None
    request = replace(
        request,
        descriptors=[0, 1, 2, *given["pass_fds"]],
        environment={os.fsdecode(name): os.fsdecode(value) for name, value in environment.items()},
        folder=os.path.abspath(os.fsdecode(given["cwd"] or ".")),
        umask=_umask() if mask == -1 else mask,
        new_session=given["start_new_session"],
        group=-1 if given["process_group"] is None else given["process_group"],
        death=death,
    )
    return _with_paths(request)


def _program(words: list[str]) -> Request | None:
    """The program of a command line, where it is one of ours."""
    if not words or words[0] != sys.executable:
        return None
    rest = words[2:] if words[1:2] == ["-P"] else words[1:]
    match rest:
        case ["-m", module, *arguments] if module in MODULES:
            code = ""
            starts = any(module.startswith(each) and verbs & {*arguments[:2]} for each, verbs in STARTING.items())
        case ["-c", code, *arguments] if code in _codes:
            module, starts = "", _codes[code]
        case _:
            return None
    return Request(
        words=words,
        module=module,
        code=code,
        arguments=[rest[0], *arguments],
        paths=[],
        descriptors=[],
        environment={},
        folder="",
        umask=0,
        new_session=False,
        group=-1,
        death=None,
        starts_others=starts,
        real_compilation=real_compilation,
    )


def _with_paths(request: Request) -> Request | None:
    """The request with the folders that Python imports from first; None where other modules are in one of them."""
    first = [] if "-P" in request.words[1:2] else [request.folder if request.module else ""]
    folders = [folder for folder in request.environment.get("PYTHONPATH", "").split(os.pathsep) if folder]
    if not os.path.isdir(request.folder) or any(_has_others(Path(request.folder, each)) for each in [*first, *folders]):
        return None
    return replace(request, paths=[*first, *(os.path.join(request.folder, each) for each in folders)])


def _has_others(folder: Path) -> bool:
    """Whether another version of our packages is there."""
    packages = (control, edge_runtime)
    return any((folder / each.__name__).exists() and folder != Path(each.__path__[0]).parent for each in packages)


def _umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


def _conditions(environment: Mapping[str, str]) -> tuple[object, ...]:
    """What a process gets of the one that starts it, and that a fork gets of the template."""
    limits = [resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")]
    # A test may have ended what this process was started with: a program in the background ignores SIGQUIT.
    ignored = {number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN}
    early = {name: value for name, value in environment.items() if name.startswith(_EARLY) and name not in _TAKEN_ON}
    if early.get("LD_PRELOAD") in _preloaded:
        del early["LD_PRELOAD"]
    share = os.sched_getaffinity(0), os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)
    return early, limits, os.getresuid(), os.getresgid(), os.getgroups(), ignored, share


_used: list[Programs] = []


@contextlib.contextmanager
def used(code: str = "") -> Iterator[Programs]:
    """Have this process start our programs so, until the block ends. `code` is the file of `kept_code`, where there is
    one."""
    programs = Programs({}, may_start=True, code=code)
    _used.append(programs)
    before = subprocess.Popen._execute_child  # type: ignore[attr-defined]
    _start_by(programs)
    try:
        yield programs
    finally:
        subprocess.Popen._execute_child = before  # type: ignore[attr-defined]
        _used.remove(programs)
        programs.end()


def template_pids() -> list[int]:
    """Return the process ids of the templates that this process has: they stay when a program has ended."""
    return [pid for programs in _used for pid in programs.template_pids]


def use_nested(descriptor: int) -> None:
    """Have this process, which was forked itself, start our programs by asking the template on this descriptor."""
    template = Template(socket.socket(fileno=descriptor))
    preload = os.environ.get("LD_PRELOAD", "")
    kinds: tuple[Kind, ...] = ("nodes",) if preload else ("programs", "zygotes")
    _start_by(Programs({(kind, preload): template for kind in kinds}, may_start=False))
    # It imports uvloop, which the template has.
    importlib.import_module("tests.support.uvloop_children").use_subprocess()


def _start_by(programs: Programs) -> None:
    """Have `subprocess` ask these."""

    def execute(process: Any, *arguments: Any) -> None:
        given = _PARAMETERS.bind(process, *arguments).arguments
        pid = programs.fork(given)
        if pid is None:
            _exec(process, *arguments)
            return
        process.pid = pid
        process._child_created = True
        # As the original does: the child has its ends now.
        process._close_pipe_fds(*(given[name] for name in _PIPES))

    subprocess.Popen._execute_child = execute  # type: ignore[attr-defined]
