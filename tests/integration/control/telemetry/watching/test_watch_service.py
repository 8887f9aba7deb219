"""An operator watches what nodes log: through one replica and through two, as much as there is room for."""

import asyncio
import zlib
from datetime import UTC, datetime
from typing import Any
from unittest.mock import AsyncMock

import pytest
from starlette.types import Scope

from control.access.sessions import COOKIE, UsedIn
from control.problems import ProblemError
from control.protocol import wire
from control.telemetry.watching import watch_service
from control.telemetry.watching.view import HISTORY_SECONDS, LOOK, Ask
from tests.support.clock import SetClock
from tests.support.cookies_and_forms import ConsoleBrowser
from tests.support.deadlines import deadline
from tests.support.live import SOON, asked, encoded, joined, record, send, viewing
from tests.support.replica import Replica, Site, TestNode


async def test_lines_of_nodes_come_through_either_replica(control_site: Site) -> None:
    async with control_site.running() as one, control_site.running() as other:
        near, far = await joined(one, "near"), await joined(other, "far")
        async with viewing(one, follow=True) as view:
            assert b"skerry_record_views 1.0" in one.services.metrics.render()
            assert (await view.notice("begin"))["count"] == 2
            for node in (near, far):
                (question,) = await asked(node)
                assert (question.kind, question.follow, question.history) == ("lines", True, False)
                answer = await send(node, question.id, record(1, message=f"hello from {node.id}"))
                assert answer.status == 200, answer
                assert answer.json()["rate"] > 10
            lines = [await view.until(lambda line: line["kind"] == "log") for _ in range(2)]
            assert {(line["node"], line["message"]) for line in lines} == {
                (name, f"hello from {node.id}") for name, node in (("near", near), ("far", far))
            }
            assert {(line["level"], line["function"], line["version"], line["call"]) for line in lines} == {
                ("info", "orders", 3, "ab-1")
            }
        # The operator has gone: both are told so.
        assert await asked(near) == []
        assert await asked(far) == []
        assert (await send(far, question.id, record(2))).status == 410
        assert (await send(near, question.id, record(2))).json()["code"] == "watch_ended"


async def test_what_was_there_is_told_to_its_end(control_site: Site) -> None:
    async with control_site.running() as one:
        nodes = [await joined(one, name) for name in ("a", "b")]
        async with viewing(one, level="warning", function="orders", limit=50) as view:
            await view.notice("begin")
            for node in nodes:
                (question,) = await asked(node)
                assert (question.history, question.follow, question.limit) == (True, False, 50)
                assert (question.level, question.function) == ("warning", "orders")
                await send(node, question.id, record(1, "error"), done=True, left_out=4)
            lines = await view.rest()
        assert [line["kind"] for line in lines].count("log") == 2
        left_out = sum(line["count"] for line in lines if line.get("notice") == "left_out")
        assert left_out == 8
        assert (lines[-1]["notice"], lines[-1]["count"]) == ("history", 2)
        assert await asked(nodes[0]) == []


async def test_nodes_that_cannot_be_asked_are_named(control_site: Site) -> None:
    clock = SetClock(timers="stand")
    async with control_site.running(clock=clock) as one:
        silent, gone = await joined(one, "silent"), await joined(one, "gone")
        assert silent
        old = await one.join("old")
        await old.poll()
        await one.services.databases.background.transaction(
            lambda conn: conn.execute("UPDATE nodes SET state = 'offline' WHERE id = $1::text::uuid", gone.id)
        )
        began = clock.monotonic()
        async with viewing(one) as view:
            ends = asyncio.create_task(view.rest())
            await clock.passes_until(ends.done, LOOK)
            lines = {line["notice"]: line for line in await ends}
        assert clock.monotonic() - began >= HISTORY_SECONDS
        assert (lines["begin"]["count"], lines["offline"]["nodes"], lines["too_old"]["nodes"]) == (1, ["gone"], ["old"])
        assert (lines["silent"]["nodes"], lines["history"].get("count", 0)) == (["silent"], 0)


async def test_what_isnt_a_record_is_left_out_and_counted(control_site: Site) -> None:
    async with control_site.running() as one:
        node = await joined(one, "honest")
        async with viewing(one, follow=True) as view:
            (question,) = await asked(node)
            wrong = [
                b"not JSON",
                b'{"kind":"log"}',
                b'{"kind":"notice","notice":"end","message":"x"}',
                encoded(record(1, t="now")).strip(),
                encoded(record(1, message="x" * 70_000)).strip(),
                b"\xff\xfe",
                b"[" * 100_000,
                encoded({**record(1), "kind": "call"}).strip(),
            ]
            good = encoded(record(1, node="another", message="mine", unknown=1))
            answer = await send(node, question.id, raw=b"\n".join(wrong) + b"\n" + good)
            assert answer.status == 200
            line = await view.message("mine")
            assert (line["node"], "unknown" in line) == ("honest", False)
            assert (await view.notice("invalid"))["count"] == len(wrong)


@pytest.mark.parametrize(
    ("raw", "encoding", "status"),
    [
        (None, "deflate", 413),
        (b"not packed", "gzip", 422),
        (b"x", "br", 415),
        (b"x" * 1_100_000, "", 413),
    ],
)
async def test_a_batch_is_bounded_before_and_after_it_is_unpacked(
    control_site: Site, raw: bytes | None, encoding: str, status: int
) -> None:
    if raw is None:
        raw = zlib.compress(b"\n" * 50_000_000)
    async with control_site.running() as one:
        node = await joined(one, "node")
        async with viewing(one, follow=True) as view:
            (question,) = await asked(node)
            assert (await send(node, question.id, raw=raw, encoding=encoding)).status == status
            assert (await send(node, question.id, record(1), encoding="deflate")).status == 200
            await view.message("line 1")


async def test_a_node_gets_its_share_of_the_budget_and_no_more(
    control_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control.telemetry.watching.view.BUDGET", 100.0)
    async with control_site.running() as one, control_site.running() as other:
        nodes = [await joined(one, "busy"), await joined(one, "quiet"), await joined(other, "far")]
        async with viewing(one, follow=True, limit=1) as view:
            ids = [(await asked(node))[0].id for node in nodes]
            rates: list[float] = []

            async def write(at: int, lines: int) -> float:
                """A node's turn, which doesn't care for the rate that it is told."""
                answer = await send(nodes[at], ids[at], *(record(len(rates)) for _ in range(lines)))
                assert answer.status == 200, answer
                return float(answer.json()["rate"])

            begun = asyncio.get_running_loop().time()
            # Where what one has sent comes a second late, the other is told for a while that it has all that is left.
            while len(rates) < 16 or not 40 < rates[-1] < 60:
                assert len(rates) < 100, rates
                told = await asyncio.gather(write(0, 500), write(1, 2), write(2, 500))
                rates.append(told[0])
                await asyncio.sleep(0.25)
            seconds = asyncio.get_running_loop().time() - begun
            await send(nodes[1], ids[1], record(0, message="last"))
            await view.message("last")
            shown: dict[str, int] = {}
            for line in view.seen:
                if line["kind"] == "log":
                    shown[line["node"]] = shown.get(line["node"], 0) + 1
            await view.notice("sampled")
            sampled = sum(line["count"] for line in view.seen if line.get("notice") == "sampled")
        # The quiet node loses nothing, the others share what is left.
        assert shown["quiet"] == 2 * len(rates) + 1
        for name in ("busy", "far"):
            assert 20 <= shown[name] <= 100 * (seconds + 4), shown
        assert sampled > 10_000


async def test_a_slow_reader_gets_the_newest_and_is_told_how_many_it_missed(control_site: Site) -> None:
    async with control_site.running() as one:
        node = await joined(one, "node")
        async with viewing(one, follow=True, limit=10_000) as view:
            (question,) = await asked(node)
            # 28 MB, of which 1 MiB waits in control, and some in the buffers of the connection.
            for turn in range(70):
                records = [record(turn * 100 + n, message="x" * 4000) for n in range(100)]
                assert (await send(node, question.id, *records)).status == 200
            (kept,) = one.services.watching.views.values()
            assert kept._size <= 1024 * 1024
            await send(node, question.id, record(0, message="newest"))
            await view.message("newest")

            def missed() -> int:
                return sum(line["count"] for line in view.seen if line.get("notice") in ("dropped", "sampled"))

            def shown() -> int:
                return sum(line["kind"] == "log" for line in view.seen)

            # What is missing is told before the newest line or after it: as it is time for that.
            async with deadline(SOON):
                while shown() + missed() < 7001:
                    assert await view.line() is not None
        assert shown() + missed() == 7001
        assert missed() > 0


async def move(replica: Replica, node: str, group: str) -> None:
    answer = await replica.call("POST", f"/v1/nodes/{node}/move", {"group": group})
    assert answer.status == 200, answer


async def operator(replica: Replica, name: str, *grants: dict[str, Any]) -> str:
    answer = await replica.call("POST", "/v1/operators", {"name": name, "grants": list(grants)})
    assert answer.status == 201, answer
    return str(answer.json()["token"])


async def test_an_operator_sees_its_groups_alone(control_site: Site) -> None:
    async with control_site.running() as one:
        for group in ("mine", "theirs"):
            assert (await one.call("POST", "/v1/groups", {"name": group})).status == 201
        mine, theirs = await joined(one, "mine-1", "mine"), await joined(one, "theirs-1", "theirs")
        token = await operator(one, "reader", {"role": "read", "group": "mine", "functions": None})
        for query in ("node=theirs-1", "group=theirs"):
            assert (await one.call("GET", f"/v1/logs?{query}", token=token)).status == 404
        async with viewing(one, token=token, follow=True) as view:
            assert (await view.notice("begin"))["count"] == 1
            (question,) = await asked(mine)
            assert (await theirs.ask()).status == 204
            assert (await send(theirs, question.id, record(1))).status == 410
            await send(mine, question.id, record(1))
            await view.message("line 1")
            await move(one, "mine-1", "theirs")
            assert await asked(mine) == []
            assert (await send(mine, question.id, record(2))).status == 410


@pytest.mark.parametrize("how", ["revoked", "changed"])
async def test_a_view_ends_with_what_the_operator_may(control_site: Site, how: str) -> None:
    async with control_site.running() as one, control_site.running() as other:
        node = await joined(one, "node")
        token = await operator(one, "reader", {"role": "read", "group": None, "functions": None})
        async with viewing(one, token=token, follow=True) as view:
            (question,) = await asked(node)
            if how == "revoked":
                assert (await other.call("DELETE", "/v1/operators/reader")).status == 204
            else:
                grants = [{"role": "read", "group": "default", "functions": None}]
                assert (await other.call("POST", "/v1/operators/reader/change", {"grants": grants})).status == 200
            end = (await view.rest())[-1]
            assert (end["notice"], end["code"]) == (
                "end",
                "credentials_invalid" if how == "revoked" else "role_insufficient",
            )
            assert await asked(node) == []
            assert (await send(node, question.id, record(1))).status == 410


async def signed_in(replica: Replica, token: str, used_in: UsedIn) -> str:
    """Begin a session of the operator with this token; its secret."""
    asking: Scope = {"type": "http", "headers": [(b"authorization", f"Bearer {token}".encode())], "request_id": b"c-1"}
    operator = await replica.services.auth.operator(asking)
    return await replica.services.sessions.begin(asking, operator, used_in, "token")


async def test_a_view_ends_with_its_session_alone(control_site: Site) -> None:
    async with control_site.running() as one, control_site.running() as other:
        node = await joined(one, "node")
        token = await operator(one, "reader", {"role": "read", "group": None, "functions": None})
        sessions = [await signed_in(one, token, "cli") for _ in range(2)]
        async with (
            viewing(one, token=sessions[0], follow=True) as ends,
            viewing(one, token=sessions[1], follow=True) as stays,
            viewing(one, token=token, follow=True) as of_token,
        ):
            first, *others = await asked(node)
            assert (await other.call("DELETE", "/v1/sessions/self", token=sessions[0])).status == 204
            end = (await ends.rest())[-1]
            assert (end["notice"], end["code"]) == ("end", "session_ended")
            assert "sign in again" in end["message"]
            assert [question.id for question in await asked(node)] == [question.id for question in others]
            assert (await send(node, first.id, record(1))).status == 410
            for question, view in zip(others, (stays, of_token), strict=True):
                await send(node, question.id, record(2))
                await view.message("line 2")


async def test_the_consoles_log_of_a_node_ends_by_signing_out(control_site: Site) -> None:
    async with control_site.running() as one, control_site.running() as other:
        node = await joined(one, "node")
        secret = await signed_in(one, one.admin, "console")
        headers = {"cookie": f"{COOKIE}={secret}"}
        async with one.session.get(f"{one.url}/nodes/node/log/live", headers=headers) as events:
            assert events.status == 200
            await asked(node)
            browser = ConsoleBrowser(other.url, other.session, {COOKIE: secret})
            await browser.open("/nodes")
            await browser.send("/sign-out")
            async with asyncio.timeout(SOON):
                assert b"the session has ended" in await events.content.read()
            assert await asked(node) == []


async def test_a_replica_that_stops_ends_its_views(control_site: Site) -> None:
    async with control_site.running() as one:
        node = await joined(one, "node")
        async with control_site.running() as other, viewing(other, follow=True) as view:
            (question,) = await asked(node)
            other.server.should_exit = True
            end = (await view.rest())[-1]
            assert (end["notice"], end["code"]) == ("end", "shutting_down")
            assert await asked(node) == []
            assert (await send(node, question.id, record(1))).status == 410


async def test_views_are_bounded(control_site: Site) -> None:
    async with control_site.running() as one:
        token = await operator(one, "reader", {"role": "read", "group": None, "functions": None})
        opened: list[Any] = []
        try:
            for _ in range(8):
                opened.append(viewing(one, token=token, follow=True))
                await opened[-1].__aenter__()
            refused = await one.session.get(
                f"{one.url}/v1/logs?follow=true", headers={"authorization": f"Bearer {token}"}
            )
            assert (refused.status, (await refused.json())["code"]) == (503, "too_many_watches")
            async with viewing(one, follow=True) as view:
                await view.notice("begin")
        finally:
            for view in opened:
                await view.__aexit__(None, None, None)


async def test_views_that_begin_at_once_are_bounded_too(control_site: Site) -> None:
    """Whoever asks for many leaves room for others."""
    async with control_site.running() as one:
        ask = Ask("reader", AsyncMock(return_value=""), None)
        begun = await asyncio.gather(*(one.services.watching.begin(ask) for _ in range(40)), return_exceptions=True)
        refused = [error for error in begun if isinstance(error, ProblemError)]
        assert ({error.code for error in refused}, len(refused)) == ({"too_many_watches"}, 32)
        await one.services.watching.begin(Ask("admin", AsyncMock(return_value=""), None))


async def test_a_watch_that_nobody_reads_ends(control_site: Site) -> None:
    clock = SetClock(timers="stand")
    async with control_site.running(clock=clock) as one:
        node = await joined(one, "node")
        await one.services.watching.begin(Ask("admin", AsyncMock(return_value=""), None))
        await asked(node)
        began, told = clock.monotonic(), asyncio.create_task(asked(node))
        await clock.passes_until(lambda: not one.services.watching.views, watch_service.IDLE)
        assert clock.monotonic() - began > watch_service.UNREAD
        assert await told == []


async def test_records_of_a_kind_that_a_newer_replica_knows_are_for_that_one(control_site: Site) -> None:
    """The node tries again, on a new connection, and comes to another replica."""
    async with control_site.running() as one:
        node = await joined(one, "node")
        question = wire.Question("", datetime.now(UTC), kind="of tomorrow")
        view = await one.services.watching.begin(Ask("admin", AsyncMock(return_value=""), None, question=question))
        answer = await send(node, view.id, record(1))
        assert (answer.status, answer.json()["code"]) == (503, "not_ready")
        assert "earlier version" in answer.json()["detail"]
        assert answer.headers["connection"] == "close"
        one.services.watching.leave(view)


async def test_a_name_as_long_as_an_id_is_a_name(control_site: Site) -> None:
    name = "shop-northern-territories-hall-12345"
    assert (len(name), name.count("-")) == (36, 4)
    async with control_site.running() as one:
        assert (await one.call("GET", f"/v1/logs?node={name}")).json()["code"] == "unknown_node"
        node = await joined(one, name)
        async with viewing(one, follow=True, node=name) as view:
            assert (await view.notice("begin"))["count"] == 1
            await asked(node)


async def test_a_node_is_asked_by_its_id_too(control_site: Site) -> None:
    async with control_site.running() as one:
        node, other = await joined(one, "node"), await joined(one, "other")
        assert isinstance(other, TestNode)
        async with viewing(one, follow=True, node=node.id) as view:
            assert (await view.notice("begin"))["count"] == 1
            await asked(node)
            assert (await other.ask()).status == 204
