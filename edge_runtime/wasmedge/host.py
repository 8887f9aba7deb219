"""Host functions: modules written in Python that guests import."""

from collections.abc import Callable, Mapping
from types import TracebackType

from edge_runtime.wasmedge.c_api import VALUE_WORDS, CData, Handle, Name, address, ffi, library

Signature = tuple[str, str]
"""Types of the parameters and of the result, one letter each: `i` for i32, `I` for i64, as in ("iIi", "i"). There is at
most one result."""

HostFunction = Callable[..., int | None]
"""Called with an unsigned integer for each parameter; returns the result, None if the signature has none."""

Replace = Callable[[str, int], tuple[int, int]]
"""Given a host function's name and the address of its callback, returns the address of the C function that is called
instead, and the address of its argument."""

_STOPPED = 1
"""The result that makes WasmEdge unwind the guest ("terminated"); the saved exception says why."""

unclaimed: list[BaseException] = []
"""Exceptions that host functions raised during the running call. One guest runs at a time in a process, so one list
suffices."""


class HostModule(Handle):
    """A named module of host functions. Arguments arrive as unsigned integers; an i32 result is an int.

    An exception of a host function ends the guest, and the call into the guest raises that exception. If
    `out_of_bounds` is given, an IndexError (an access outside the guest's memory) doesn't end the guest: it gets that
    number as the result. A host module must outlive the instances that import it. `replace` replaces each function with
    a C function.
    """

    _delete = "WasmEdge_ModuleInstanceDelete"

    def __init__(
        self,
        name: str,
        functions: Mapping[str, tuple[Signature, HostFunction]],
        *,
        out_of_bounds: int | None = None,
        replace: Replace | None = None,
    ) -> None:
        self.name = name
        self._out_of_bounds = out_of_bounds
        self._replace = replace
        # Kept in a variable: a name that is only passed as an argument would be freed before the call.
        c_name = Name(name)
        self._own(library.WasmEdge_ModuleInstanceCreate(c_name.value))
        # The library keeps bare pointers to the callbacks, so they are referenced here.
        self._callbacks: list[CData] = []
        for function_name, (signature, function) in functions.items():
            self._add(function_name, signature, function)

    def _add(self, name: str, signature: Signature, function: HostFunction) -> None:
        trampoline = _trampoline(signature, function, self._out_of_bounds)
        callback = ffi.callback("HostFunction", trampoline, error=_STOPPED, onerror=_save)
        self._callbacks.append(callback)
        parameters, results = signature
        function_type = library.WasmEdge_FunctionTypeCreate(
            value_types(parameters), len(parameters), value_types(results), len(results)
        )
        called, data = callback, ffi.NULL
        if self._replace is not None:
            function_address, data_address = self._replace(name, address(callback))
            called, data = ffi.cast("HostFunction", function_address), ffi.cast("void *", data_address)
        instance = library.WasmEdge_FunctionInstanceCreate(function_type, called, data, 0)
        library.WasmEdge_FunctionTypeDelete(function_type)
        # From here on the module instance owns the function.
        c_name = Name(name)
        library.WasmEdge_ModuleInstanceAddFunction(self.pointer, c_name.value, instance)

    def close(self) -> None:
        super().close()
        self._callbacks = []


def take_raised() -> BaseException | None:
    """Return the first exception that host functions raised since the last call of this function, and forget them
    all."""
    if not unclaimed:
        return None
    first = unclaimed[0]
    unclaimed.clear()
    return first


def _save(_kind: type[BaseException], error: BaseException, _trace: TracebackType) -> None:
    unclaimed.append(error)


def value_types(letters: str) -> CData:
    """Return a C array of WasmEdge's value types for a signature's letters."""
    kinds = {"i": library.WasmEdge_ValTypeGenI32, "I": library.WasmEdge_ValTypeGenI64}
    return ffi.new("WasmEdge_ValType[]", [kinds[letter]() for letter in letters])


def _trampoline(
    signature: Signature, function: HostFunction, out_of_bounds: int | None
) -> Callable[[CData, CData, CData, CData], int]:
    """Return `function` as the callback that the C API calls. A guest calls some host functions ten times per request,
    so the usual signatures are unrolled: an index into the words costs 40 ns, and a loop over them several times
    that."""
    caught: tuple[type[IndexError], ...] = () if out_of_bounds is None else (IndexError,)
    a, b, c, d = (VALUE_WORDS * position for position in range(4))
    match signature:
        case ("ii", "i"):

            def two(_data: CData, _frame: CData, p: CData, r: CData) -> int:
                try:
                    r[0] = function(p[a], p[b])
                except caught:
                    r[0] = out_of_bounds
                return 0

            return two
        case ("i", ""):

            def one(_data: CData, _frame: CData, p: CData, _r: CData) -> int:
                try:
                    function(p[a])
                except caught:
                    return 0
                return 0

            return one
        case ("iiii", "i"):

            def four(_data: CData, _frame: CData, p: CData, r: CData) -> int:
                try:
                    r[0] = function(p[a], p[b], p[c], p[d])
                except caught:
                    r[0] = out_of_bounds
                return 0

            return four

    slots = [(VALUE_WORDS * position, letter == "I") for position, letter in enumerate(signature[0])]
    answers = bool(signature[1])

    def any_shape(_data: CData, _frame: CData, p: CData, r: CData) -> int:
        try:
            result = function(*[p[slot] | p[slot + 1] << 32 if wide else p[slot] for slot, wide in slots])
        except caught:
            result = out_of_bounds
        if answers:
            r[0] = result
        return 0

    return any_shape
