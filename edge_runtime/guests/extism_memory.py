"""The kernel memory of an Extism plug-in, from the host's side: blocks of bytes that both sides know by handles.

The plug-in can write anything into this memory, so every address is checked. The layout and the rules of the free lists
are those of kernel.wat.
"""

import struct

from edge_runtime.guests.invocation import GuestFault
from edge_runtime.wasmedge import Memory

_USED, _INPUT, _OUTPUT, _ERROR, _LISTS, _BLOCKS = 16, 24, 40, 56, 64, 512
_MARK = 0x5EE1_C0DE_0B10_C500
_HEAD = struct.Struct("<QII")
_ONE = struct.Struct("<Q")
_TWO = struct.Struct("<QQ")
_MOST = 0xF000_0000


class Blocks:
    """The blocks in the kernel memory of the running plug-in.

    Raises: GuestFault, in every method, when the plug-in has spoilt the memory or it is full.
    """

    def __init__(self) -> None:
        self.memory = Memory()

    def new(self, data: bytes) -> int:
        """Allocate a block for `data`, and return its handle; 0 where there is no data."""
        if not data:
            return 0
        room = len(data) + 15 & -16
        list_ = _LISTS + 8 * (room.bit_length() - 1)
        block = self._word(list_)
        if self._head(block)[2] < room:
            list_ += 8
            block = self._word(list_)
        if block:
            self._put(list_, _ONE.pack(self._word(block)))
            room = self._head(block)[2]
        else:
            used = self._word(_USED)
            block = _BLOCKS + used
            self._grow(block + 16 + room + 8)
            self._put(_USED, _ONE.pack(used + 16 + room))
        handle = block + 16
        self._put(block, _HEAD.pack(handle ^ _MARK, len(data), room))
        self._put(handle, data)
        return handle

    def read(self, handle: int) -> bytes:
        """Return the bytes of a block; nothing for the handle 0."""
        return self._get(handle, self._length(handle)) if handle else b""

    def free(self, handle: int) -> None:
        """Free a block whose handle `read` has checked."""
        if handle:
            block = handle - 16
            list_ = _LISTS + 8 * ((self._head(block)[2] | 1).bit_length() - 1)
            self._put(block, _ONE.pack(self._word(list_)))
            self._put(list_, _ONE.pack(block))

    def set_input(self, data: bytes) -> None:
        """Set the plug-in's input."""
        self._put(_INPUT, _TWO.pack(self.new(data), len(data)))

    def error(self) -> bytes | None:
        """Return the error that the plug-in set; None where it set none."""
        handle = self._word(_ERROR)
        return self.read(handle) if handle else None

    def output_length(self) -> int:
        """Return the length in bytes of the output that the plug-in set."""
        return _TWO.unpack(self._get(_OUTPUT, 16))[1]  # type: ignore[no-any-return]

    def output(self) -> bytes:
        """Return the output that the plug-in set."""
        start, length = _TWO.unpack(self._get(_OUTPUT, 16))
        return self._get(start, length) if length else b""

    def _length(self, handle: int) -> int:
        if handle < _BLOCKS + 16 or (head := self._head(handle - 16))[0] != handle ^ _MARK:
            raise GuestFault("guest_call_invalid", f"It gave Extism the handle {handle}, which no block has.")
        return head[1]

    def _head(self, block: int) -> tuple[int, int, int]:
        """Return a block's mark, the length of its data, and its capacity in bytes."""
        return _HEAD.unpack(self._get(block, 16))

    def _word(self, at: int) -> int:
        return _ONE.unpack(self._get(at, 8))[0]  # type: ignore[no-any-return]

    def _get(self, start: int, length: int) -> bytes:
        try:
            return self.memory.read(start, length)
        except IndexError as error:
            raise _outside(error) from None

    def _put(self, start: int, data: bytes) -> None:
        try:
            self.memory.write(start, data)
        except IndexError as error:
            raise _outside(error) from None

    def _grow(self, end: int) -> None:
        if end > _MOST or not self.memory.grow(end):
            raise GuestFault(
                "guest_memory_full",
                f"What passes between it and the host needs {end} bytes, and the memory for that has as many pages as "
                "its manifest's memory_pages allows.",
            )


def _outside(error: IndexError) -> GuestFault:
    return GuestFault("guest_call_invalid", f"It gave Extism an address outside the kernel's memory: {error}.")
