"""The memories of guests: reserved for a program, looked into while it runs, and zeroed behind each call.

The hazard (measured on 0.14.1): where the reservation of a guest's address space fails, WasmEdge says OK with a NULL
base and 0 pages, and AOT code then reads and writes the host's memory. So memories are reserved here, before anything
is instantiated: address space must be unlimited, no process has many of them (they use it up), and each must have a
base and the pages that the module declares, one or more.
"""

import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from edge_runtime.wasmedge.declarations import CData, ffi, libc, library
from edge_runtime.wasmedge.errors import Unsafe
from edge_runtime.wasmedge.handles import Handle, Name
from edge_runtime.wasmedge.memory_imports import MODULE

PAGE = 65536
SMALL: Final = 4 * PAGE
"""Bytes of a memory up to which writing zeros costs less than giving its pages back and faulting them in again."""
LARGE: Final = 1024 * PAGE
"""Bytes of a memory from which it isn't kept: what is mapped for writing counts (`fence.DATA_BYTES`), used or not."""

_memory_pointer = library.WasmEdge_MemoryInstanceGetPointer
_memory_pages = library.WasmEdge_MemoryInstanceGetPageSize
_memset, _madvise, _mmap, _munmap = libc.memset, libc.madvise, libc.mmap, libc.munmap
_window, _inside = ffi.buffer, ffi.cast
_limit, _AS = resource.getrlimit, resource.RLIMIT_AS
_UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
_MODULE, _NAMES = Name(MODULE), (Name("0"), Name("1"))
_DONTNEED: Final = 4
"""MADV_DONTNEED: private pages are given back, and read as zeros."""
_PROT_NONE, _PROT_WRITE = 0, 3
# Of x86-64 and aarch64; Python 3.11 lacks some of the names.
_MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS, _MAP_NORESERVE, _MAP_FIXED_NOREPLACE = 0x02, 0x10, 0x20, 0x4000, 0x100000
_RESERVED: Final = _MAP_PRIVATE | _MAP_FIXED | _MAP_ANONYMOUS | _MAP_NORESERVE
_FAILED: Final = ffi.cast("void *", -1)


def check_address_space() -> None:
    """Refuse to go on where address space is limited (RLIMIT_AS, `ulimit -v`). Error: Unsafe."""
    limit = _limit(_AS)
    if limit != _UNLIMITED:
        raise Unsafe(
            f"this process has a limit on its address space ({limit[0]} bytes), under which a guest could leave its "
            "sandbox: start it without one (`ulimit -v unlimited`, no LimitAS in systemd)"
        )


def check_refusals() -> None:
    """Refuse to go on where the kernel takes addresses away that were reserved, when it refuses to map pages there (as
    Linux does before 6.12): what the host maps next could come to lie inside a guest's memory. Error: Unsafe."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    # More than the machine has: where memory may be overcommitted without a limit, nothing is refused.
    more = (int(lines["MemTotal"].split()[0]) + int(lines["SwapTotal"].split()[0])) * 1024 + LARGE
    base = _mmap(ffi.NULL, more, _PROT_NONE, _RESERVED & ~_MAP_FIXED, -1, 0)
    if base == _FAILED:
        return
    refused = _mmap(base, more, _PROT_WRITE, _RESERVED & ~_MAP_NORESERVE, -1, 0) == _FAILED
    # It fails where something is mapped.
    hole = refused and _mmap(base, PAGE, _PROT_NONE, _RESERVED | _MAP_FIXED_NOREPLACE, -1, 0) != _FAILED
    _munmap(base, more)
    if hole:
        raise Unsafe(
            "this kernel takes a reservation away where it refuses memory, through which a guest could leave its "
            "sandbox: run Linux 6.12 or later, or never refuse memory (`sysctl vm.overcommit_memory=1`)"
        )


class ReservedMemories(Handle):
    """The memories that a program imports, for one instance after the other."""

    _delete = "WasmEdge_ModuleInstanceDelete"

    def __init__(self, limits: Sequence[tuple[int, int]]) -> None:
        """`limits`: the pages of each memory, and the most that it may grow to. Error: Unsafe, and nothing is left."""
        check_address_space()
        self._own(library.WasmEdge_ModuleInstanceCreate(_MODULE.value))
        self._kept = sum(minimum for minimum, _ in limits) * PAGE < LARGE
        self.memories = [self._add(name, *each) for name, each in zip(_NAMES, limits, strict=False)]

    def _add(self, name: Name, minimum: int, maximum: int) -> "ReservedMemory":
        kind = library.WasmEdge_MemoryTypeCreate((True, False, minimum, maximum))
        made = library.WasmEdge_MemoryInstanceCreate(kind)
        library.WasmEdge_MemoryTypeDelete(kind)
        if made:
            # From here the module owns the memory.
            library.WasmEdge_ModuleInstanceAddMemory(self.pointer, name.value, made)
        base = _memory_pointer(made, 0, 1) if made else None
        pages = _memory_pages(made) if made else 0
        if not base or pages != minimum or minimum < 1:
            self.close()
            raise Unsafe(f"the guest's memory was not reserved ({pages} pages of {minimum}): nothing was run in it")
        return ReservedMemory(made, base, minimum, maximum)

    def clear(self) -> bool:
        """Make all as they were reserved, for the next instance; False where they must be reserved anew."""
        return self._kept and all(memory.clear() for memory in self.memories)


class ReservedMemory:
    """One memory: its address, its base, and a window on the pages that it begins with."""

    __slots__ = ("_maximum", "_minimum", "base", "pointer", "size", "window")

    def __init__(self, pointer: CData, base: CData, minimum: int, maximum: int) -> None:
        self.pointer, self.base = pointer, base
        self.size = minimum * PAGE
        """Bytes that it begins with."""
        self.window = _window(base, self.size)
        self._minimum, self._maximum = minimum, maximum

    def clear(self) -> bool:
        """Have zeros, and as many pages as at the beginning; whether that could be done."""
        pages = _memory_pages(self.pointer)
        if pages != self._minimum and not self._shrink(pages):
            return False
        if self.size <= SMALL:
            _memset(self.base, 0, self.size)
            return True
        return bool(_madvise(self.base, self.size, _DONTNEED) == 0)

    def _shrink(self, pages: int) -> bool:
        """Give back the pages that the guest has grown by: only reserved again, as before, and not counted."""
        inside = _inside("Inside *", self.pointer)
        if (inside.pages, inside.most, inside.base) != (pages, self._maximum, self.base):
            # It isn't what is known of 0.14.1.
            return False
        more = (pages - self._minimum) * PAGE
        if _mmap(self.base + self.size, more, _PROT_NONE, _RESERVED, -1, 0) != self.base + self.size:
            return False
        inside.pages = self._minimum
        return bool(_memory_pages(self.pointer) == self._minimum)


class Memory:
    """A live instance's memory. `buffer` is a window on it, valid while the instance is; every access is checked
    here, and the window is made again when the guest has grown its memory."""

    __slots__ = ("_pointer", "buffer", "size")

    def __init__(self) -> None:
        self._pointer: CData = None
        self.buffer: CData = b""
        self.size = 0

    def open(self, space: ReservedMemory) -> Self:
        """Look at one of `ReservedMemories.memories`."""
        self._pointer, self.buffer, self.size = space.pointer, space.window, space.size
        return self

    def close(self) -> None:
        """Forget the memory: it becomes another instance's, or nobody's."""
        self._pointer, self.buffer, self.size = None, b"", 0

    def need(self, end: int) -> None:
        """Make sure that the bytes below `end` are the guest's. Error: IndexError."""
        if end > self.size:
            self._look_again()
            if end > self.size:
                raise IndexError(f"address {end} is outside the guest's memory of {self.size} bytes")

    def grow(self, end: int) -> bool:
        """Have the bytes below `end`, with more pages where it takes them; False where there are no more."""
        if self._pointer is None:
            return False
        if end > self.pages() * PAGE:
            more = (end - 1) // PAGE + 1 - self.pages()
            if library.WasmEdge_MemoryInstanceGrowPage(self._pointer, more):
                return False
        self._look_again()
        return True

    def _look_again(self) -> None:
        """The guest may have more pages than when it was last looked at."""
        if self._pointer is not None:
            self.size = self.pages() * PAGE
            self.buffer = _window(_memory_pointer(self._pointer, 0, 1), self.size)

    def pages(self) -> int:
        """Pages that the guest has now."""
        return 0 if self._pointer is None else int(_memory_pages(self._pointer))

    def read(self, start: int, length: int) -> bytes:
        """A copy of the guest's bytes. Error: IndexError."""
        end = start + length
        if end > self.size:
            self.need(end)
        return self.buffer[start:end]  # type: ignore[no-any-return]

    def write(self, start: int, data: bytes) -> None:
        """Copy bytes into the guest. Error: IndexError."""
        end = start + len(data)
        if end > self.size:
            self.need(end)
        self.buffer[start:end] = data
