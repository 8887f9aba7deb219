"""Runs a module: each call gets a fresh instance, and WasmEdge must be able to keep it in its sandbox.

A program's memories are reserved and checked before any instance (`memory`) and reused by its instances in turn;
everything else in an instance is made for one call.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple, Self

from edge_runtime.wasmedge.c_api import VALUE_WORDS, CData, Handle, Name, address, check, ffi, library, message
from edge_runtime.wasmedge.errors import LinkError, Unsafe, WasmEdgeError, failure
from edge_runtime.wasmedge.host import HostModule, Signature, take_raised, unclaimed, value_types
from edge_runtime.wasmedge.image import Image
from edge_runtime.wasmedge.memory import LARGE, PAGE, Memory, ReservedMemories
from edge_runtime.wasmedge.memory_imports import MODULE
from edge_runtime.wasmedge.module import Config, Module

# Each call uses these once or twice, and a lookup in the library costs 0.1 µs.
_instantiate = library.WasmEdge_ExecutorInstantiate
_invoke = library.WasmEdge_ExecutorInvoke
_delete = library.WasmEdge_ModuleInstanceDelete
_find_function = library.WasmEdge_ModuleInstanceFindFunction

KEPT = 32
"""The most programs that keep their memories reserved at the same time: each takes 12 GiB of the 128 TiB of
addresses."""
KEPT_BYTES = KEPT * LARGE
"""The most bytes that kept memories start with, all together: they count towards RLIMIT_DATA, images too."""


class Executor(Handle):
    """What runs code, with the settings of a `Config`."""

    _delete = "WasmEdge_ExecutorDelete"

    def __init__(self, config: Config) -> None:
        self._own(library.WasmEdge_ExecutorCreate(config.pointer, ffi.NULL))


class ImportStore(Handle):
    """The host modules that a module's imports are looked up in."""

    _delete = "WasmEdge_StoreDelete"

    def __init__(self, executor: Executor, imports: Sequence[HostModule]) -> None:
        self._own(library.WasmEdge_StoreCreate())
        for module in imports:
            check(library.WasmEdge_ExecutorRegisterImport(executor.pointer, self.pointer, module.pointer))


class Loan(NamedTuple):
    """What an instance is made from: the addresses of WasmEdge's objects and of the memory's first byte."""

    executor: int
    store: int
    module: int
    memory: int
    base: int
    image: int
    """Where the image that the memory starts with is mapped once more, to be read; 0 if it starts with zeros."""
    pages: int
    """Pages that the memory starts with."""
    most: int
    """The most pages that it may grow to."""
    initializes: bool
    """Whether `_initialize` is called first."""


class EntryPoint:
    """An exported function that the host calls, with the C buffers for its arguments and its result.

    The buffers are shared by all calls of this entry point: one call at a time, as everywhere with guests.
    """

    __slots__ = ("_buffers", "_name", "arguments", "c_name", "name", "result", "results", "wide")

    def __init__(self, name: str, signature: Signature = ("", "")) -> None:
        self.name = name
        self._name = Name(name)
        self.c_name = self._name.value
        parameters, results = signature
        self._buffers: list[CData] = []
        """The buffers that `arguments` and `result` point into; kept alive as long as this object."""
        self.arguments = self._values(parameters)
        """Pointer to words of 32 bits, `VALUE_WORDS` for each argument; NULL if there is none."""
        self.result = self._values(results)
        self.results = len(results)
        self.wide = results == "I"

    def _values(self, letters: str) -> CData:
        """Return a pointer to words for values of these types; NULL if there are no letters."""
        if not letters:
            return ffi.NULL
        size = 4 * VALUE_WORDS
        # The library may move a value as 16 bytes at once, so a value must lie on a multiple of 16.
        buffer = ffi.new("uint8_t[]", size * len(letters) + 16)
        self._buffers.append(buffer)
        aligned = ffi.cast("uint32_t *", (address(buffer) + 15) & ~15)
        for position, letter in enumerate(letters):
            ffi.buffer(aligned + position * VALUE_WORDS, size)[16:24] = ffi.buffer(value_types(letter))[:8]
        return aligned


class Program:
    """A module that is linked to its imports and can be run any number of times, in one thread.

    `with program.open(memory):` makes a fresh instance, in which `call` calls entry points; the instance ends with the
    block. An instance is never used twice, because its globals and tables could not be reset.
    """

    _live: ClassVar[bool] = False
    """Whether this process has an instance now."""
    _keeping: ClassVar[list["Program"]] = []
    """The programs whose memories are reserved, the one that reserved them first comes first."""

    def __init__(
        self,
        module: Module,
        config: Config,
        imports: Sequence[HostModule],
        entries: Sequence[EntryPoint],
        second_memory: str = "",
        *,
        initialize: bool = True,
        image: Image | None = None,
    ) -> None:
        """Link `module` to `imports`. `second_memory` is the name under which the module exports another memory that
        the host reads and writes; empty if it has none. `initialize` says whether `open` calls its `_initialize`.
        `image` is what the memory of a snapshot starts with; `module` is its engine then.

        Raises: LinkError, when `module` doesn't export exactly `memory` and `second_memory`, when `memory` starts with
        more pages than `config` allows, or when an entry point is missing.
        """
        exported = module.memories()
        expected = ["memory", second_memory] if second_memory else ["memory"]
        if [memory.name for memory in exported] != expected:
            second = f", and a second one as `{second_memory}`" if second_memory else ""
            raise LinkError(0x0301, f"a module must export exactly one memory, under the name `memory`{second}")
        if second_memory and exported[1].minimum < 1:
            raise LinkError(0x0301, f"the memory {second_memory} starts with no page")
        starts = [each.minimum for each in exported]
        if image is not None:
            starts[0] = image.pages
        minimum = starts[0]
        if not 1 <= minimum <= config.memory_pages:
            raise LinkError(
                0x0301, f"the module's memory starts with {minimum} pages; 1 to {config.memory_pages} are allowed"
            )
        if module.memory_sources() != [MODULE] * len(exported):
            # Otherwise the host would read and write a memory that isn't the guest's.
            raise LinkError(0x0301, "the module's memories aren't imported: it must come from `import_memories`")
        most = config.memory_pages
        self._limits = [
            (start, most if each.maximum is None else min(most, each.maximum))
            for start, each in zip(starts, exported, strict=True)
        ]
        self._image = image
        self._bytes = sum(start for start, _ in self._limits) * PAGE
        self.functions = module.functions()
        """The functions that the module exports, with their signatures."""
        for entry in entries:
            if entry.name not in self.functions:
                raise LinkError(0x0302, f"the module has no function {entry.name}")
        self._initializes = initialize and self.functions.get(_INITIALIZE.name) == ("", "")
        self._module, self._config, self._imports = module, config, imports
        self.last_pages = 0
        """Pages of 64 KiB that the memory had at the end of the last call that failed."""
        self._new_instance = ffi.new("WasmEdge_ModuleInstanceContext **")
        self._executor = Executor(config)
        self._store = ImportStore(self._executor, imports)
        self._pointers: tuple[CData, CData, CData] | None = None
        """The pointers of executor, store and module, from the first call on."""
        self._reserved: ReservedMemories | None = None
        self.lent: Callable[[], None] | None = None
        """Called when the memories are freed, if others make instances too (`loan`)."""
        self._instance: CData = None
        self._memory: Memory
        """The window on the memory of the running instance."""
        self._second_memory: Memory | None = None

    def open(self, memory: Memory, second: Memory | None = None) -> Self:
        """Make an instance, and run its start section and its `_initialize`, if it has them. Until the block ends,
        host functions find the guest's memory in `memory`, and the second one in `second`; afterwards both are empty.

        Raises: what a host function raised, unchanged; Trap, when the guest traps; LinkError, when it can't be
        instantiated; Unsafe, when its memory can't be reserved (nothing of the guest has run then); what `reserve`
        raises; HandleClosed, after `close`.
        """
        if Program._live:
            raise Unsafe("this process already has a live instance; one at a time")
        executor, store, module = self._pointers or self._linked()
        reserved = self._reserved or self.reserve()
        new_instance = self._new_instance
        if unclaimed:
            take_raised()
        Program._live = True
        self._memory, self._second_memory = memory, second
        try:
            memory.open(reserved.memories[0])
            if second is not None:
                second.open(reserved.memories[1])
            result = _instantiate(executor, new_instance, store, module)
            if result:
                self._failed(result)
            self._instance = new_instance[0]
            if self._initializes:
                self.call(_INITIALIZE)
        except BaseException:
            self.end(failed=True)
            raise
        return self

    def call(self, entry: EntryPoint, *numbers: int) -> int:
        """Call an entry point, and return its result as an unsigned number, 0 if it has none.

        Raises: as `open`.
        """
        arguments, word = entry.arguments, 0
        for number in numbers:
            arguments[word] = number
            word += VALUE_WORDS
        executor, _, _ = self._pointers  # type: ignore[misc]
        result_words, count = entry.result, entry.results
        function = _find_function(self._instance, entry.c_name)
        result = _invoke(executor, function, arguments, len(numbers), result_words, count)
        if result:
            self._failed(result)
        if not count:
            return 0
        return result_words[0] | result_words[1] << 32 if entry.wide else result_words[0]  # type: ignore[no-any-return]

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.end(failed=kind is not None)

    def _linked(self) -> tuple[CData, CData, CData]:
        self._pointers = self._executor.pointer, self._store.pointer, self._module.pointer
        return self._pointers

    def reserve(self) -> ReservedMemories:
        """Reserve the memories, in place of other programs' if necessary. `open` does so when it needs to.

        Raises: Unsafe, when they can't be reserved; Damaged, when the image isn't what was made; OSError, when it can't
        be read.
        """
        keeping = Program._keeping
        while len(keeping) >= KEPT or (keeping and sum(each._bytes for each in (self, *keeping)) > KEPT_BYTES):
            keeping[0].give_up()
        reserved = ReservedMemories(self._limits, self._image)
        check(library.WasmEdge_ExecutorRegisterImport(self._executor.pointer, self._store.pointer, reserved.pointer))
        self._reserved = reserved
        keeping.append(self)
        return reserved

    def give_up(self) -> None:
        """Free the memories; they are reserved again for the next instance."""
        reserved, self._reserved = self._reserved, None
        if reserved is not None:
            Program._keeping.remove(self)
            if self.lent is not None:
                self.lent()
            reserved.close()

    def end(self, failed: bool) -> None:
        """Delete the instance, as leaving the block does. `failed` says whether the call failed."""
        memory, instance = self._memory, self._instance
        if failed:
            self.last_pages = memory.pages()
        memory.close()
        if self._second_memory is not None:
            self._second_memory.close()
        if instance is not None:
            self._instance = None
            _delete(instance)
            if not self._reserved.clear():  # type: ignore[union-attr]
                self.give_up()
        else:
            self.renew()
        Program._live = False

    def renew(self) -> None:
        """Replace store and memories after a failed instantiation: the store keeps the instance, which refers to the
        memories."""
        self._store.close()
        self.give_up()
        self._store = ImportStore(self._executor, self._imports)
        self._pointers = None

    def loan(self) -> Loan | None:
        """Return what is needed to make instances of the program without this class, one at a time and none while a
        block of `open` runs, until `lent` is called; None if the memory isn't kept from call to call."""
        reserved = self._reserved
        if reserved is None or len(reserved.memories) > 1:
            return None
        memory, (pages, most) = reserved.memories[0], self._limits[0]
        executor, store, module = map(address, self._linked())
        image = 0 if memory.image is None else address(memory.image.source)
        return Loan(
            executor,
            store,
            module,
            address(memory.pointer),
            address(memory.base),
            image,
            pages,
            most,
            self._initializes,
        )

    @staticmethod
    def _failed(result: int) -> None:
        raise take_raised() or failed(result)

    def close(self) -> None:
        """Delete everything that the program made, and the module unless others have it; the imports remain the
        caller's.

        Raises: Unsafe, when the program has an instance.
        """
        if self._instance is not None:
            raise Unsafe("this program has a live instance, whose memory can't be taken away: close it after its block")
        self._pointers = None
        self._store.close()
        self.give_up()
        self._executor.close()
        if not self._module.shared:
            self._module.close()


def failed(result: int) -> WasmEdgeError:
    """Return the error for WasmEdge's result, if no host function has ended the guest."""
    if result > 1:
        return failure(result & 0xFFFFFF, message(result))
    return LinkError(result, f"the guest ended without a reason ({message(result)})")


_INITIALIZE = EntryPoint("_initialize")
"""A WASI library (a reactor) exports it, to be called before any other of its functions."""
