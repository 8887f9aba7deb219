"""What each kind of child may still do once it is fenced: its files, and its system calls. Pure.

A system call that isn't listed fails with EPERM, which libraries expect from a kernel that refuses. A call that no
honest child makes kills the child with SIGSYS instead, so that it shows up in the log. The lists are the calls that
WasmEdge, libsql, Python and glibc make in operation, and those that newer or older versions of them make instead.
"""

import errno
from pathlib import Path
from typing import Final, Literal

from edge_runtime import aot_cache, wal
from edge_runtime.sandbox import libseccomp
from edge_runtime.sandbox.landlock import Access
from edge_runtime.sandbox.libseccomp import Argument, Rule

ProcessKind = Literal["worker", "applier", "compiler", "checkpointer", "repeater", "check"]
CHILD_KINDS: Final[tuple[ProcessKind, ...]] = ("worker", "applier", "compiler", "checkpointer", "repeater")
"""The kinds of children that the zygote forks. `check` isn't one of them: it has read its input before it is fenced,
and opens nothing afterwards."""

READ: Final = Access.READ_FILE
WRITE: Final = (
    Access.READ_FILE | Access.READ_DIR | Access.WRITE_FILE | Access.TRUNCATE | Access.MAKE_REG | Access.REMOVE_FILE
)
REBUILD: Final = WRITE | Access.MAKE_DIR | Access.REMOVE_DIR | Access.REFER
RANDOM: Final = (Path("/dev/urandom"), READ)
"""SQLite reads its random numbers from /dev/urandom, including those for a guest's randomblob()."""
PROCESSOR: Final = (Path("/proc/cpuinfo"), READ)
"""LLVM reads /proc/cpuinfo if the processor itself doesn't report its features."""

_MEMORY: Final = ("brk", "madvise", "mprotect", "mremap", "munmap")
_SIGNALS: Final = ("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall")
_THREADS: Final = ("exit", "exit_group", "futex", "rseq", "sched_getaffinity", "sched_yield", "set_robust_list")
_SELF: Final = ("getcwd", "getegid", "geteuid", "getgid", "getpid", "getppid", "getrusage", "gettid", "getuid", "times")
_TIME: Final = ("clock_getres", "clock_gettime", "clock_nanosleep", "gettimeofday", "nanosleep", "time")
_WAITING: Final = ("epoll_pwait", "epoll_wait", "poll", "ppoll")
_STREAMS: Final = ("close", "read", "readv", "recvfrom", "sendto", "write", "writev")
"""Not sendmsg, which sends descriptors: the kernel limits how many of a user's descriptors are in flight, and the
zygote must be able to send the front its children's."""
_OPENED: Final = ("fstat", "getrandom", "lseek", "newfstatat", "pread64")
_FILES: Final = (
    "access", "faccessat", "faccessat2", "fchown", "fdatasync", "fstat", "fstatfs", "fsync", "ftruncate", "getrandom",
    "lseek", "lstat", "newfstatat", "open", "openat", "pread64", "pwrite64", "readlink", "readlinkat", "rename",
    "renameat", "renameat2", "stat", "statfs", "statx", "unlink", "unlinkat",
)  # fmt: skip
_BUILDING: Final = (
    "chmod", "fallocate", "fchmod", "fchmodat", "getdents64", "landlock_add_rule",
    "landlock_create_ruleset", "landlock_restrict_self", "mkdir", "mkdirat", "rmdir", "set_tid_address",
    "sysinfo", "uname",
)  # fmt: skip
_FOLDERS: Final = ("getdents64", "mkdir", "mkdirat", "rmdir")
_NEVER: Final = (
    "accept", "accept4", "bind", "bpf", "connect", "execve", "execveat", "fork", "init_module", "finit_module",
    "io_uring_setup", "kexec_load", "listen", "mount", "open_by_handle_at", "perf_event_open", "pidfd_getfd",
    "pidfd_open", "pidfd_send_signal", "process_vm_readv", "process_vm_writev", "ptrace", "rt_sigqueueinfo", "setns",
    "socket", "tkill", "unshare", "userfaultfd", "vfork",
)  # fmt: skip

_F_GETFD, _F_SETFD, _F_GETFL, _F_GETLK, _F_SETLK, _F_SETLKW, _F_DUPFD_CLOEXEC = 1, 2, 3, 5, 6, 7, 1030
_PR_SET_NAME: Final = 15
_IOCTLS: Final = (0x5401, 0x5413, 0x5421, 0x5451)
"""TCGETS and TIOCGWINSZ, which ask whether a file is a terminal, and FIONBIO and FIOCLEX."""
_MAP_TYPE, _MAP_PRIVATE, _MAP_ANONYMOUS = 0x0F, 0x02, 0x20
_THREAD: Final = 0x100 | 0x800 | 0x1_0000
"""CLONE_VM, CLONE_SIGHAND and CLONE_THREAD: set when a thread is created, not when a process is."""
_NAMESPACES: Final = 0x7E02_0000


def files(kind: ProcessKind, state: Path) -> list[tuple[Path, Access]]:
    """Return the paths that a kind of child may use in the state directory `state`, each with what it may do there."""
    match kind:
        case "compiler":
            # Later, when it knows its own folder in `aot`, the compiler narrows this to that folder.
            return [(state / "artifacts", READ), (state / aot_cache.FOLDER, REBUILD), PROCESSOR]
        case "checkpointer":
            return [(state / "db", WRITE), (state / wal.BACKUP, REBUILD), RANDOM]
        case "repeater":
            return [(state / "artifacts", READ), RANDOM]
        case _:
            written = [(state / "db", WRITE), (state / wal.TEMPORARY, WRITE)]
            return [*written, (state / aot_cache.FOLDER, READ), (state / "artifacts", READ), RANDOM]


def rules(kind: ProcessKind) -> list[Rule]:
    """Return the rules for the system calls of a kind of child, without those of `own_rules`."""
    names: tuple[str, ...] = _MEMORY + _SIGNALS + _THREADS + _SELF + _TIME + _WAITING + _STREAMS
    names += _OPENED if kind == "check" else _FILES
    commands: tuple[int, ...] = (_F_GETFD, _F_SETFD, _F_GETFL, _F_GETLK, _F_SETLK, _F_SETLKW)
    listed = [
        # Only for reading its own limits: the same call can set limits, also those of another process.
        Rule("prlimit64", (Argument(0, 0), Argument(2, 0))),
        # Private or anonymous only: shared anonymous memory would escape RLIMIT_DATA.
        Rule("mmap", (Argument(3, _MAP_PRIVATE, _MAP_TYPE),)),
        Rule("mmap", (Argument(3, 0, _MAP_ANONYMOUS),)),
        # glibc then creates threads with clone, whose flags a filter can read.
        Rule("clone3", action=libseccomp.fail(errno.ENOSYS)),
        *(Rule(name, action=libseccomp.KILL) for name in _NEVER),
    ]
    if kind == "checkpointer":
        names += _FOLDERS
    if kind == "compiler":
        names += _BUILDING
        commands += (_F_DUPFD_CLOEXEC,)
        listed.append(Rule("clone", (Argument(0, _THREAD, _THREAD | _NAMESPACES),)))
        # For naming its threads and for not outliving its parent.
        listed.append(Rule("prctl", (Argument(0, _PR_SET_NAME),)))
        # FIOSETOWN, with FIOASYNC, would have the kernel send the front a signal.
        listed += [Rule("ioctl", (Argument(1, request, 0xFFFF_FFFF),)) for request in _IOCTLS]
    # No command that duplicates a descriptor, since the rule on flock is about one number, and none that has a signal
    # sent (F_SETOWN).
    listed += [Rule("fcntl", (Argument(1, command),)) for command in commands]
    return listed + [Rule(name) for name in names]


def own_rules(pid: int, writer_lock: int | None) -> list[Rule]:
    """Return the rules that differ from process to process: signals to itself (`pid`), and flock on the descriptor
    `writer_lock`. A child has inherited the descriptor of the state directory's lock too, and must not unlock it."""
    signals = [Rule(name, (Argument(0, pid),)) for name in ("kill", "tgkill")]
    return signals if writer_lock is None else [*signals, Rule("flock", (Argument(0, writer_lock),))]
