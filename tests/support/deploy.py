"""What operators do to bring functions and schema changes to nodes, through the API."""

import hashlib
from typing import Any

from tests.support import repeating
from tests.support.replica import Answered, Replica
from tests.support.ways import at_once

SHOW = "SELECT count(*) FROM items"
ADD = "INSERT INTO items (name) VALUES ('same') RETURNING id"
ITEMS = "CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT NOT NULL)"


async def upload(to: Replica, wasm: bytes, sha256: str = "") -> Answered:
    """Upload an artifact, under another digest than its own if one is given."""
    sha256 = sha256 or hashlib.sha256(wasm).hexdigest()
    headers = {"authorization": f"Bearer {to.admin}", "content-type": "application/wasm"}

    async def ask() -> Answered:
        async with to.session.put(f"{to.url}/v1/artifacts/{sha256}", data=wasm, headers=headers) as answer:
            return Answered(answer.status, {n.lower(): v for n, v in answer.headers.items()}, await answer.read())

    return await repeating.answered(ask, lambda answer: answer.status == 503 and answer.json())


async def push(to: Replica, name: str, wasm: bytes, **manifest: Any) -> Any:
    """Upload and make the next version of a function; returns it."""
    uploaded = await upload(to, wasm)
    assert uploaded.status in (200, 201), uploaded
    return await ok(
        to, "POST", f"/v1/functions/{name}/versions", {"sha256": uploaded.json()["sha256"], "manifest": manifest}
    )


async def schema(to: Replica, sql: str, name: str = "change") -> Any:
    """Register a schema change; returns it."""
    return await ok(to, "POST", "/v1/schema-changes", {"name": name, "sql": sql})


async def release(to: Replica, group: str = "default", **body: Any) -> Any:
    """Make a release of the group, with the fields in `body`, and return it."""
    return await ok(to, "POST", "/v1/releases", {"group": group, **at_once(body), **body})


async def ok(to: Replica, method: str, path: str, body: Any = None, *, token: str | None = None) -> Any:
    """The body of an answer that must be a success; None where there is none."""
    answer = await to.call(method, path, body, token=token)
    assert 200 <= answer.status < 300, (method, path, answer)
    return answer.json() if answer.body else None


async def items(to: Replica, path: str) -> list[Any]:
    """A list that fits on one page."""
    page = await ok(to, "GET", path)
    assert page["next"] is None
    found: list[Any] = page["items"]
    return found


def code(answer: Answered) -> str:
    """The code of a problem+json, which the answer must be."""
    assert answer.headers["content-type"] == "application/problem+json", answer
    assert answer.json()["status"] == answer.status
    return str(answer.json()["code"])
