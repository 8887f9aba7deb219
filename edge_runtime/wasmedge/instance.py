"""Running a module: one fresh instance a call, under the conditions in which WasmEdge keeps a guest in its sandbox.

Its memories are reserved and checked before (`memory`), and outlive it; all else of an instance is made for one call.
"""

from collections.abc import Sequence
from typing import ClassVar, Self

from edge_runtime.wasmedge.declarations import VALUE_WORDS, CData, ffi, library
from edge_runtime.wasmedge.errors import LinkError, Unsafe
from edge_runtime.wasmedge.handles import Handle, Name, check, message
from edge_runtime.wasmedge.host import HostModule, Signature, take_raised, unclaimed, value_types
from edge_runtime.wasmedge.memory import Memory, ReservedMemories
from edge_runtime.wasmedge.memory_imports import MODULE
from edge_runtime.wasmedge.module import Config, Module

# A call makes each of these once or twice: looking them up in the library costs a tenth of a microsecond each time.
_instantiate = library.WasmEdge_ExecutorInstantiate
_invoke = library.WasmEdge_ExecutorInvoke
_delete = library.WasmEdge_ModuleInstanceDelete
_find_function = library.WasmEdge_ModuleInstanceFindFunction

KEPT = 32
"""Programs that keep their memories at the same time: each takes 12 GiB of addresses, of 128 TiB."""


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


class EntryPoint:
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
    _keeping: ClassVar[list["Program"]] = []
    """Those that have their memories reserved, first the one that has had them longest."""

    def __init__(
        self,
        module: Module,
        config: Config,
        imports: Sequence[HostModule],
        entries: Sequence[EntryPoint],
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
        if second_memory and exported[1].minimum < 1:
            raise LinkError(0x0301, f"the memory {second_memory} starts with no page")
        minimum = exported[0].minimum
        if not 1 <= minimum <= config.memory_pages:
            raise LinkError(
                0x0301, f"the module's memory starts with {minimum} pages; 1 to {config.memory_pages} are allowed"
            )
        if module.memory_sources() != [MODULE] * len(exported):
            # The host would look into a memory that isn't the guest's.
            raise LinkError(0x0301, "the module's memories aren't imported: it must come from `import_memories`")
        most = config.memory_pages
        self._limits = [(each.minimum, most if each.maximum is None else min(most, each.maximum)) for each in exported]
        self.functions = module.functions()
        """What the module exports."""
        for entry in entries:
            if entry.name not in self.functions:
                raise LinkError(0x0302, f"the module has no function {entry.name}")
        self._initializes = self.functions.get(_INITIALIZE.name) == ("", "")
        self._module, self._config, self._imports = module, config, imports
        self.last_pages = 0
        """Pages that the memory had when the last run ended that failed."""
        self._made = ffi.new("WasmEdge_ModuleInstanceContext **")
        self._executor = _Executor(config)
        self._store = _Store(self._executor, imports)
        self._pointers: tuple[CData, CData, CData] | None = None
        """Of executor, store and module, from the first run on."""
        self._reserved: ReservedMemories | None = None
        self._instance: CData = None
        self._memory: Memory
        """Of the instance."""
        self._other: Memory | None = None

    def open(self, memory: Memory, second: Memory | None = None) -> Self:
        """Make an instance, and run its start section and its `_initialize` where it has them; meanwhile and until the
        block ends host functions find the guest's memory in `memory`, and the second one in `second`, which are empty
        afterwards.

        Raises: what a host function raised; Trap; LinkError; Unsafe (then nothing of the guest was run); HandleClosed.
        """
        if Program._live:
            raise Unsafe("this process already has a live instance; one at a time")
        executor, store, module = self._pointers or self._linked()
        reserved = self._reserved or self._reserve()
        made = self._made
        if unclaimed:
            take_raised()
        Program._live = True
        self._memory, self._other = memory, second
        try:
            memory.open(reserved.memories[0])
            if second is not None:
                second.open(reserved.memories[1])
            result = _instantiate(executor, made, store, module)
            if result:
                self._failed(result)
            self._instance = made[0]
            if self._initializes:
                self.call(_INITIALIZE)
        except BaseException:
            self.end(failed=True)
            raise
        return self

    def call(self, entry: EntryPoint, *numbers: int) -> int:
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

    def _reserve(self) -> ReservedMemories:
        """Error: Unsafe."""
        keeping = Program._keeping
        while len(keeping) >= KEPT:
            keeping[0]._give_up()
        made = ReservedMemories(self._limits)
        check(library.WasmEdge_ExecutorRegisterImport(self._executor.pointer, self._store.pointer, made.pointer))
        self._reserved = made
        keeping.append(self)
        return made

    def _give_up(self) -> None:
        """Let the memories go; they are reserved anew for the next instance."""
        reserved, self._reserved = self._reserved, None
        if reserved is not None:
            Program._keeping.remove(self)
            reserved.close()

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
            if not self._reserved.clear():  # type: ignore[union-attr]
                self._give_up()
        else:
            # The store keeps what failed to instantiate, which has seen the memories.
            self._store.close()
            self._give_up()
            self._store = _Store(self._executor, self._imports)
            self._pointers = None
        Program._live = False

    @staticmethod
    def _failed(result: int) -> None:
        error = take_raised()
        if error is not None:
            raise error
        check(result)
        raise LinkError(result, f"the guest ended without a reason ({message(result)})")

    def close(self) -> None:
        """Closes what the program made, and the module; the imports are the caller's. Error: Unsafe, where it has an
        instance."""
        if self._instance is not None:
            raise Unsafe("this program has a live instance, whose memory can't be taken away: close it after its block")
        self._pointers = None
        self._store.close()
        self._give_up()
        self._executor.close()
        self._module.close()


_INITIALIZE = EntryPoint("_initialize")
"""What a library of WASI's (a reactor) has called before anything else of it."""
