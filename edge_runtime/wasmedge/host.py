"""Modules of host functions, written in Python, that guests import."""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from edge_runtime.wasmedge.declarations import VALUE_WORDS, CData, ffi, library
from edge_runtime.wasmedge.handles import Handle, Name

Signature = tuple[str, str]
"""Parameters and results, a letter each: `i` an i32, `I` an i64, as in ("iIi", "i"). One result at most."""

_STOPPED = 1
"""The result with which WasmEdge unwinds the guest ("terminated"): the exception that was saved says why."""

unclaimed: list[BaseException] = []
"""What host functions raised during the running call. One guest runs at a time in a process, so one list is enough."""


class HostModule(Handle):
    """A named module of host functions. Values come in as unsigned integers, and an i32 result is an int.

    A function that raises ends the guest, and the call raises that exception; but where `out_of_bounds` is given, an
    IndexError (of an access outside the guest's memory) is answered to the guest as that number.
    What instances link must outlive them.
    """

    _delete = "WasmEdge_ModuleInstanceDelete"

    def __init__(
        self,
        name: str,
        functions: Mapping[str, tuple[Signature, Callable[..., Any]]],
        *,
        out_of_bounds: int | None = None,
    ) -> None:
        self.name = name
        self._out_of_bounds = out_of_bounds
        # In a variable: a name that is only an argument is freed before the call.
        named = Name(name)
        self._own(library.WasmEdge_ModuleInstanceCreate(named.value))
        # The library keeps bare pointers to these.
        self._callbacks: list[CData] = []
        for function_name, (signature, function) in functions.items():
            self._add(function_name, signature, function)

    def _add(self, name: str, signature: Signature, function: Callable[..., Any]) -> None:
        trampoline = _trampoline(signature, function, self._out_of_bounds)
        callback = ffi.callback("HostFunction", trampoline, error=_STOPPED, onerror=_save)
        self._callbacks.append(callback)
        parameters, results = signature
        kind = library.WasmEdge_FunctionTypeCreate(
            value_types(parameters), len(parameters), value_types(results), len(results)
        )
        instance = library.WasmEdge_FunctionInstanceCreate(kind, callback, ffi.NULL, 0)
        library.WasmEdge_FunctionTypeDelete(kind)
        # From here the module owns the function.
        named = Name(name)
        library.WasmEdge_ModuleInstanceAddFunction(self.pointer, named.value, instance)

    def close(self) -> None:
        super().close()
        self._callbacks = []


def take_raised() -> BaseException | None:
    """Take the first exception that host functions raised since the last time."""
    if not unclaimed:
        return None
    first = unclaimed[0]
    unclaimed.clear()
    return first


def _save(_kind: type[BaseException], error: BaseException, _trace: TracebackType) -> None:
    unclaimed.append(error)


def value_types(letters: str) -> CData:
    """The C API's names for types."""
    kinds = {"i": library.WasmEdge_ValTypeGenI32, "I": library.WasmEdge_ValTypeGenI64}
    return ffi.new("WasmEdge_ValType[]", [kinds[letter]() for letter in letters])


def _trampoline(
    signature: Signature, function: Callable[..., Any], out_of_bounds: int | None
) -> Callable[[CData, CData, CData, CData], int]:
    """The C side's view of a Python function. Guests call some of these ten times a request: the usual shapes are
    written out, since an index on the words costs 40 ns and a loop over them several times that."""
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
