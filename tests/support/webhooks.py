"""Webhooks as an operator has them, and what has come to their receivers."""

import ipaddress
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.support.control import until
from tests.support.replica import Replica
from tests.support.webhook_receiver import Received, Receiver

ROOT = Path(__file__).parents[2]
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
"""What tests' controls may send messages to."""


async def add(replica: Replica, url: str, name: str = "chat", *, key: str = "", **more: Any) -> Any:
    answer = await replica.call("POST", "/v1/webhooks", {"name": name, "url": url, **more}, key=key)
    assert answer.status == 201, answer.body
    return answer.json()


async def send_test(replica: Replica, name: str = "chat") -> str:
    answer = await replica.call("POST", f"/v1/webhooks/{name}/test")
    assert answer.status == 201, answer.body
    return str(answer.json()["id"])


async def look(replica: Replica) -> None:
    """Heartbeats written, and one pass of the monitor."""
    await replica.services.heartbeats.flush()
    await replica.services.monitor().look(replica.services.clock.now())


async def got(receiver: Receiver, kind: str, count: int = 1) -> list[Received]:
    """The messages of a kind, once there are so many."""

    async def there() -> bool:
        return len(receiver.of(kind)) >= count

    await until(there)
    return receiver.of(kind)


def check(headers: dict[str, str], raw: bytes, secret: str, now: float) -> None:
    """What the how-to tells receivers to do, at the time `now`."""
    text = (ROOT / "docs" / "how-to" / "send-events.md").read_text()
    found: dict[str, Any] = {}
    exec(text.partition("```python\n")[2].partition("```")[0], found)
    found["time"] = SimpleNamespace(time=lambda: now)
    found["check"](headers, raw, secret)


async def told(receiver: Receiver, kind: str, **values: Any) -> Any:
    """What happened of a kind, once it is told; with these values."""

    async def found() -> Any:
        return next((item for item in receiver.items(kind) if values.items() <= item.items()), None)

    return await until(found)


async def deliveries(replica: Replica, **query: str) -> list[Any]:
    text = "&".join(f"{name}={value}" for name, value in query.items())
    answer = await replica.call("GET", f"/v1/webhook-deliveries?{text}")
    assert answer.status == 200, answer.body
    return list(answer.json()["items"])


async def one(replica: Replica, id: str, is_so: Callable[[Any], bool]) -> Any:
    """The delivery of a message, once it is so."""

    async def found() -> Any:
        return next((d for d in await deliveries(replica) if d["id"] == id and is_so(d)), None)

    return await until(found)
