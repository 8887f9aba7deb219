"""`skerry-edge call` of snapshots: their engine is compiled once and kept, and none is interpreted unasked."""

import random
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import orjson
import pytest

from tests.guests.build import guest
from tests.support.programs import Done
from tests.support.snapshots import snapshot

Call = Callable[..., Awaitable[Done]]


def made(seed: int) -> bytes:
    return snapshot(guest("snapshot_sum"), 9, [(5000, random.Random(seed).randbytes(300_000))])


@pytest.mark.parametrize("damage", ["", ".image", ".so", ".engine", ".split"])
async def test_an_engine_is_compiled_once_for_all_its_snapshots(call: Call, tmp_path: Path, damage: str) -> None:
    order, folder = tmp_path / "order", tmp_path / "cache" / "skerry" / "aot"
    order.write_bytes(bytes(12))
    bodies, engines = [], set()
    for seed in (1, 2, 1):
        done = await call(made(seed), "--body-file", order, "--json")
        assert done.status == 0, done
        answer = orjson.loads(done.out)
        bodies.append(answer["body"])
        (engine,) = folder.glob("*.so")
        engines.add((engine.name, engine.stat().st_mtime_ns))
        if damage:
            for path in folder.glob(f"*{damage}"):
                path.chmod(0o600)
                path.write_bytes(path.read_bytes()[:-1] + b"#")
    assert bodies[0] == bodies[2] != bodies[1]
    assert len({name for name, _ in engines}) == 1
    assert len(engines) == (3 if damage == ".so" else 1)
    suffixes = Counter(path.suffix for path in folder.iterdir())
    assert suffixes == {".so": 1, ".sha256": 1, ".engine": 1, ".image": 2, ".split": 2}


async def test_where_it_traps_is_not_looked_for_on_the_interpreter(call: Call, tmp_path: Path) -> None:
    order = tmp_path / "order"
    order.write_bytes(struct.pack("<III", 1, 0, 0))
    done = await call(made(1), "--body-file", order)
    assert (done.status, "[guest_trap]" in done.err, "of the module" in done.err) == (1, True, False), done
