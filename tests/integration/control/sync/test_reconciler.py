"""Plans for many nodes at once, look-ups of unknown credentials, and commits whose answers are lost."""

import asyncio
from typing import Any

import pytest

from control import tokens
from control.problems import ProblemError
from control.protocol import wire
from control.storage import batched_lookups
from control.sync import reconciler
from control.sync.reconciler import Decision, NodeRequest, Reconciler, _PollBatch
from control.sync.reports import Reports, SyncReport
from control.sync.write_batches import BATCH
from tests.support import seeds
from tests.support.cutting import cutting
from tests.support.replica import Replica, Site, TestNode, plan_of


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches of polls that are decided."""
    sizes: list[int] = []
    real = Reconciler.write

    async def counted(self: Reconciler, requests: list[NodeRequest], *more: Any) -> Any:
        sizes.append(len(requests))
        return await real(self, requests, *more)

    monkeypatch.setattr(Reconciler, "write", counted)
    return sizes


def request(node: TestNode) -> NodeRequest:
    return NodeRequest(node.id, wire.digest(node.inventory), None, None)


async def test_many_nodes_share_transactions(control_site: Site, batches: list[int]) -> None:
    async with control_site.running() as replica:
        nodes = await seeds.nodes(replica, 350)
        await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 1})
        outcomes = await asyncio.gather(*(replica.services.decisions.ask(request(node)) for node in nodes))
        assert len({decision.opened.sync_id for decision in outcomes if decision.kind == "plan"}) == 350
        assert sum(batches) == 350
        assert max(batches) == BATCH
        assert len(batches) <= 5


async def test_a_fleet_that_reports_at_once(control_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = Reports.write

    async def counted(self: Reports, reports: list[SyncReport], *more: Any) -> Any:
        sizes.append(len(reports))
        return await real(self, reports, *more)

    monkeypatch.setattr(Reports, "write", counted)
    async with control_site.running() as replica:
        nodes = await seeds.nodes(replica, 150)
        await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 1})
        plans = await asyncio.gather(*(node.plan() for node in nodes))
        for node, plan in zip(nodes[:100], plans, strict=False):
            node.apply(plan)
        reports = [node.report(plan.sync_id, "succeeded") for node, plan in zip(nodes[:100], plans, strict=False)]
        # Two of each of these, and one of nobody's: none of them is another's trouble.
        reports += [node.report(plan.sync_id, "running", step="fetch") for node, plan in zip(nodes, plans, strict=True)]
        reports += [nodes[0].report(plans[1].sync_id, "running")]
        answers = await asyncio.gather(*reports)
        assert [answer.status for answer in answers] == [200] * 250 + [404]
        assert {answer.json()["status"] for answer in answers[:100]} == {"succeeded"}
        assert {answer.json()["status"] for answer in answers[200:250]} == {"running"}
        assert len(sizes) < 60
        rows = await replica.services.db.read(
            lambda conn: conn.fetch("SELECT state, confirmed_generation > 0 AS confirmed FROM nodes")
        )
        assert sorted(tuple(row) for row in rows) == [("online", True)] * 100 + [("syncing", False)] * 50


async def test_one_nodes_trouble_is_its_own(
    control_site: Site, batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with control_site.running() as replica:
        nodes = await seeds.nodes(replica, 20)
        await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 1})
        bad, real = nodes[7].id, _PollBatch._decide

        def decide(self: _PollBatch, node: Any, *more: Any) -> Any:
            if node.id == bad:
                raise RuntimeError("a mistake of ours")
            return real(self, node, *more)

        monkeypatch.setattr(_PollBatch, "_decide", decide)
        outcomes = await asyncio.gather(
            *(replica.services.decisions.ask(request(node)) for node in nodes), return_exceptions=True
        )
        assert [isinstance(outcome, Decision) for outcome in outcomes] == [node.id != bad for node in nodes]
        assert isinstance(outcomes[7], ProblemError)
        assert outcomes[7].code == "internal"
        monkeypatch.undo()
        assert (await replica.services.decisions.ask(request(nodes[7]))).kind == "plan"


async def test_two_replicas_plan_for_one_node_at_once(control_site: Site) -> None:
    async with control_site.running() as one, control_site.running() as two:
        node = await one.join("one")
        await node.poll()
        await seeds.function(one, "hello")
        await seeds.release(one, functions={"hello": 1})
        outcomes = await asyncio.gather(
            *(replica.services.decisions.ask(request(node)) for replica in (one, two) for _ in range(10))
        )
        assert len({decision.opened.sync_id for decision in outcomes if decision.kind == "plan"}) == 1


async def test_made_up_tokens_cost_few_look_ups(control_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    # Few on a slow machine too, which takes seconds for so many requests.
    monkeypatch.setattr(batched_lookups, "PAUSE", 0.5)
    async with control_site.running() as replica:
        reads = 0
        real = replica.services.databases.cache.read

        async def counted(work: Any) -> Any:
            nonlocal reads
            reads += 1
            return await real(work)

        node = await replica.join("one")
        replica.services.databases.cache.read = counted  # type: ignore[method-assign]
        body = wire.Poll(0, "0" * 64)
        made_up = [tokens.new_token("node").text for _ in range(200)]
        answers = await asyncio.gather(
            *(replica.call("POST", "/v1/poll", body, token=token) for token in made_up),
            *(node.poll() for _ in range(20)),
        )
        assert [answer.status for answer in answers[:200]] == [401] * 200
        assert {answer.status for answer in answers[200:]} == {204}
        print(f"{reads} reads for 200 made-up tokens")
        assert reads < 100


@pytest.mark.never_retry
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_commit_whose_answer_is_lost(control_site: Site, when: str) -> None:
    """The connection is cut at COMMIT, before or after the database got it: the node asks again, nothing is doubled."""
    async with (
        cutting(control_site.settings.metadata_url) as cutter,
        control_site.running(metadata_url=cutter.url) as replica,
    ):
        node = await replica.join("one")
        await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 1})
        await node.poll()
        await seeds.release(replica, functions={"hello": await seeds.function(replica, "hello")})

        async def cut(ask: Any) -> Any:
            """Ask until the cut hits this transaction and not one of the replica's own."""
            for _ in range(20):
                setattr(cutter, when, 1)
                answer = await ask()
                setattr(cutter, when, 0)
                if answer.status == 503:
                    assert answer.json()["code"] == "commit_unknown"
                    return await ask()
            pytest.fail("the cut never hit")

        plan = plan_of(await cut(node.poll))
        node.apply(plan)
        answer = await cut(lambda: node.report(plan.sync_id, "succeeded"))
        assert answer.json() == {"status": "succeeded", "lease": 0}
        shown = await replica.node("one")
        assert (shown["at_target"], shown["failures"], shown["state"]) == (True, 0, "online")
        assert [f["version"] for f in shown["functions"]] == [2]
        syncs = (await replica.call("GET", "/v1/syncs?node=one")).json()["items"]
        assert sorted(sync["status"] for sync in syncs) == ["succeeded", "superseded"]


async def test_a_result_that_fails_half_way_changes_nothing(
    control_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R 6.2, control's side: an error after the first of a result's statements."""
    async with control_site.running() as replica:
        node = await replica.join("one")
        await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 1})
        plan = await node.plan()
        before = await state(replica)
        broken = {**reconciler.node_state.SQL, "insert_functions": "INSERT INTO node_functions SELECT 1/0"}
        monkeypatch.setattr(reconciler.node_state, "SQL", broken)
        node.apply(plan)
        answer = await node.report(plan.sync_id, "succeeded")
        assert answer.status == 500
        assert await state(replica) == before
        monkeypatch.undo()
        assert (await node.report(plan.sync_id, "succeeded")).json()["status"] == "succeeded"
        assert await state(replica) != before


async def state(replica: Replica) -> list[Any]:
    """All that a result writes."""

    async def work(conn: Any) -> list[Any]:
        found = []
        for query in ("SELECT * FROM nodes", "SELECT * FROM node_functions", "SELECT * FROM syncs"):
            found += [dict(row) for row in await conn.fetch(query)]
        return found

    return await replica.services.db.read(work)
