"""Running a module: one fresh instance a call, under the conditions in which WasmEdge keeps a guest in its sandbox.

The hazard (measured on 0.14.1): where the reservation of a guest's address space fails, instantiating says OK with a
NULL base and 0 pages, and AOT code then reads and writes the host's memory. So before each instance the address space
must be unlimited and no other instance alive (many live memories use it up), and before anything of the guest runs the
memory must have a base and at least the pages that the module declares, one or more. A start section would run before
that last check, so it is taken out (`wasmedge.start`) and called after it.
"""

import resource
from collections.abc import Sequence
from typing import ClassVar, Self

from . import start
from .declarations import VALUE_WORDS, CData, ffi, library
from .errors import LinkError, Unsafe
from .handles import Handle, Name, check, message
from .host import HostModule, Signature, raised, unclaimed, value_types
from .module import Config, Module

PAGE = 65536
_MEMORY = Name("memory")
_MEMORY_NAME = _MEMORY.value

# A call makes each of these once or twice: looking them up in the library costs a tenth of a microsecond each time.
_instantiate = library.WasmEdge_ExecutorInstantiate
_invoke = library.WasmEdge_ExecutorInvoke
_delete = library.WasmEdge_ModuleInstanceDelete
_find_function = library.WasmEdge_ModuleInstanceFindFunction
_find_memory = library.WasmEdge_ModuleInstanceFindMemory
_memory_pointer = library.WasmEdge_MemoryInstanceGetPointer
_memory_pages = library.WasmEdge_MemoryInstanceGetPageSize
_window = ffi.buffer
_limit, _AS = resource.getrlimit, resource.RLIMIT_AS
_UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


def check_address_space() -> None:
    """Refuse to go on where address space is limited (RLIMIT_AS, `ulimit -v`). Error: Unsafe."""
    limit = _limit(_AS)
    if limit != _UNLIMITED:
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
        base = _memory_pointer(pointer, 0, 1)
        pages = _memory_pages(pointer)
        if not base or pages < minimum or minimum < 1:
            raise Unsafe(f"the guest's memory was not reserved ({pages} pages of {minimum}): nothing was run in it")
        self._pointer = pointer
        self.size = pages * PAGE
        self.buffer = _window(base, self.size)

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

    def grow(self, end: int) -> bool:
        """Have the bytes below `end`, with more pages where it takes them; False where there are no more."""
        if self._pointer is None:
            return False
        if end > self.pages() * PAGE:
            more = (end - 1) // PAGE + 1 - self.pages()
            if library.WasmEdge_MemoryInstanceGrowPage(self._pointer, more):
                return False
        self.open(self._pointer, 1)
        return True

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


class Entry:
    """A function that programs export and that is called from here; its arguments and its result are numbers.

    One call at a time, as with all of guests: every entry has its one place for values.
    """

    __slots__ = ("_name", "_rooms", "arguments", "name", "result", "results", "wide", "word")

    def __init__(self, name: str, signature: Signature = ("", "")) -> None:
        self.name = name
        self._name = Name(name)
        self.word = self._name.value
        parameters, results = signature
        self._rooms: list[CData] = []
        """What the pointers below lead to."""
        self.arguments = self._values(parameters)
        """Words: `VALUE_WORDS` each."""
        self.result = self._values(results)
        self.results = len(results)
        self.wide = results == "I"

    def _values(self, letters: str) -> CData:
        """Room for values of these types, as words; NULL for none."""
        if not letters:
            return ffi.NULL
        size = 4 * VALUE_WORDS
        # The library may move a value as 16 bytes at once, which must then lie on a multiple of 16.
        room = ffi.new("uint8_t[]", size * len(letters) + 16)
        self._rooms.append(room)
        address = int(ffi.cast("uintptr_t", room))
        made = ffi.cast("uint32_t *", (address + 15) & ~15)
        for position, letter in enumerate(letters):
            ffi.buffer(made + position * VALUE_WORDS, size)[16:24] = ffi.buffer(value_types(letter))[:8]
        return made


class Program:
    """A module linked to its imports, to be run any number of times, in one thread.

    `with program.open(memory):` makes a fresh instance, in which `call` calls entries; it is gone with the block.
    Instances are never used again: globals and tables could not be reset.
    """

    _live: ClassVar[bool] = False
    """Whether this process has an instance."""

    def __init__(
        self,
        module: Module,
        config: Config,
        imports: Sequence[HostModule],
        entries: Sequence[Entry],
        second_memory: str = "",
    ) -> None:
        """`second_memory`: the export of another memory that the host looks into, where the module has one.

        Errors: LinkError where `module` doesn't export exactly these memories and `memory`, of a size that `config`
        allows, or lacks one of the entries."""
        exported = module.memories()
        expected = ["memory", second_memory] if second_memory else ["memory"]
        if [memory.name for memory in exported] != expected:
            second = f", and a second one as `{second_memory}`" if second_memory else ""
            raise LinkError(0x0301, f"a module must export exactly one memory, under the name `memory`{second}")
        self._second = Name(second_memory) if second_memory else None
        if self._second is not None and exported[1].minimum < 1:
            raise LinkError(0x0301, f"the memory {second_memory} starts with no page")
        self._minimum = exported[0].minimum
        if not 1 <= self._minimum <= config.memory_pages:
            # WasmEdge would clamp a larger minimum silently.
            raise LinkError(
                0x0301, f"the module's memory starts with {self._minimum} pages; 1 to {config.memory_pages} are allowed"
            )
        self.functions = module.functions()
        """What the module exports."""
        for entry in entries:
            if entry.name not in self.functions:
                raise LinkError(0x0302, f"the module has no function {entry.name}")
        if self.functions.get(_START.name, ("", "")) != ("", ""):
            raise LinkError(0x0302, "the module's start function takes or returns values")
        self._first = [entry for entry in (_START, _INITIALIZE) if self.functions.get(entry.name) == ("", "")]
        self._module, self._config, self._imports = module, config, imports
        self.last_pages = 0
        """Pages that the memory had when the last run ended that failed."""
        self._made = ffi.new("WasmEdge_ModuleInstanceContext **")
        self._executor = _Executor(config)
        self._store = _Store(self._executor, imports)
        self._pointers: tuple[CData, CData, CData] | None = None
        """Of executor, store and module, from the first run on."""
        self._instance: CData = None
        self._memory: Memory
        """Of the instance."""
        self._other: Memory | None = None

    def open(self, memory: Memory, second: Memory | None = None) -> Self:
        """Make an instance, and run its start function and its `_initialize` where it has them; meanwhile and until the
        block ends host functions find the guest's memory in `memory`, and the second one in `second`, which are empty
        afterwards.

        Raises what a host function raised, Trap, LinkError, Unsafe (then nothing of the guest was run), or Closed.
        """
        if _limit(_AS) != _UNLIMITED:
            check_address_space()
        if Program._live:
            raise Unsafe("this process already has a live instance; one at a time")
        executor, store, module = self._pointers or self._linked()
        made = self._made
        if unclaimed:
            raised()
        Program._live = True
        self._memory, self._other = memory, second
        try:
            result = _instantiate(executor, made, store, module)
            if result:
                self._failed(result)
            self._instance = instance = made[0]
            memory.open(_find_memory(instance, _MEMORY_NAME), self._minimum)
            if self._second is not None:
                (second or Memory()).open(_find_memory(instance, self._second.value), 1)
            for entry in self._first:
                self.call(entry)
        except BaseException:
            self.end(failed=True)
            raise
        return self

    def call(self, entry: Entry, *numbers: int) -> int:
        """Call an entry; its result as an unsigned number, 0 where it has none. Raises as `open`."""
        arguments, word = entry.arguments, 0
        for number in numbers:
            arguments[word] = number
            word += VALUE_WORDS
        executor, _, _ = self._pointers  # type: ignore[misc]
        found, count = entry.result, entry.results
        function = _find_function(self._instance, entry.word)
        result = _invoke(executor, function, arguments, len(numbers), found, count)
        if result:
            self._failed(result)
        if not count:
            return 0
        return found[0] | found[1] << 32 if entry.wide else found[0]  # type: ignore[no-any-return]

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.end(failed=kind is not None)

    def _linked(self) -> tuple[CData, CData, CData]:
        self._pointers = self._executor.pointer, self._store.pointer, self._module.pointer
        return self._pointers

    def end(self, failed: bool) -> None:
        """What the end of the block does: the instance is gone."""
        memory, instance = self._memory, self._instance
        if failed:
            self.last_pages = memory.pages()
        memory.close()
        if self._other is not None:
            self._other.close()
        if instance is not None:
            self._instance = None
            _delete(instance)
        else:
            # The store keeps what failed to instantiate, its memory too.
            self._store.close()
            self._store = _Store(self._executor, self._imports)
            self._pointers = None
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
        self._pointers = None
        self._store.close()
        self._executor.close()
        self._module.close()


_START = Entry(start.NAME)
_INITIALIZE = Entry("_initialize")
"""What a library of WASI's (a reactor) has called before anything else of it."""
