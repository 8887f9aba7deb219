"""Slow and failed calls in the console: nodes are asked, and what is missing is said."""

import asyncio
import html
from typing import Any

import pytest

from control.console.pages import call_pages
from control.telemetry.watching.view import HISTORY_SECONDS, LOOK, TOGETHER
from tests.support import deploy
from tests.support.clock import SetClock
from tests.support.console import MARKUP, page
from tests.support.live import asked, joined, record, send
from tests.support.replica import Site, TestNode


def slow(number: int, seconds: float = 1.5, **more: Any) -> dict[str, Any]:
    """A record of a call."""
    told = {
        "method": "POST",
        "path": f"/orders/{MARKUP}",
        "outcome": "ok",
        "status": 201,
        "seconds": seconds,
        "times": {"queue": 0.1, "guest": seconds - 0.4, "sql": 0.3},
        "sql": [{"statement": f"SELECT '?' -- {MARKUP}", "count": 3, "seconds": 0.3}],
        "http": [{"host": "tax.example.org", "seconds": 0.0}],
    }
    made = record(number, **{"kind": "call", **told, **more})
    del made["level"], made["message"]
    return made


ANSWERED: set[tuple[str, str]] = set()
"""Nodes, by their ids, and the questions that each has answered."""


async def answers(node: TestNode, *records: dict[str, Any], count: int = 1) -> Any:
    """Have a node answer the next questions, each with the records of its kind; return the last."""
    # It may be told first that an earlier one has ended, or of one alone, or of an earlier one that is about to end.
    while len(questions := [one for one in await asked(node) if (node.id, one.id) not in ANSWERED]) < count:
        pass
    ANSWERED.update((node.id, question.id) for question in questions)
    for question in questions:
        mine = [one for one in records if (one["kind"] == "call") == (question.kind == "calls")]
        assert (await send(node, question.id, *mine, done=True)).status == 200
    return questions[-1]


async def test_nodes_are_asked_for_their_slow_and_failed_calls(control_site: Site) -> None:
    # All answer, but perhaps slowly.
    async with control_site.running(clock=SetClock(timers="stand")) as replica:
        await deploy.ok(replica, "POST", "/v1/groups", {"name": "shops"})
        node, other = await joined(replica, "near"), await joined(replica, "far", "shops")
        shown = await page(replica, "/calls")
        assert "Nodes keep their slow and failed calls" in shown.words, "nobody was asked"
        assert (await node.poll()).status == 204

        asking = asyncio.create_task(page(replica, "/calls?do=ask&function=orders&failed=yes&slowest=yes&since=1h"))
        question = await answers(node, slow(1), slow(2, 4.0, outcome="time_limit", status=504))
        assert (question.kind, question.function, question.failed, question.slowest) == ("calls", "orders", True, True)
        await answers(other, slow(3, 2.0))
        shown = await asking
        assert shown.status == 200
        assert "<img" not in shown.text
        rows = [shown.words.index(text) for text in ("ab-2", "ab-3", "ab-1")]
        assert rows == sorted(rows), "the slowest first"
        assert "time_limit 4 s guest 3.6 s" in shown.words
        assert "skerry calls --function orders --failed --slowest --since 1h" in shown.words

        asking = asyncio.create_task(page(replica, "/calls/ab-2?node=near"))
        own = record(2, "warning", kind="node", message="it trapped in function 41")
        question = await answers(node, slow(2), record(2, "error", message=MARKUP), own, count=2)
        assert question.call == "ab-2"
        shown = await asking
        assert "<img" not in shown.text
        assert "sql 300 ms" in shown.words.replace("sql  ", "sql ")
        assert "\u00d7 3" in shown.words
        assert "tax.example.org" in shown.words
        assert "error orders" in shown.words, shown.words
        assert "warning skerry-edge it trapped in function 41" in shown.words, shown.words

        # An operator of another group asks its nodes alone.
        grants = [{"role": "read", "group": "shops"}]
        token = (await deploy.ok(replica, "POST", "/v1/operators", {"name": "one", "grants": grants}))["token"]
        assert (await page(replica, "/calls?do=ask&node=near", token=token)).status == 404
        asking = asyncio.create_task(page(replica, "/calls?do=ask", token=token))
        await answers(other, slow(9))
        shown = await asking
        assert ("far" in shown.words, "near" in shown.words) == (True, False)
        for wrong in ("/calls/a%20b", "/calls?do=ask&group=%3C"):
            assert (await page(replica, wrong)).status == 422, wrong


async def test_nodes_that_are_away_or_silent_are_named(control_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call_pages.PATIENCE > HISTORY_SECONDS + TOGETHER + LOOK  # the view says who was silent, and the page waits
    monkeypatch.setattr("control.telemetry.watching.view.HISTORY_SECONDS", 0.5)
    async with control_site.running() as replica:
        await joined(replica, "silent")
        old = await replica.join("old")
        await old.poll()
        shown = await page(replica, "/calls?do=ask")
        assert "1 node didn't answer in time: silent" in html.unescape(shown.words)
        assert "1 node is of a version that can't be asked: old" in html.unescape(shown.words)
        shown = await page(replica, "/calls/ab-1")
        assert "No node that answered knows this call" in shown.words
