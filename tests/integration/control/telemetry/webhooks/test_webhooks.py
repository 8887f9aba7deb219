"""Webhooks as operators have them, by the API and by `skerry webhook`."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from tests.support.replica import Replica
from tests.support.webhook_receiver import Receiver
from tests.support.webhooks import add, got, send_test

# The replica's own monitor stays out of it.
pytestmark = [pytest.mark.usefixtures("hurried"), pytest.mark.background("webhooks")]


async def test_secrets_are_shown_once_and_recorded_nowhere(
    replica: Replica, receiver: Receiver, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    made = [await add(replica, receiver.url + "?key=in-the-url", key="first-key") for _ in range(2)]
    secret = made[0]["secret"]
    assert made[1] == made[0]
    own = "whsec_" + "Zm9v" * 8
    assert (await add(replica, receiver.url, "own", secret=own, key="second-key"))["secret"] is None
    await send_test(replica, "own")
    (await got(receiver, "webhook.test"))[0].verify(own)
    answers = [(await replica.call("GET", path)).body for path in ("/v1/webhooks", "/v1/audit")]
    kept = await replica.services.db.read(lambda conn: conn.fetch("SELECT response::text AS a FROM idempotency"))
    assert len(kept) >= 2
    # The receiver's own log is none of control's.
    log = "\n".join(r.getMessage() for r in caplog.records if r.name != "aiohttp.access")
    said = [*(answer.decode() for answer in answers), log, str([row["a"] for row in kept])]
    assert not any(text in one for text in (secret, own) for one in said)
    assert "in-the-url" not in said[1] + said[2]


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"url": "ftp://example.com/"}, "webhook_refused", "url"),
        ({"url": "http://example.com/"}, None, ""),
        ({"url": "https://user:word@example.com/"}, "webhook_refused", "url"),
        ({"url": "https://10.0.0.1/"}, "webhook_refused", "url"),
        ({"url": "https://[::ffff:10.0.0.1]/"}, "webhook_refused", "url"),
        ({"url": "https://2130706433/"}, "webhook_refused", "url"),
        ({"url": "https://127.1/"}, "webhook_refused", "url"),
        ({"url": "https://example.com:99999/"}, "webhook_refused", "url"),
        ({"url": "https://exa mple.com/"}, "webhook_refused", "url"),
        ({"url": "https:///path"}, "webhook_refused", "url"),
        ({"secret": "whsec_short"}, "invalid_body", "secret"),
        ({"secret": "Zm9v" * 8}, "invalid_body", "secret"),
        ({"kinds": ["node.melted"]}, "invalid_body", "kinds[0]"),
    ],
)
async def test_what_can_not_work_is_refused(
    replica: Replica, fields: dict[str, Any], code: str | None, field: str
) -> None:
    answer = await replica.call("POST", "/v1/webhooks", {"name": "chat", "url": "https://example.com/", **fields})
    if code is None:
        assert answer.status == 201, answer.body
        return
    assert (answer.status, answer.json()["code"], answer.json()["field"]) == (422, code, field)
    assert (await replica.call("GET", "/v1/webhooks")).json()["items"] == []


async def test_names_are_unique_and_webhooks_are_few(
    replica: Replica, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control.api.webhooks.MOST", 2)
    calls: list[Awaitable[Any]] = [add(replica, receiver.url), add(replica, receiver.url, "other")]
    await asyncio.gather(*calls)
    body = {"name": "chat", "url": receiver.url}
    assert (await replica.call("POST", "/v1/webhooks", body)).json()["code"] == "name_taken"
    body["name"] = "third"
    assert (await replica.call("POST", "/v1/webhooks", body)).json()["code"] == "too_many_webhooks"
    for path in ("/v1/webhooks/none", "/v1/webhooks/none/test"):
        answer = await replica.call("POST" if path.endswith("test") else "DELETE", path)
        assert (answer.status, answer.json()["code"]) == (404, "unknown_webhook")


async def test_an_old_key_gives_nobody_the_secret_of_a_later_webhook(replica: Replica, receiver: Receiver) -> None:
    made = await replica.call("POST", "/v1/operators", {"name": "other", "role": "admin"})
    first = await add(replica, receiver.url, key="old-key")
    assert (await replica.call("DELETE", "/v1/webhooks/chat")).status == 204
    body = {"name": "chat", "url": receiver.url}
    later = await replica.call("POST", "/v1/webhooks", body, token=made.json()["token"])
    assert later.json()["id"] != first["id"]
    again = await replica.call("POST", "/v1/webhooks", body, key="old-key")
    assert (again.status, again.json()["code"]) == (404, "unknown_webhook")
    assert later.json()["secret"] not in again.body.decode()


async def test_the_commands(replica: Replica, receiver: Receiver, tmp_path: Path) -> None:
    environment = {**os.environ, "SKERRY_URL": replica.url, "SKERRY_TOKEN": replica.admin, "SKERRY_CA": str(replica.ca)}

    async def skerry(*arguments: str, ends: int = 0) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "control.cli", "webhook", *arguments),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said = (await process.communicate())[0].decode()
        assert process.returncode == ends, said
        return said

    secret = (await skerry("add", "chat", receiver.url, "--event", "node.offline")).splitlines()[0]
    said = await skerry("test", "chat")
    assert said == "chat: delivered, the receiver answered 204\n"
    receiver.received[0].verify(secret)
    own = tmp_path / "secret"
    own.write_text("whsec_" + "Zm9v" * 8 + "\n")
    assert "whsec_" not in await skerry("add", "own", "https://127.0.0.1:1/", "--secret-file", str(own))
    listed = await skerry("list")
    assert all(text in listed for text in ("chat", receiver.url, "node.offline", "own", "all"))
    failed = await skerry("test", "own", ends=1)
    assert "the request to 127.0.0.1 failed" in failed
    found = json.loads(await skerry("deliveries", "--state", "waiting", "--json"))
    assert ("own", "webhook.test") in [(d["webhook"], d["kind"]) for d in found]
    assert "delivered" in await skerry("deliveries", "--webhook", "chat")
    assert await skerry("delete", "own", "--yes") == "own: deleted\n"
    assert "unknown_webhook" in await skerry("delete", "own", "--yes", ends=3)
    receiver.answers = lambda message: 410
    assert "isn't tried again" in await skerry("test", "chat", ends=1)
