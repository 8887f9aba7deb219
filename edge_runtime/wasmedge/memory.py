"""The memories of guests: reserved for a program, accessed by the host during a call, and made as new after each call:
zeroed, or a snapshot's image again (`image`).

The hazard, measured on 0.14.1: if address space for a guest's memory can't be reserved, WasmEdge reports success with a
NULL base and 0 pages, and AOT code then reads and writes the host's memory. So memories are reserved here, before
anything is instantiated: address space must be unlimited, one process has few memories (they use up its address space),
and each memory must have a base and the pages that the module declares, at least one.
"""

import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from edge_runtime.wasmedge.c_api import CData, Handle, Name, ffi, libc, library
from edge_runtime.wasmedge.errors import Unsafe
from edge_runtime.wasmedge.image import Image, MappedImage
from edge_runtime.wasmedge.memory_imports import MODULE

PAGE = 65536
SMALL: Final = 4 * PAGE
"""Bytes of a memory up to which writing zeros is cheaper than giving its pages back and faulting them in again."""
LARGE: Final = 1024 * PAGE
"""Bytes of memory from which a program's memories aren't kept between calls: all that is mapped for writing counts
towards RLIMIT_DATA (`fence.DATA_BYTES`), used or not. One with an image is kept, as to map it takes a check of the
whole file; `instance` limits how much is kept."""

_memory_pointer = library.WasmEdge_MemoryInstanceGetPointer
_memory_pages = library.WasmEdge_MemoryInstanceGetPageSize
_memset, _madvise, _mmap, _munmap = libc.memset, libc.madvise, libc.mmap, libc.munmap
_window, _inside = ffi.buffer, ffi.cast
_limit, _AS = resource.getrlimit, resource.RLIMIT_AS
_UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
_MODULE, _NAMES = Name(MODULE), (Name("0"), Name("1"))
_DONTNEED: Final = 4
"""MADV_DONTNEED: gives private pages back to the kernel; they read as zeros afterwards."""
_PROT_NONE, _PROT_WRITE = 0, 3
# The values on x86-64 and aarch64; Python 3.11 has no names for some of them.
_MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS, _MAP_NORESERVE, _MAP_FIXED_NOREPLACE = 0x02, 0x10, 0x20, 0x4000, 0x100000
_RESERVED: Final = _MAP_PRIVATE | _MAP_FIXED | _MAP_ANONYMOUS | _MAP_NORESERVE
_FAILED: Final = ffi.cast("void *", -1)


def check_address_space() -> None:
    """Check that the address space of this process is unlimited (RLIMIT_AS, `ulimit -v`).

    Raises: Unsafe, when it is limited.
    """
    limit = _limit(_AS)
    if limit != _UNLIMITED:
        raise Unsafe(
            f"this process has a limit on its address space ({limit[0]} bytes), under which a guest could leave its "
            "sandbox: start it without one (`ulimit -v unlimited`, no LimitAS in systemd)"
        )


def check_refusals() -> None:
    """Check that the kernel keeps a reservation of addresses when it refuses to map pages there. Linux before 6.12
    drops the reservation: what the host maps next could then lie inside a guest's memory.

    Raises: Unsafe, when the kernel drops it.
    """
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    # More than the machine has, so that the kernel refuses it; if overcommit is unlimited, nothing is ever refused.
    more = (int(lines["MemTotal"].split()[0]) + int(lines["SwapTotal"].split()[0])) * 1024 + LARGE
    base = _mmap(ffi.NULL, more, _PROT_NONE, _RESERVED & ~_MAP_FIXED, -1, 0)
    if base == _FAILED:
        return
    refused = _mmap(base, more, _PROT_WRITE, _RESERVED & ~_MAP_NORESERVE, -1, 0) == _FAILED
    # With MAP_FIXED_NOREPLACE, mmap fails if something is still mapped there.
    hole = refused and _mmap(base, PAGE, _PROT_NONE, _RESERVED | _MAP_FIXED_NOREPLACE, -1, 0) != _FAILED
    _munmap(base, more)
    if hole:
        raise Unsafe(
            "this kernel takes a reservation away where it refuses memory, through which a guest could leave its "
            "sandbox: run Linux 6.12 or later, or never refuse memory (`sysctl vm.overcommit_memory=1`)"
        )


class ReservedMemories(Handle):
    """The memories that a program imports, reused by its instances in turn."""

    _delete = "WasmEdge_ModuleInstanceDelete"

    def __init__(self, limits: Sequence[tuple[int, int]], image: Image | None = None) -> None:
        """Reserve memories. `limits` has the pages that each memory starts with, and the most that it may grow to;
        `image` is what the first one starts with, if that isn't zeros.

        Raises: Unsafe, when one can't be reserved; Damaged, when the image's file isn't what was made; OSError, when it
        can't be read. Nothing stays reserved then.
        """
        check_address_space()
        self._own(library.WasmEdge_ModuleInstanceCreate(_MODULE.value))
        self.memories: list[ReservedMemory] = []
        self._reusable = image is not None or sum(minimum for minimum, _ in limits) * PAGE < LARGE
        """Whether the memories are kept between calls."""
        self.memories = [self._add(name, *each) for name, each in zip(_NAMES, limits, strict=False)]
        if image is not None:
            try:
                self.memories[0].image = image.map_over(self.memories[0].base)
            except BaseException:
                self.close()
                raise

    def _add(self, name: Name, minimum: int, maximum: int) -> "ReservedMemory":
        memory_type = library.WasmEdge_MemoryTypeCreate((True, False, minimum, maximum))
        instance = library.WasmEdge_MemoryInstanceCreate(memory_type)
        library.WasmEdge_MemoryTypeDelete(memory_type)
        if instance:
            # From here on the module instance owns the memory.
            library.WasmEdge_ModuleInstanceAddMemory(self.pointer, name.value, instance)
        base = _memory_pointer(instance, 0, 1) if instance else None
        pages = _memory_pages(instance) if instance else 0
        if not base or pages != minimum or minimum < 1:
            self.close()
            raise Unsafe(f"the guest's memory was not reserved ({pages} pages of {minimum}): nothing was run in it")
        return ReservedMemory(instance, base, minimum, maximum)

    def clear(self) -> bool:
        """Make the memories as new, for the next instance. Return False if they must be reserved again instead."""
        return self._reusable and all(memory.clear() for memory in self.memories)

    def close(self) -> None:
        for memory in self.memories if not self.closed else ():
            if memory.image is not None:
                memory.image.close()
        super().close()


class ReservedMemory:
    """One reserved memory: its address, its base, and a window on the pages that it starts with."""

    __slots__ = ("_maximum", "_minimum", "base", "image", "pointer", "size", "window")

    def __init__(self, pointer: CData, base: CData, minimum: int, maximum: int) -> None:
        self.pointer, self.base = pointer, base
        self.size = minimum * PAGE
        """Bytes that it starts with."""
        self.window = _window(base, self.size)
        self._minimum, self._maximum = minimum, maximum
        self.image: MappedImage | None = None
        """What it starts with, if that isn't zeros."""

    def clear(self) -> bool:
        """Zero the memory, or make it its image again, and reduce it to the pages that it started with. Return whether
        that was possible."""
        pages = _memory_pages(self.pointer)
        if pages != self._minimum and not self._shrink(pages):
            return False
        if self.image is not None:
            return self.image.restore()
        if self.size <= SMALL:
            _memset(self.base, 0, self.size)
            return True
        return bool(_madvise(self.base, self.size, _DONTNEED) == 0)

    def _shrink(self, pages: int) -> bool:
        """Remove the pages by which the guest has grown the memory; their addresses stay reserved but no longer count
        as memory. Return whether that was possible."""
        inside = _inside("Inside *", self.pointer)
        if (inside.pages, inside.most, inside.base) != (pages, self._maximum, self.base):
            # The object doesn't look like the one in 0.14.1.
            return False
        more = (pages - self._minimum) * PAGE
        if _mmap(self.base + self.size, more, _PROT_NONE, _RESERVED, -1, 0) != self.base + self.size:
            return False
        inside.pages = self._minimum
        return bool(_memory_pages(self.pointer) == self._minimum)


class Memory:
    """The memory of a running instance, as host functions use it. `buffer` is a window on the memory, valid while the
    instance lives. Every access is checked here; the window is recreated when the guest has grown its memory."""

    __slots__ = ("_pointer", "buffer", "size")

    def __init__(self) -> None:
        self._pointer: CData = None
        self.buffer: CData = b""
        self.size = 0

    def open(self, space: ReservedMemory) -> Self:
        """Use one of `ReservedMemories.memories`."""
        self._pointer, self.buffer, self.size = space.pointer, space.window, space.size
        return self

    def close(self) -> None:
        """Drop the memory, at the end of the instance."""
        self._pointer, self.buffer, self.size = None, b"", 0

    def need(self, end: int) -> None:
        """Check that all bytes below the address `end` belong to the guest.

        Raises: IndexError, when they don't.
        """
        if end > self.size:
            self._look_again()
            if end > self.size:
                raise IndexError(f"address {end} is outside the guest's memory of {self.size} bytes")

    def grow(self, end: int) -> bool:
        """Make all bytes below the address `end` accessible, with more pages if needed. Return False if the limit
        forbids it."""
        if self._pointer is None:
            return False
        if end > self.pages() * PAGE:
            more = (end - 1) // PAGE + 1 - self.pages()
            if library.WasmEdge_MemoryInstanceGrowPage(self._pointer, more):
                return False
        self._look_again()
        return True

    def _look_again(self) -> None:
        """Recreate the window: the guest may have more pages than before."""
        if self._pointer is not None:
            self.size = self.pages() * PAGE
            self.buffer = _window(_memory_pointer(self._pointer, 0, 1), self.size)

    def pages(self) -> int:
        """Return the pages of 64 KiB that the memory has now."""
        return 0 if self._pointer is None else int(_memory_pages(self._pointer))

    def read(self, start: int, length: int) -> bytes:
        """Return a copy of `length` bytes of the guest's memory.

        Raises: IndexError, when they don't all belong to the guest.
        """
        end = start + length
        if end > self.size:
            self.need(end)
        return self.buffer[start:end]  # type: ignore[no-any-return]

    def write(self, start: int, data: bytes) -> None:
        """Copy `data` into the guest's memory.

        Raises: IndexError, when the bytes there don't all belong to the guest.
        """
        end = start + len(data)
        if end > self.size:
            self.need(end)
        self.buffer[start:end] = data
