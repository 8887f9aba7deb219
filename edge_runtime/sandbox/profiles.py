"""What each kind of child may still do once it is fenced: with which folders, and which system calls. Pure.

Everything else fails with EPERM, as a library expects of a kernel that says no; what no honest child ever asks for
ends it with SIGSYS instead, so that it shows in the log. The lists are those of WasmEdge, libsql, Python and glibc at
work, with what newer or older versions of them take in their place.
"""

import errno
from pathlib import Path
from typing import Final, Literal

from edge_runtime import wal
from edge_runtime.sandbox import seccomp
from edge_runtime.sandbox.landlock import Access
from edge_runtime.sandbox.seccomp import Argument, Rule

ChildKind = Literal["worker", "applier", "compiler", "checkpointer", "check"]
CHILD_KINDS: Final[tuple[ChildKind, ...]] = ("worker", "applier", "compiler", "checkpointer")
"""The zygote's. A check has read what it is about before it is fenced: it opens nothing."""

READ: Final = Access.READ_FILE
WRITE: Final = (
    Access.READ_FILE | Access.READ_DIR | Access.WRITE_FILE | Access.TRUNCATE | Access.MAKE_REG | Access.REMOVE_FILE
)
REBUILD: Final = WRITE | Access.MAKE_DIR | Access.REMOVE_DIR | Access.REFER
RANDOM: Final = (Path("/dev/urandom"), READ)
"""SQLite's random numbers, a guest's randomblob() among them, are worth nothing without it."""
PROCESSOR: Final = (Path("/proc/cpuinfo"), READ)
"""LLVM looks at the processor there, where the processor itself doesn't say what it can do."""

_MEMORY: Final = ("brk", "madvise", "mprotect", "mremap", "munmap")
_SIGNALS: Final = ("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall")
_THREADS: Final = ("exit", "exit_group", "futex", "rseq", "sched_getaffinity", "sched_yield", "set_robust_list")
_SELF: Final = ("getcwd", "getegid", "geteuid", "getgid", "getpid", "getppid", "getrusage", "gettid", "getuid", "times")
_TIME: Final = ("clock_getres", "clock_gettime", "clock_nanosleep", "gettimeofday", "nanosleep", "time")
_WAITING: Final = ("epoll_pwait", "epoll_wait", "poll", "ppoll")
_STREAMS: Final = ("close", "read", "readv", "recvfrom", "recvmsg", "sendmsg", "sendto", "write", "writev")
_OPENED: Final = ("fstat", "getrandom", "lseek", "newfstatat", "pread64")
_FILES: Final = (
    "access", "faccessat", "faccessat2", "fchown", "fdatasync", "fstat", "fstatfs", "fsync", "ftruncate", "getrandom",
    "lseek", "lstat", "newfstatat", "open", "openat", "pread64", "pwrite64", "readlink", "readlinkat", "rename",
    "renameat", "renameat2", "stat", "statfs", "statx", "unlink", "unlinkat",
)  # fmt: skip
_BUILDING: Final = (
    "chmod", "fallocate", "fchmod", "fchmodat", "getdents64", "ioctl", "landlock_add_rule",
    "landlock_create_ruleset", "landlock_restrict_self", "mkdir", "mkdirat", "prctl", "rmdir", "set_tid_address",
    "sysinfo", "uname",
)  # fmt: skip
_NEVER: Final = (
    "accept", "accept4", "bind", "bpf", "connect", "execve", "execveat", "fork", "init_module", "finit_module",
    "io_uring_setup", "kexec_load", "listen", "mount", "open_by_handle_at", "perf_event_open", "pidfd_getfd",
    "pidfd_open", "pidfd_send_signal", "process_vm_readv", "process_vm_writev", "ptrace", "rt_sigqueueinfo", "setns",
    "socket", "tkill", "unshare", "userfaultfd", "vfork",
)  # fmt: skip

_F_GETFD, _F_SETFD, _F_GETFL, _F_GETLK, _F_SETLK, _F_SETLKW, _F_DUPFD_CLOEXEC = 1, 2, 3, 5, 6, 7, 1030
_MAP_TYPE, _MAP_PRIVATE, _MAP_ANONYMOUS = 0x0F, 0x02, 0x20
_THREAD: Final = 0x100 | 0x800 | 0x1_0000
"""CLONE_VM, CLONE_SIGHAND and CLONE_THREAD: what a new thread has and a new process hasn't."""
_NAMESPACES: Final = 0x7E02_0000


def files(kind: ChildKind, state: Path) -> list[tuple[Path, Access]]:
    """What a child can do below which path of the state directory."""
    match kind:
        case "compiler":
            # Of `aot` one folder, once it knows which.
            return [(state / "artifacts", READ), (state / "aot", REBUILD), PROCESSOR]
        case "checkpointer":
            return [(state / "db", WRITE), RANDOM]
        case _:
            written = [(state / "db", WRITE), (state / wal.TEMPORARY, WRITE)]
            return [*written, (state / "aot", READ), (state / "artifacts", READ), RANDOM]


def rules(kind: ChildKind) -> list[Rule]:
    """The system calls that a child can make, but for those of `own_rules`."""
    names: tuple[str, ...] = _MEMORY + _SIGNALS + _THREADS + _SELF + _TIME + _WAITING + _STREAMS
    names += _OPENED if kind == "check" else _FILES
    commands: tuple[int, ...] = (_F_GETFD, _F_SETFD, _F_GETFL, _F_GETLK, _F_SETLK, _F_SETLKW)
    found = [
        # Only asked for, and only one's own: to set them, even another process's, is the same call.
        Rule("prlimit64", (Argument(0, 0), Argument(2, 0))),
        # Anonymous memory that is shared escapes RLIMIT_DATA.
        Rule("mmap", (Argument(3, _MAP_PRIVATE, _MAP_TYPE),)),
        Rule("mmap", (Argument(3, 0, _MAP_ANONYMOUS),)),
        # glibc then makes its thread by clone, whose flags can be looked at.
        Rule("clone3", action=seccomp.fail(errno.ENOSYS)),
        *(Rule(name, action=seccomp.KILL) for name in _NEVER),
    ]
    if kind == "compiler":
        names += _BUILDING
        commands += (_F_DUPFD_CLOEXEC,)
        found.append(Rule("clone", (Argument(0, _THREAD, _THREAD | _NAMESPACES),)))
    # None that duplicates a descriptor (its number is what the rule on flock looks at) or has a signal sent (F_SETOWN).
    found += [Rule("fcntl", (Argument(1, command),)) for command in commands]
    return found + [Rule(name) for name in names]


def own_rules(pid: int, writer_lock: int | None) -> list[Rule]:
    """Those of one process: signals to itself, and the lock on the file of descriptor `writer_lock`. It has another
    lock's descriptor, the state directory's, which is not its to let go."""
    found = [Rule(name, (Argument(0, pid),)) for name in ("kill", "tgkill")]
    return found if writer_lock is None else [*found, Rule("flock", (Argument(0, writer_lock),))]
