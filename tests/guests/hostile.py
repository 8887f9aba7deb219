"""Modules that mean harm, each in its own way, and what becomes of them: refused when they are uploaded, or accepted,
and then each call ends in its own status and code."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from .build import wat

MEMORY = '(memory (export "memory") 1)'
ENTRY = '(func (export "_start"))'
HEAD = b"\0asm\1\0\0\0"
BRIEF: dict[str, Any] = {"time_limit_ms": 300}
"""For those that have no end. The others have the usual time: a busy machine may hold them up."""


class Accepted(NamedTuple):
    wasm: bytes
    status: int
    code: str = ""
    """Code of the error that the call ends with; empty where the guest answers, with nothing."""
    manifest: dict[str, Any] = {}  # noqa: RUF012  (never changed)


def entry(body: str, *fields: str, memory: str = MEMORY) -> bytes:
    return wat(f'(module {" ".join(fields)} {memory} (func (export "_start") {body}))')


def refused() -> dict[str, tuple[bytes, str]]:
    """By name: the module, and the code with which the check refuses it."""
    nothing = '(func $f (import "nowhere" "nothing"))'
    return {
        "imports what is not there": (entry("", nothing), "imports_unknown"),
        "imports a global": (entry("", '(import "env" "g" (global i32))'), "imports_unknown"),
        "imports a table": (entry("", '(import "env" "t" (table 1 funcref))'), "imports_unknown"),
        "imports WASI with another type": (
            entry("", '(import "wasi_snapshot_preview1" "fd_write" (func (param i64)))'),
            "imports_mismatch",
        ),
        "no memory": (entry("", memory=""), "memory_missing"),
        "two memories": (entry("", "(memory 1)"), "memory_several"),
        "two memories, both exported": (entry("", '(memory (export "other") 1)'), "memory_several"),
        "an imported memory": (entry("", memory='(import "env" "memory" (memory 1))'), "memory_imported"),
        "the runtime's own import": (entry("", memory='(import "skerry: memory" "0" (memory 1))'), "memory_imported"),
        "an imported memory and its own": (entry("", '(import "env" "memory" (memory 1))'), "memory_imported"),
        "a hidden memory": (entry("", memory="(memory 1)"), "memory_not_exported"),
        "no page": (entry("", memory='(memory (export "memory") 0)'), "memory_zero"),
        "a minimum above the limit": (entry("", memory='(memory (export "memory") 16385)'), "memory_above_limit"),
        "a minimum of 4 GiB": (entry("", memory='(memory (export "memory") 65536)'), "memory_above_limit"),
        "a minimum beyond 4 GiB": (module(memory=b"\1\0" + leb(65537)), "memory_above_limit"),
        "a maximum below the minimum": (module(memory=b"\1\1\2\1"), "module_invalid"),
        "64-bit memory": (entry("", memory='(memory (export "memory") i64 1)'), "memory_64"),
        "shared memory": (entry("", memory='(memory (export "memory") 1 2 shared)'), "memory_shared"),
        "a table of a billion": (entry("", "(table 1000000000 funcref)"), "table_too_large"),
        "a table that grows without end": (
            entry("(loop (drop (table.grow 0 (ref.null func) (i32.const 1000))) (br 0))", "(table 1 funcref)"),
            "table_unbounded",
        ),
        "no entry": (wat(f"(module {MEMORY})"), "abi_unknown"),
        "an entry of another type": (wat(f'(module {MEMORY} (func (export "_start") (param i32)))'), "abi_unknown"),
        "an entry that does not exist": (module(exports=[b"\6memory\2\0", b"\6_start\0\x63"]), "module_invalid"),
        "two entries": (module(exports=[b"\6memory\2\0", b"\6_start\0\0", b"\6_start\0\0"]), "module_invalid"),
        "a start function that takes a value": (
            module(types=[b"\x60\0\0", b"\x60\1\x7f\0"], start=1),
            "module_invalid",
        ),
        "a start function that does not exist": (module(start=99), "module_invalid"),
        "machine code": (module() + section(0, b"\x08wasmedge\0"), "module_native"),
        "a million sections": (module() + section(0, b"\0") * 1_000_000, "module_invalid"),
        "its memory behind its exports": (_memory_last(), "module_invalid"),
        "two start sections": (module() + section(8, b"\0") + section(8, b"\0"), "module_invalid"),
        "4 billion local variables": (module(bodies=[b"\1" + leb(2**32 - 1) + b"\x7f\x0b"]), "module_too_complex"),
        "3,000 functions of 50,000 local variables": (
            module(functions=3001, bodies=[b"\0\x0b"] + [b"\1" + leb(50_000) + b"\x7f\x0b"] * 3000),
            "module_too_complex",
        ),
        "a function of 100,000 parameters": (
            module(types=[b"\x60\0\0", b"\x60" + leb(100_000) + b"\x7f" * 100_000 + b"\0"]),
            "module_too_complex",
        ),
        "a thousand types of 2,000 values": (
            module(types=[b"\x60\0\0"] + [b"\x60" + (leb(1000) + b"\x7f" * 1000) * 2] * 1000),
            "module_too_complex",
        ),
        "4 billion functions, it says": (HEAD + section(3, leb(2**32 - 1)), "module_invalid"),
        "a million functions, it says": (HEAD + section(1, b"\1\x60\0\0") + section(3, leb(999_999)), "module_invalid"),
        "a name of 4 GiB, it says": (HEAD + section(7, b"\1" + leb(2**32 - 1)), "module_invalid"),
        "a section longer than the file": (HEAD + b"\1" + leb(2**32 - 1), "module_invalid"),
        "functions without bodies": (module(functions=9), "module_invalid"),
        "a body of another type": (module(bodies=[b"\0\x41\0\x0b"]), "module_invalid"),
        "a jump out of its function": (module(bodies=[b"\0\x0c\x09\x0b"]), "module_invalid"),
        "an unknown instruction": (module(bodies=[b"\0\xff\x0b"]), "module_invalid"),
    }


def accepted() -> dict[str, Accepted]:
    """By name, which is one for a function: the module, its manifest, and how its calls end."""
    write = '(import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))'
    poll = '(import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))'
    exits = '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))'
    table = "(table 2 2 funcref)"
    recurse = (
        "(func $r (param i64) (result i64) (i64.add (call $r (local.get 0)) (i64.load (i32.wrap_i64 (local.get 0)))))"
    )
    loops = Accepted(entry("(loop (br 0))"), 504, "time_limit", BRIEF)
    traps = {
        "unreachable": entry("unreachable"),
        "divide-by-zero": entry("(drop (i32.div_s (i32.const 1) (i32.const 0)))"),
        "divide-overflow": entry("(drop (i64.div_s (i64.const -9223372036854775808) (i64.const -1)))"),
        "remainder-by-zero": entry("(drop (i64.rem_u (i64.const 1) (i64.const 0)))"),
        "truncate-nan": entry("(drop (i32.trunc_f64_s (f64.const nan)))"),
        "truncate-large": entry("(drop (i64.trunc_f32_u (f32.const 1e30)))"),
        "load-outside": entry("(drop (i32.load (i32.const 65533)))"),
        "load-far-outside": entry("(drop (i64.load offset=4294967295 (i32.const -1)))"),
        "store-outside": entry("(i32.store8 (i32.const 65536) (i32.const 1))"),
        "vector-outside": entry("(drop (v128.load (i32.const 65521)))"),
        "fill-outside": entry("(memory.fill (i32.const 1) (i32.const 0) (i32.const 65536))"),
        "copy-outside": entry("(memory.copy (i32.const 0) (i32.const 1) (i32.const 65536))"),
        "init-outside": entry("(memory.init 0 (i32.const 0) (i32.const 0) (i32.const 9))", '(data "x")'),
        "init-dropped": entry("(data.drop 0) (memory.init 0 (i32.const 0) (i32.const 0) (i32.const 1))", '(data "x")'),
        "call-null": entry("(call_indirect (i32.const 0))", table),
        "call-outside": entry("(call_indirect (i32.const 2))", table),
        "call-another-type": entry(
            "(call_indirect (i32.const 0))", table, "(func $f (param i32))", "(elem (i32.const 0) $f)"
        ),
        "table-outside": entry("(table.set (i32.const 2) (ref.null func))", table),
        "table-copy-outside": entry("(table.copy (i32.const 1) (i32.const 0) (i32.const 2))", table),
        "start-traps": entry("", "(func $s unreachable)", "(start $s)"),
        "data-outside": entry("", '(data (i32.const 65536) "x")'),
        "elements-outside": entry("", table, "(func $f)", "(elem (i32.const 2) $f)"),
    }
    return {
        **{name: Accepted(wasm, 502, "guest_trap") for name, wasm in traps.items()},
        **_direct(),
        **_plugins(),
        "loop": loops,
        "loop-in-start": loops._replace(wasm=entry("", "(func $s (loop (br 0)))", "(start $s)")),
        "loop-with-calls": loops._replace(
            wasm=entry(
                "(loop (drop (call $write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8))) (br 0))", write
            )
        ),
        "sleep": loops._replace(
            wasm=entry(
                "(i32.store (i32.const 16) (i32.const 1)) (i64.store (i32.const 24) (i64.const -1))"
                "(drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))",
                poll,
            )
        ),
        "recurse": Accepted(entry("(drop (call $r (i64.const 0)))", recurse), 502, "worker_crashed"),
        "recurse-in-start": Accepted(
            entry("", recurse, "(func $s (drop (call $r (i64.const 0))))", "(start $s)"), 502, "worker_crashed"
        ),
        "recurse-through-a-table": Accepted(
            entry(
                "(call $f)",
                "(table 1 1 funcref)",
                "(elem (i32.const 0) $f)",
                "(func $f (call_indirect (i32.const 0)) (call_indirect (i32.const 0)))",
            ),
            502,
            "worker_crashed",
        ),
        "recurse-with-large-frames": Accepted(entry("(drop (call $w (i64.const 1)))", _wide()), 502, "worker_crashed"),
        "grow-to-the-end": Accepted(
            entry(
                "(local i32) (loop (local.set 0 (memory.grow (i32.const 1)))"
                "(if (i32.eq (local.get 0) (i32.const -1)) (then unreachable))"
                "(i64.store (i32.shl (local.get 0) (i32.const 16)) (i64.const -1)) (br 0))"
            ),
            502,
            "guest_trap",
            {"memory_pages": 2048},
        ),
        "grow-at-once": Accepted(
            entry("(if (i32.eq (memory.grow (i32.const 65535)) (i32.const -1)) (then unreachable))"), 502, "guest_trap"
        ),
        "minimum-at-the-manifests-limit": Accepted(
            entry("unreachable", memory='(memory (export "memory") 64)'), 502, "guest_trap", {"memory_pages": 64}
        ),
        "write-without-end": Accepted(
            entry(
                "(i32.store (i32.const 4) (i32.const 65536))"
                "(loop (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))) (br 0))",
                write,
            ),
            507,
            "response_too_large",
        ),
        "exit": Accepted(entry("(call $exit (i32.const 1))", exits), 502, "guest_exit"),
        "exit-in-start": Accepted(
            entry("", exits, "(func $s (call $exit (i32.const 3)))", "(start $s)"), 502, "guest_exit"
        ),
        "exit-without-an-answer": Accepted(entry("(call $exit (i32.const 0))", exits), 502, "guest_response_invalid"),
        "nothing": Accepted(entry(""), 502, "guest_response_invalid"),
        "ten-thousand-functions": Accepted(
            module(functions=10_000, bodies=[b"\0\x10" + leb(9_999) + b"\x0b"] + [b"\0\x0b"] * 9_998 + [b"\0\0\x0b"]),
            502,
            "guest_trap",
        ),
        "a-million-jumps": Accepted(
            module(bodies=[b"\0\x41\0\x0e" + leb(1_000_000) + b"\0" * 1_000_001 + b"\x0b"]),
            502,
            "guest_response_invalid",
        ),
        "ten-thousand-blocks-deep": Accepted(
            module(bodies=[b"\0" + b"\x02\x40" * 10_000 + b"\0" + b"\x0b" * 10_001]), 502, "guest_trap"
        ),
    }


def largest() -> Accepted:
    """A module as large as it may be."""
    data = [b"\0\x41\0\x0b" + leb(66_000_000) + bytes(66_000_000)]
    return Accepted(module(memory=b"\1\0" + leb(1020), data=data), 502, "guest_response_invalid")


def too_large() -> bytes:
    """One of 64 MiB and some bytes."""
    return b"".join([module(), b"\0", leb(2**26), bytes(2**26)])


def _direct() -> dict[str, Accepted]:
    """Guests of the ABI `direct` that lie about places and sizes."""

    def made(
        code: str, *, room: str = "(i32.const 1024)", answer: str = "(i64.const 0)", status: int = 502
    ) -> Accepted:
        wasm = wat(f"""(module {MEMORY} (func (export "skerry_alloc") (param i32) (result i32) {room})
          (func (export "skerry_handle") (param i32 i32) (result i64) {answer}))""")
        return Accepted(wasm, status, code, {"abi": "direct", **(BRIEF if status == 504 else {})})

    def says(status: int, head: int) -> str:
        return (
            f"(i32.store (i32.const 8) (i32.const {status})) (i32.store (i32.const 12) (i32.const {head}))"
            f"(i64.const {8 << 32 | 8})"
        )

    return {
        "direct-no-room": made("guest_call_invalid", room="(i32.const 0)"),
        "direct-room-outside": made("guest_call_invalid", room="(i32.const 65535)"),
        "direct-room-at-the-end-of-all": made("guest_call_invalid", room="(i32.const -1)"),
        "direct-room-is-a-trap": made("guest_trap", room="unreachable"),
        "direct-answer-of-nothing": made("guest_response_invalid"),
        "direct-answer-outside": made("guest_response_invalid", answer=f"(i64.const {65_530 << 32 | 8})"),
        "direct-answer-of-4-gib": made("response_too_large", answer="(i64.const -1)", status=507),
        "direct-head-beyond-the-answer": made("guest_response_invalid", answer=says(200, 1)),
        "direct-head-of-4-gib": made("guest_response_invalid", answer=says(200, -1)),
        "direct-no-status": made("guest_response_invalid", answer=says(99, 0)),
        "direct-loop": made("time_limit", answer="(loop (br 0)) (i64.const 0)", status=504),
    }


def _plugins() -> dict[str, Accepted]:
    """Extism plug-ins that use handles which nobody gave them."""

    def made(body: str, status: int, code: str) -> Accepted:
        kinds = {"alloc": "I:I", "free": "I:", "length": "I:I", "load_u64": "I:I", "store_u64": "II:"}
        kinds |= {"output_set": "II:", "error_set": "I:", "config_get": "I:I", "var_set": "II:", "log_info": "I:"}
        imports = []
        for name, kind in kinds.items():
            given, _, result = kind.partition(":")
            types = f"(param {'i64 ' * len(given)}) {'(result i64)' if result else ''}"
            imports.append(f'(import "extism:host/env" "{name}" (func ${name} {types}))')
        wasm = wat(f"""(module {" ".join(imports)} {MEMORY} (func (export "run") (result i32) (local i64) {body}))""")
        manifest = {"abi": "extism", "entry": "run", "memory_pages": 64, **(BRIEF if status == 504 else {})}
        return Accepted(wasm, status, code, manifest)

    places = (0, 1, 8, 16, 512, 65_528, 2**31, 2**32 - 8, 2**32, 2**63 - 1, -1)
    pokes = "".join(
        f"(call $store_u64 (i64.const {place}) (i64.const -1)) (call $free (i64.const {place}))"
        f"(drop (call $load_u64 (i64.const {place}))) (drop (call $length (i64.const {place})))"
        for place in places
    )
    return {
        "plugin-pokes-at-the-kernel": made(f"{pokes} (i32.const 1)", 502, "guest_error"),
        "plugin-output-that-nobody-gave": made(
            "(call $output_set (i64.const -1) (i64.const 8)) (i32.const 0)", 200, ""
        ),
        "plugin-output-of-everything": made("(call $output_set (i64.const 1) (i64.const -1)) (i32.const 0)", 200, ""),
        "plugin-allocates-without-end": made(
            "(loop (br_if 0 (i64.ne (call $alloc (i64.const 65536)) (i64.const 0)))) unreachable", 502, "guest_trap"
        ),
        "plugin-key-that-nobody-gave": made(
            "(drop (call $config_get (i64.const -1))) (i32.const 7)", 502, "guest_call_invalid"
        ),
        "plugin-trap": made("unreachable", 502, "guest_trap"),
        "plugin-loop": made("(loop (br 0)) (i32.const 0)", 504, "time_limit"),
    }


def module(
    *,
    types: Iterable[bytes] = (b"\x60\0\0",),
    functions: int = 1,
    bodies: Iterable[bytes] = (b"\0\x0b",),
    memory: bytes = b"\1\0\1",
    exports: Iterable[bytes] = (b"\6memory\2\0", b"\6_start\0\0"),
    start: int | None = None,
    data: Iterable[bytes] = (),
) -> bytes:
    """A module in bytes, for what the text format would refuse or take long to read. Where there are two types and a
    start function, that one is of the second."""
    kinds = [b"\0"] * functions
    if start == 1:
        kinds, bodies = [b"\0", b"\1"], [b"\0\x0b", b"\0\x0b"]
    sections: list[tuple[int, bytes]] = [(1, vector(types)), (3, vector(kinds)), (5, memory), (7, vector(exports))]
    if start is not None:
        sections.append((8, leb(start)))
    sections.append((10, vector([leb(len(body)) + body for body in bodies])))
    if data := list(data):
        sections.append((11, vector(data)))
    return HEAD + b"".join([section(number, content) for number, content in sections])


def _wide() -> str:
    """A function that calls itself and needs its 200 local variables afterwards."""
    sets = "".join(f"(local.set {n} (i64.mul (local.get 0) (i64.const {n})))" for n in range(1, 201))
    total = "(call $w (i64.add (local.get 0) (i64.const 1)))"
    for n in range(1, 201):
        total = f"(i64.add (local.get {n}) {total})"
    return f"(func $w (param i64) (result i64) (local {'i64 ' * 200}) {sets} {total})"


def _memory_last() -> bytes:
    whole = module()
    memory = section(5, b"\1\0\1")
    at = whole.index(memory)
    behind = whole.index(section(10, b"\1\2\0\x0b"))
    return whole[:at] + whole[at + len(memory) : behind] + memory + whole[behind:]


def section(number: int, content: bytes) -> bytes:
    return bytes([number]) + leb(len(content)) + content


def vector(entries: Iterable[bytes]) -> bytes:
    entries = list(entries)
    return leb(len(entries)) + b"".join(entries)


def leb(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + leb(number >> 7)
