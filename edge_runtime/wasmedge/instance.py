"""Running a module: one fresh instance a call, under the conditions in which WasmEdge keeps a guest in its sandbox.

The hazard (measured on 0.14.1): where the reservation of a guest's address space fails, instantiating says OK with a
NULL base and 0 pages, and AOT code then reads and writes the host's memory. So before each instance the address space
must be unlimited and no other instance alive (many live memories use it up), and before the first call the memory
must have a base and at least the pages that the module declares, one or more. A `start` section runs before that last
check: it rests on the first two.
"""

import resource
from collections.abc import Sequence
from typing import ClassVar

from .declarations import CData, ffi, library
from .errors import LinkError, Unsafe
from .handles import Handle, Name, check, message
from .host import HostModule, raised
from .module import Config, Module

PAGE = 65536
_MEMORY = Name("memory")


def check_address_space() -> None:
    """Refuse to go on where address space is limited (RLIMIT_AS, `ulimit -v`). Error: Unsafe."""
    limit = resource.getrlimit(resource.RLIMIT_AS)
    if limit != (resource.RLIM_INFINITY, resource.RLIM_INFINITY):
        raise Unsafe(
            f"this process has a limit on its address space ({limit[0]} bytes), under which a guest could leave its "
            "sandbox: start it without one (`ulimit -v unlimited`, no LimitAS in systemd)"
        )


class Memory:
    """A live instance's memory. `buffer` is a window on it, valid while the instance is; every access is checked
    here, and the window is made again when the guest has grown its memory."""

    __slots__ = ("_pointer", "buffer", "size")

    def __init__(self) -> None:
        self._pointer: CData = None
        self.buffer: CData = b""
        self.size = 0

    def open(self, pointer: CData, minimum: int) -> None:
        """Look at an instance's memory, which must have at least `minimum` pages. Error: Unsafe."""
        base = library.WasmEdge_MemoryInstanceGetPointer(pointer, 0, 1)
        pages = library.WasmEdge_MemoryInstanceGetPageSize(pointer)
        if not base or pages < minimum or minimum < 1:
            raise Unsafe(f"the guest's memory was not reserved ({pages} pages of {minimum}): nothing was run in it")
        self._pointer = pointer
        self.size = pages * PAGE
        self.buffer = ffi.buffer(base, self.size)

    def close(self) -> None:
        """Forget the memory: the window would point at what has been freed."""
        self._pointer, self.buffer, self.size = None, b"", 0

    def need(self, end: int) -> None:
        """Make sure that the bytes below `end` are the guest's. Error: IndexError."""
        if end > self.size:
            if self._pointer is not None:
                self.open(self._pointer, 1)
            if end > self.size:
                raise IndexError(f"address {end} is outside the guest's memory of {self.size} bytes")

    def pages(self) -> int:
        """Pages that the guest has now."""
        return 0 if self._pointer is None else int(library.WasmEdge_MemoryInstanceGetPageSize(self._pointer))

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


class _Executor(Handle):
    _delete = "WasmEdge_ExecutorDelete"

    def __init__(self, config: Config) -> None:
        self._own(library.WasmEdge_ExecutorCreate(config.pointer, ffi.NULL))


class _Store(Handle):
    _delete = "WasmEdge_StoreDelete"

    def __init__(self, executor: _Executor, imports: Sequence[HostModule]) -> None:
        self._own(library.WasmEdge_StoreCreate())
        for module in imports:
            check(library.WasmEdge_ExecutorRegisterImport(executor.pointer, self.pointer, module.pointer))


class Program:
    """A module linked to its imports, to be run any number of times, in one thread.

    `run` calls one export that takes and returns nothing, in a fresh instance that is gone when it returns.
    Instances are never used again: globals and tables could not be reset.
    """

    _live: ClassVar[bool] = False
    """Whether this process has an instance."""

    def __init__(self, module: Module, config: Config, imports: Sequence[HostModule], entry: str) -> None:
        """Errors: LinkError where `module` doesn't export exactly one memory, `memory`, that `config` allows."""
        exported = module.memories()
        if [memory.name for memory in exported] != ["memory"]:
            raise LinkError(0x0301, "a module must export exactly one memory, under the name `memory`")
        self._minimum = exported[0].minimum
        if not 1 <= self._minimum <= config.memory_pages:
            # WasmEdge would clamp a larger minimum silently.
            raise LinkError(
                0x0301, f"the module's memory starts with {self._minimum} pages; 1 to {config.memory_pages} are allowed"
            )
        self._module, self._config, self._imports = module, config, imports
        self._entry = Name(entry)
        self._entry_name = entry
        self.last_pages = 0
        """Pages that the memory had when the last run ended."""
        self._made = ffi.new("WasmEdge_ModuleInstanceContext **")
        self._executor = _Executor(config)
        self._store = _Store(self._executor, imports)

    def run(self, memory: Memory) -> None:
        """Run the entry; meanwhile host functions find the guest's memory in `memory`. It is empty afterwards.

        Raises what a host function raised, Trap, LinkError, Unsafe (then nothing of the guest was run), or Closed.
        """
        check_address_space()
        if Program._live:
            raise Unsafe("this process already has a live instance; one at a time")
        executor, instance, made = self._executor.pointer, None, self._made
        raised()
        Program._live = True
        try:
            result = library.WasmEdge_ExecutorInstantiate(executor, made, self._store.pointer, self._module.pointer)
            if result:
                self._failed(result)
            instance = made[0]
            memory.open(library.WasmEdge_ModuleInstanceFindMemory(instance, _MEMORY.value), self._minimum)
            function = library.WasmEdge_ModuleInstanceFindFunction(instance, self._entry.value)
            if not function:
                raise LinkError(0x0302, f"the module has no function {self._entry_name}")
            result = library.WasmEdge_ExecutorInvoke(executor, function, ffi.NULL, 0, ffi.NULL, 0)
            if result:
                self._failed(result)
        finally:
            self.last_pages = memory.pages()
            memory.close()
            if instance is not None:
                library.WasmEdge_ModuleInstanceDelete(instance)
            else:
                # The store keeps what failed to instantiate, its memory too.
                self._store.close()
                self._store = _Store(self._executor, self._imports)
            Program._live = False

    @staticmethod
    def _failed(result: int) -> None:
        error = raised()
        if error is not None:
            raise error
        check(result)
        raise LinkError(result, f"the guest ended without a reason ({message(result)})")

    def close(self) -> None:
        """Closes what the program made, and the module; the imports are the caller's."""
        self._store.close()
        self._executor.close()
        self._module.close()
