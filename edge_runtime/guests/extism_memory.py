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
_FRESH = bytes(_LISTS - _USED)
"""What is there before the plug-in has allocated or set anything."""
_TRIED = 64
"""How many blocks of a list are looked at for one that is large enough."""


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
        used = self._word(_USED)
        block = _BLOCKS + used
        free = 0
        if not self._has(end := block + 16 + room + 8):
            free = self._free_block(room)
            if not free:
                self._grow(end)
        if free:
            block, room = free, self._head(free)[2]
        else:
            self._put(_USED, _ONE.pack(used + 16 + room))
        handle = block + 16
        self._put(block, _HEAD.pack(handle ^ _MARK, len(data), room))
        self._put(handle, data)
        return handle

    def _free_block(self, room: int) -> int:
        """Take a block of at least `room` bytes out of the lists of free ones, and return its address; 0 for none."""
        before = _LISTS + 8 * (room.bit_length() - 1)
        following = before + 8
        for _ in range(_TRIED):
            block = self._word(before)
            if not block:
                break
            if self._head(block)[2] >= room:
                return self._taken(before, block)
            before = block
        block = self._word(following)
        return self._taken(following, block) if block else 0

    def _taken(self, before: int, block: int) -> int:
        """Take a block out of its list, in which it follows what is at `before`."""
        self._put(before, _ONE.pack(self._word(block)))
        return block

    def read(self, handle: int) -> bytes:
        """Return the bytes of a block; nothing for the handle 0."""
        if not handle:
            return b""
        length = self._length(handle)
        if length is None:
            raise GuestFault("guest_call_invalid", f"It gave Extism the handle {handle}, which no block has.")
        return self._get(handle, length)

    def free(self, handle: int) -> None:
        """Free a block that `read` has found, unless that was done since. Who frees the input finds none any more."""
        if not handle:
            return
        block = handle - 16
        mark, _, room = self._head(block)
        if mark != handle ^ _MARK:
            return
        list_ = _LISTS + 8 * ((room | 1).bit_length() - 1)
        self._put(block, _ONE.pack(self._word(list_)))
        self._put(list_, _ONE.pack(block))
        if handle == self._word(_INPUT):
            self._put(_INPUT, _TWO.pack(handle, 0))

    def set_input(self, data: bytes) -> None:
        """Set the plug-in's input. What it has allocated and set before, while it was initialized, is gone."""
        if self._get(_USED, _LISTS - _USED) != _FRESH:
            used = self._word(_USED)
            if not self._has(_BLOCKS + used):
                raise GuestFault("guest_call_invalid", "It has spoilt the memory that it shares with Extism.")
            self._put(_USED, bytes(_BLOCKS - _USED + used))
        self._put(_INPUT, _TWO.pack(self.new(data), len(data)))

    def error(self) -> bytes | None:
        """Return the error that the plug-in set; None where it set none, or has freed it."""
        handle = self._word(_ERROR)
        length = self._length(handle)
        return None if length is None else self._get(handle, length)

    def output_length(self) -> int:
        """Return the length in bytes of the output that the plug-in set."""
        return _TWO.unpack(self._get(_OUTPUT, 16))[1]  # type: ignore[no-any-return]

    def output(self) -> bytes:
        """Return the output that the plug-in set."""
        start, length = _TWO.unpack(self._get(_OUTPUT, 16))
        return self._get(start, length) if length else b""

    def _length(self, handle: int) -> int | None:
        """Return the length of a block's data in bytes; None for a handle that no block has."""
        if handle < _BLOCKS + 16 or not self._has(handle):
            return None
        mark, length, _ = self._head(handle - 16)
        return length if mark == handle ^ _MARK else None

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

    def _has(self, end: int) -> bool:
        """Return whether all bytes below the address `end` are there already."""
        try:
            self.memory.need(end)
        except IndexError:
            return False
        return True

    def _grow(self, end: int) -> None:
        if end > _MOST or not self.memory.grow(end):
            raise GuestFault(
                "guest_memory_full",
                f"What passes between it and the host needs {end} bytes, and the memory for that has as many pages as "
                "its manifest's memory_pages allows.",
            )


def _outside(error: IndexError) -> GuestFault:
    return GuestFault("guest_call_invalid", f"It gave Extism an address outside the kernel's memory: {error}.")
