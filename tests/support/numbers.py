"""What nodes tell of their calls, as they send it with polls."""

from collections.abc import Sequence

import msgspec

from control.protocol import histogram, wire
from tests.support.replica import Answered, TestNode


def function(
    index: int = 0, release: int = 1, calls: int = 10, seconds: float = 0.01, **outcomes: int
) -> wire.FunctionNumbers:
    """Calls of a function that all took as long; of these `outcomes` have ended so."""
    pairs = [number for code, count in outcomes.items() for number in (wire.OUTCOMES.index(code), count)]
    return wire.FunctionNumbers(index, release, pairs, histogram.pack({histogram.bucket(seconds): calls}, 64))


def message(
    functions: Sequence[wire.FunctionNumbers],
    *,
    sequence: int = 1,
    seconds: float = 60.0,
    node: wire.NodeNumbers | None = None,
) -> bytes:
    """What a poll carries."""
    return msgspec.msgpack.encode(wire.Numbers(sequence, seconds, list(functions), node))


async def tell(node: TestNode, numbers: bytes, *, boot_id: str = "boot", generation: int | None = None) -> Answered:
    """A poll that carries numbers, and isn't held."""
    poll = wire.Poll(
        generation=node.generation if generation is None else generation,
        digest=wire.digest(node.inventory),
        boot_id=boot_id,
        numbers=numbers,
    )
    return await node.replica.call("POST", "/v1/poll", poll, token=node.credential)
