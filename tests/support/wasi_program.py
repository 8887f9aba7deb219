"""A WAGI program that makes calls of WASI's functions, as its request's body has them, and answers with what each
returned and a checksum of the memory after it.

Stdin begins with the program: its size, and then steps. What comes behind it is the stdin that the calls read.
"""

import functools
import random
import struct
from collections.abc import Sequence

from edge_runtime.guests.abi.imports import WASI, WASI_SIGNATURES
from tests.guests.build import wat
from tests.support.wasi_calls import PAGE, Call, Step, Write

NAMES = [*sorted(name for name in WASI_SIGNATURES if name != "proc_exit"), "proc_exit"]
ARENA = 4 * PAGE
"""Where the page begins that is the calls' to use: the memory's last one, until a step grows it."""
END = ARENA + PAGE
_MOST_ARGUMENTS = 9
_HEAD, _PROGRAM, _RECORDS = 64, PAGE, 3 * PAGE


def _dispatch() -> tuple[str, str]:
    """The imports, and a function for each that takes its arguments from the step, and one that chooses among them."""
    imports, bodies, choice = [], [], "(i32.const 0)"
    for number, name in enumerate(NAMES):
        parameters, results = WASI_SIGNATURES[name]
        types = " ".join("i64" if letter == "I" else "i32" for letter in parameters)
        imports.append(
            f'(import "{WASI}" "{name}" (func $import_{name} (param {types}) {"(result i32)" if results else ""}))'
        )
        loads = " ".join(
            f"({'i64' if letter == 'I' else 'i32'}.load offset={8 * place} (local.get 0))"
            for place, letter in enumerate(parameters)
        )
        called = f"(call $import_{name} {loads})" + ("" if results else " (i32.const 0)")
        # Its records are out before a program ends.
        first = "(call $flush)" if name == "proc_exit" else ""
        bodies.append(f"(func ${name} (param i32) (result i32) {first} {called})")
        choice = (
            f"(if (result i32) (i32.eq (local.get 0) (i32.const {number})) "
            f"(then (call ${name} (local.get 1))) (else {choice}))"
        )
    bodies.append(f"(func $call (param i32 i32) (result i32) {choice})")
    return "\n".join(imports), "\n".join(bodies)


@functools.cache
def program() -> bytes:
    """The module."""
    imports, functions = _dispatch()
    return wat(f"""(module {imports}
  (memory (export "memory") 5)
  (global $at (mut i32) (i32.const {_PROGRAM}))
  (global $record (mut i32) (i32.const {_RECORDS}))
  (data (i32.const {_HEAD}) "content-type: application/x\\n\\n")
  {functions}
  (func $next (result i32)
    (global.set $at (i32.add (global.get $at) (i32.const 4)))
    (i32.load (i32.sub (global.get $at) (i32.const 4))))
  (func $note (param i32)
    (i32.store (global.get $record) (local.get 0))
    (global.set $record (i32.add (global.get $record) (i32.const 4))))
  (func $flush
    (i32.store (i32.const 16) (i32.const {_RECORDS}))
    (i32.store (i32.const 20) (i32.sub (global.get $record) (i32.const {_RECORDS})))
    (drop (call $import_fd_write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 24)))
    (drop (call $import_fd_write (i32.const 2) (i32.const 16) (i32.const 1) (i32.const 24))))
  (func $checksum (result i32) (local $i i32) (local $sum i64)
    (local.set $i (i32.const {ARENA}))
    (loop $more
      (local.set $sum (i64.mul (i64.xor (local.get $sum) (i64.load (local.get $i)))
                               (i64.const 0x100000001b3)))
      (local.set $sum (i64.xor (local.get $sum) (i64.shr_u (local.get $sum) (i64.const 29))))
      (br_if $more (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 8))) (i32.const {END}))))
    (i32.wrap_i64 (local.get $sum)))
  (func $step (param $kind i32) (local $a i32) (local $b i32)
    (if (i32.eq (local.get $kind) (i32.const 1)) (then
      (local.set $a (call $next))
      (local.set $b (call $next))
      (memory.copy (local.get $a) (global.get $at) (local.get $b))
      (global.set $at (i32.add (global.get $at) (i32.and (i32.add (local.get $b) (i32.const 7)) (i32.const -8))))))
    (if (i32.eq (local.get $kind) (i32.const 2)) (then
      (local.set $a (call $next))
      (local.set $b (global.get $at))
      (global.set $at (i32.add (local.get $b) (i32.const {8 * _MOST_ARGUMENTS})))
      (call $note (call $call (local.get $a) (local.get $b)))
      (local.set $a (call $next))
      (memory.fill (local.get $a) (i32.const 0) (call $next))
      (call $note (call $checksum))))
    (if (i32.eq (local.get $kind) (i32.const 3)) (then (call $note (memory.grow (call $next))))))
  (func (export "_start") (local $kind i32)
    (i32.store (i32.const 16) (i32.const {_PROGRAM}))
    (i32.store (i32.const 20) (i32.const 4))
    (drop (call $import_fd_read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 24)))
    (i32.store (i32.const 20) (i32.load (i32.const {_PROGRAM})))
    (drop (call $import_fd_read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 24)))
    (i32.store (i32.const 16) (i32.const {_HEAD}))
    (i32.store (i32.const 20) (i32.const 29))
    (drop (call $import_fd_write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 24)))
    (block $done
      (loop $more
        (local.set $kind (call $next))
        (br_if $done (i32.eqz (local.get $kind)))
        (call $step (local.get $kind))
        (br $more)))
    (call $flush)))""")


def encode(steps: Sequence[Step | int], stdin: bytes) -> bytes:
    """The body of a request for these steps; a number grows the memory by so many pages."""
    pieces = []
    for step in steps:
        if isinstance(step, int):
            pieces.append(struct.pack("<II", 3, step))
        elif isinstance(step, Write):
            pieces.append(struct.pack("<III", 1, step.at, len(step.data)) + step.data + bytes(-len(step.data) % 8))
        else:
            arguments = [*step.arguments, *[0] * (_MOST_ARGUMENTS - len(step.arguments))]
            pieces.append(struct.pack(f"<II{_MOST_ARGUMENTS}QII", 2, NAMES.index(step.name), *arguments, *step.mask))
    made = b"".join([*pieces, bytes(4)])
    assert len(made) < 2 * PAGE
    return struct.pack("<I", len(made)) + made + stdin


# Steps of chance

OWN = {
    **dict.fromkeys(["args_get", "args_sizes_get", "environ_get", "environ_sizes_get"], "pp"),
    **{"clock_res_get": "cp", "clock_time_get": "cop", "sched_yield": "", "proc_raise": "n", "random_get": "pn"},
    **dict.fromkeys(["fd_close", "fd_datasync", "fd_sync"], "f"),
    **dict.fromkeys(["fd_fdstat_get", "fd_prestat_get", "fd_tell"], "fp"),
    **{"fd_prestat_dir_name": "fpn", "fd_seek": "fonp", "path_filestat_get": "fnpnp", "path_open": "fnpnnoonp"},
    **dict.fromkeys(["fd_pread", "fd_pwrite", "fd_readdir"], "fpnop"),
    **{"sock_accept": "fnp", "sock_recv": "fpnnpp", "sock_send": "fpnnp", "sock_shutdown": "fn", "proc_exit": "e"},
    **{"fd_read": "fvmp", "fd_write": "fvmp"},
}
"""The functions that the library has itself, and what each argument is: as in `beside_wasmtime.KINDS`, and `v` is
vectors, `m` their number."""
FOREIGN = {"fd_advise": "foon", "fd_fdstat_set_flags": "fn", "fd_filestat_get": "fp", "fd_renumber": "ff"}
"""Some of those that it leaves to Python."""
_WEIGHTED = [*OWN, *["fd_read", "fd_write"] * 12, *["fd_close", "environ_get", "args_get"] * 2]


def _address(chance: random.Random) -> int:
    return chance.choice(
        [
            ARENA + chance.randrange(64), ARENA + chance.randrange(PAGE), ARENA + 8 * chance.randrange(20),
            END - chance.randrange(64), END, END + chance.randrange(4 * PAGE), 2**31, 2**32 - chance.randrange(1, 64),
        ]
    )  # fmt: skip


def _number(chance: random.Random) -> int:
    return chance.choice(
        [0, 1, 2, 7, 8, chance.randrange(300), PAGE, 2**31, 2**32 - 1, 2**32 - 1 - chance.randrange(99)]
    )


def _value(kind: str, chance: random.Random) -> int:
    match kind:
        case "f":
            return chance.choice([0, 1, 1, 2, 2, 3, 2**32 - 1])
        case "c":
            return chance.choice([0, 1, 2, 3, 4, 2**32 - 1])
        case "p" | "v":
            return _address(chance)
        case "o":
            return chance.choice([0, 1, 64, 2**63, 2**64 - 1])
        case "e":
            return chance.choice([0, 0, 1, 255, 2**31, 2**32 - 1])
    return _number(chance)


def _vectors(chance: random.Random, at: int, count: int) -> Write:
    """Vectors, which may overlap each other, themselves and all else."""
    data = b"".join(
        struct.pack("<II", _address(chance), chance.choice([chance.randrange(80), _number(chance)]))
        if chance.random() < 0.4
        else struct.pack("<II", ARENA + chance.randrange(PAGE - 100), chance.randrange(100))
        for _ in range(count)
    )
    return Write(at, data)


def _call(chance: random.Random, name: str, kinds: str, grows: bool) -> list[Step]:
    arguments = [_value(kind, chance) for kind in kinds]
    steps: list[Step] = []
    if "v" in kinds and chance.random() < 0.9:
        arguments[0] = chance.choice([0, 0, 0] if name == "fd_read" else [1, 2])
        at, count = ARENA + 8 * chance.randrange(100), chance.randrange(5)
        if chance.random() < 0.05:
            count = chance.choice([1023, 1024, 1025])
        steps.append(_vectors(chance, at, count))
        arguments[1], arguments[2] = at, count
        if chance.random() < 0.8:
            arguments[3] = ARENA + chance.randrange(1000)
    if name in ("random_get", "clock_time_get"):
        # What is each run's own is masked: it is all in the arena, or nowhere.
        place = 0 if name == "random_get" else 2
        start, size = arguments[place], 8
        if name == "random_get":
            size = arguments[1] = chance.choice([0, 1, 63, chance.randrange(64), _number(chance)])
        if start + size > END and grows and start < 2**31:
            start = ARENA
            size = min(size, PAGE)
        arguments[place] = start
        if name == "random_get":
            arguments[1] = size
        return [Call(name, tuple(arguments), (start, size) if start + size <= END else (0, 0))]
    return [*steps, Call(name, tuple(arguments))]


def sequence(number: int, seed: str = "skerry") -> tuple[bool, bytes]:
    """A body for the program, and whether all of its calls are of functions that the library has."""
    chance = random.Random(f"{seed} {number}")
    own, grows = chance.random() < 0.97, chance.random() < 0.3
    steps: list[Step | int] = [Write(ARENA, chance.randbytes(600))]
    for _ in range(chance.randint(1, 12)):
        if grows and chance.random() < 0.3:
            steps.append(chance.choice([0, 1, 2, 100]))
            continue
        name = chance.choice(_WEIGHTED)
        if name == "proc_exit" and chance.random() < 0.8:
            continue
        steps += _call(chance, name, OWN[name], grows)
    if not own:
        name = chance.choice(sorted(FOREIGN))
        steps += _call(chance, name, FOREIGN[name], grows)
    return own, encode(steps, chance.randbytes(chance.choice([0, 1, 50, 300])))
