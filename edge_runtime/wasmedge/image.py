"""A snapshot's image in a guest's memory: mapped from its file copy-on-write, and made good after each call.

The kernel copies a page of the image when a guest first writes to it. To give all copies back makes the memory the
image again, but the next call faults the same pages in, and has them copied, once more. So pages that calls are seen to
write to ("hot" ones) are copied back from a second, read-only mapping of the file, and all others are given back.
Every page is made good in one of the two ways, so which pages count as hot decides about time and nothing else.
"""

import mmap
import os
from pathlib import Path
from typing import Final

from edge_runtime.aot_cache import Damaged, verify_open
from edge_runtime.wasmedge.c_api import CData, ffi, libc

_memcmp, _memmove, _madvise, _mmap, _munmap = libc.memcmp, ffi.memmove, libc.madvise, libc.mmap, libc.munmap
_WASM_PAGE: Final = 65536
_PAGE: Final = mmap.PAGESIZE
_READ, _WRITE = 1, 3
_PRIVATE, _FIXED, _DONTNEED = 0x02, 0x10, 4
_FAILED: Final = ffi.cast("void *", -1)

FIRST_LOOK: Final = 4
"""The call after which hot pages are looked for first; then after each second power of it: 8, 16, 32 …"""
GAP: Final = 2
"""The most pages between two hot ones that are copied back too, since each run of pages costs a system call."""
MOST_RUNS: Final = 64
MOST_HOT: Final = 512
"""The most hot pages of a memory, which stay in the worker's own memory between calls."""


class Image:
    """The file of an image."""

    __slots__ = ("_digest", "_path", "pages")

    def __init__(self, path: Path, digest: str, pages: int) -> None:
        """`digest` is the file's sha256 in hex, `pages` its size in pages of 64 KiB."""
        self._path, self._digest, self.pages = path, digest, pages

    def map_over(self, base: CData) -> "MappedImage":
        """Map the image over the reserved pages at `base`, once the digest of the very file that is mapped is checked.

        Raises: Damaged, when the file isn't what was made; OSError, when it can't be read or mapped.
        """
        size = self.pages * _WASM_PAGE
        # Not by `open` with an opener, which asks for more than a worker's fence allows.
        with os.fdopen(os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != size:
                # A page that the file lacks would end the worker when it is read.
                raise Damaged(f"{self._path} hasn't the size that it was made with, {size} bytes")
            verify_open(file, self._path, self._digest)
            if _mmap(base, size, _WRITE, _PRIVATE | _FIXED, file.fileno(), 0) != base:
                raise OSError(ffi.errno, f"{self._path} can't be mapped: {os.strerror(ffi.errno)}")
            source = _mmap(ffi.NULL, size, _READ, _PRIVATE, file.fileno(), 0)
            if source == _FAILED:
                raise OSError(ffi.errno, f"{self._path} can't be mapped: {os.strerror(ffi.errno)}")
        return MappedImage(base, source, size)


class MappedImage:
    """A memory that has the image, and the image's second mapping, from which hot pages are copied back."""

    __slots__ = ("_base", "_hot", "_rest", "_restored", "_size", "source")

    def __init__(self, base: CData, source: CData, size: int) -> None:
        self._base, self._size = ffi.cast("char *", base), size
        self.source: CData = ffi.cast("char *", source)
        self._restored = 0
        self._set([])

    def restore(self) -> bool:
        """Make the memory the image again. Return whether that was possible."""
        self._restored = calls = self._restored + 1
        if calls >= FIRST_LOOK and not calls & (calls - 1):
            self._set(self._look())
        for to, source, length in self._hot:
            _memmove(to, source, length)
        return not any(_madvise(at, length, _DONTNEED) for at, length in self._rest)

    def _look(self) -> list[tuple[int, int]]:
        """Return the runs of pages that differ from the image, each with its first page and the one after its last."""
        runs: list[tuple[int, int]] = []
        hot = 0
        for start in range(0, self._size, _WASM_PAGE):
            if not _memcmp(self._base + start, self.source + start, _WASM_PAGE):
                continue
            for at in range(start, start + _WASM_PAGE, _PAGE):
                if _memcmp(self._base + at, self.source + at, _PAGE):
                    page = at // _PAGE
                    if runs and page - runs[-1][1] <= GAP:
                        hot += page + 1 - runs[-1][1]
                        runs[-1] = runs[-1][0], page + 1
                    elif len(runs) < MOST_RUNS:
                        hot += 1
                        runs.append((page, page + 1))
                    if hot >= MOST_HOT:
                        return runs
        return runs

    def _set(self, runs: list[tuple[int, int]]) -> None:
        base, source = self._base, self.source
        self._hot = [(base + a * _PAGE, source + a * _PAGE, (b - a) * _PAGE) for a, b in runs]
        ends = [0, *(end for run in runs for end in run), self._size // _PAGE]
        gaps = zip(ends[::2], ends[1::2], strict=True)
        self._rest = [(base + a * _PAGE, (b - a) * _PAGE) for a, b in gaps if b > a]

    def close(self) -> None:
        """Remove the second mapping."""
        _munmap(self.source, self._size)
