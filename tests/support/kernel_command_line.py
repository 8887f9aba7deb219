"""What the kernel tells others of this process: its command line and environment, as an exec would have set them."""

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

_PR_SET_MM, _PR_SET_MM_MAP = 35, 14
_FIELDS: Final = {
    # Of the kernel's `struct prctl_mm_map`: each name with its place in /proc/self/stat, counted from 1.
    "start_code": 26,
    "end_code": 27,
    "start_data": 45,
    "end_data": 46,
    "start_brk": 47,
    "brk": 0,
    "start_stack": 28,
    "arg_start": 48,
    "arg_end": 49,
    "env_start": 50,
    "env_end": 51,
}


class _Map(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint64) for name in _FIELDS),
        ("auxv", ctypes.c_uint64),
        ("auxv_size", ctypes.c_uint32),
        ("exe_fd", ctypes.c_int32),
    )


_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.sbrk.restype = ctypes.c_void_p


def tell(words: Sequence[str], environment: Mapping[str, str]) -> None:
    """Have /proc tell these words and these variables of this process from now on.

    Raises: OSError, when the kernel doesn't.
    """
    # After the name of the program, which is in brackets and may have blanks in it.
    told = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    now = {name: int(told[place - 3]) for name, place in _FIELDS.items() if place}
    variables = [f"{name}={value}" for name, value in environment.items()]
    now |= dict(zip(("arg_start", "arg_end"), _kept(words), strict=True))
    now |= dict(zip(("env_start", "env_end"), _kept(variables), strict=True))
    wanted = _Map(**now, brk=_libc.sbrk(0), auxv=0, auxv_size=0, exe_fd=-1)
    size = ctypes.c_size_t(ctypes.sizeof(wanted))
    if _libc.prctl(_PR_SET_MM, _PR_SET_MM_MAP, ctypes.byref(wanted), size, 0) != 0:
        raise OSError(ctypes.get_errno(), "the kernel doesn't take the command line")


_buffers: list[ctypes.Array[ctypes.c_char]] = []


def _kept(words: Sequence[str]) -> tuple[int, int]:
    """Put words where the kernel can read them as long as the process lives; return the bounds."""
    text = b"".join(word.encode("utf-8", "surrogateescape") + b"\0" for word in words)
    buffer = ctypes.create_string_buffer(text, max(len(text), 1))
    _buffers.append(buffer)
    begin = ctypes.addressof(buffer)
    return begin, begin + len(text)
