"""Schema changes that are taken back: withdrawn where no node can have them, else reversed by another change."""

import asyncio

from control.api.schema import WITHDRAWN
from control.problems import CODES
from tests.support import deploy
from tests.support.replica import Replica, Site, TestNode
from tests.support.rollouts import open_rollout

BOOKS = "CREATE TABLE books (id INTEGER PRIMARY KEY, title TEXT)"
AUTHORS = "CREATE TABLE authors (id INTEGER PRIMARY KEY)"


async def withdraw(replica: Replica, number: int, wanted: str = "") -> object:
    answer = await replica.call("POST", f"/v1/schema-changes/{number}/withdraw")
    if wanted:
        assert (answer.status, deploy.code(answer)) == (CODES[wanted].status, wanted), answer
    else:
        assert answer.status == 201, answer
    return answer.json()


async def asked(node: TestNode) -> None:
    """The node has told control what it runs."""
    assert (await node.poll()).status == 204


async def test_the_last_change_is_withdrawn_and_its_number_stays(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await replica.join("one")
        await deploy.schema(replica, BOOKS)
        await deploy.schema(replica, "CREATE TABLE bad (x)", "bad")
        await withdraw(replica, 9, "unknown_schema_change")
        made = await withdraw(replica, 2)
        assert isinstance(made, dict)
        assert (made["revision"], made["name"], made["withdrawn"], made["sql"]) == (2, "bad", True, WITHDRAWN)
        await withdraw(replica, 2, "schema_conflict")
        amended = await replica.call("POST", "/v1/schema-changes/2/revisions", {"sql": "SELECT 2"})
        assert deploy.code(amended) == "schema_conflict"
        # The next one is tried without it: the name is free.
        assert (await deploy.schema(replica, "CREATE TABLE bad (y)", "better"))["number"] == 3
        await deploy.release(replica)
        plan = await node.sync()
        texts = [(c.number, c.revision, c.sql) for c in plan.schema_changes]
        assert texts == [(1, 1, BOOKS), (2, 2, WITHDRAWN), (3, 1, "CREATE TABLE bad (y)")]
        actions = [entry["action"] for entry in await deploy.items(replica, "/v1/audit")]
        assert "schema.withdraw" in actions


async def test_what_comes_before_others_is_withdrawn_after_them(control_site: Site) -> None:
    async with control_site.running() as replica:
        await deploy.schema(replica, BOOKS)
        await deploy.schema(replica, "CREATE INDEX by_title ON books (title)")
        problem = await withdraw(replica, 1, "schema_conflict")
        assert isinstance(problem, dict)
        assert "change 2" in problem["detail"]
        await withdraw(replica, 2)
        await withdraw(replica, 1)


async def test_a_release_that_no_node_was_given_keeps_its_number(control_site: Site) -> None:
    async with control_site.running() as replica:
        await deploy.schema(replica, BOOKS)
        await deploy.release(replica)
        await withdraw(replica, 1)
        node = await replica.join("later")
        plan = await node.plan()
        assert [(c.number, c.sql) for c in plan.schema_changes] == [(1, WITHDRAWN)]


async def test_a_change_that_a_plan_contained_is_only_reversed(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await replica.join("one")
        await deploy.schema(replica, f"{BOOKS}; CREATE INDEX by_title ON books (title)", "books")
        await deploy.release(replica)
        assert len((await node.plan()).schema_changes) == 1
        # It needn't have been applied, nor reported: the node may have it.
        problem = await withdraw(replica, 1, "schema_planned")
        assert isinstance(problem, dict)
        assert "reversal" in problem["detail"]
        [change] = await deploy.items(replica, "/v1/schema-changes")
        assert change["planned_at"]
        draft = await deploy.ok(replica, "GET", "/v1/schema-changes/1/reversal")
        assert draft == {
            "number": 1,
            "name": "reverses 1 books",
            "sql": 'DROP INDEX "by_title";\nDROP TABLE "books";\n',
            "kept": [],
        }
        assert (await deploy.schema(replica, draft["sql"], draft["name"]))["number"] == 2
        answer = await replica.call("GET", "/v1/schema-changes/3/reversal")
        assert deploy.code(answer) == "unknown_schema_change"


async def test_an_amended_change_counts_as_planned_by_its_first_revision(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await replica.join("one")
        await deploy.schema(replica, BOOKS)
        await deploy.release(replica)
        await node.plan()
        await deploy.ok(replica, "POST", "/v1/schema-changes/1/revisions", {"sql": f"SELECT 1; {BOOKS}"})
        await withdraw(replica, 1, "schema_planned")


async def test_of_a_plan_and_a_withdrawal_at_once_one_comes_first(control_site: Site) -> None:
    """On two replicas: a node never gets a change that was withdrawn."""
    async with control_site.running() as one, control_site.running() as two:
        nodes = [await one.join(f"n{n}") for n in range(4)]
        for node in nodes:
            await asked(node)
        withdrawn = 0
        for number in range(1, 9):
            sql = f"CREATE TABLE t{number} (x)"
            await deploy.schema(one, sql)
            await deploy.release(one)
            for node in nodes:
                node.replica = two
            tries = asyncio.gather(*(node.plan(25) for node in nodes))
            answer = await one.call("POST", f"/v1/schema-changes/{number}/withdraw")
            texts = {change.sql for plan in await tries for change in plan.schema_changes}
            assert answer.status in (201, 409), answer
            assert texts == ({WITHDRAWN} if answer.status == 201 else {sql})
            withdrawn += answer.status == 201
            for node in nodes:
                await node.sync()
        print(f"{withdrawn} of 8 withdrawals came first")


async def test_a_plan_of_an_earlier_version_of_control_counts(control_site: Site) -> None:
    """Beside this version during an upgrade, it plans without writing planned_at."""
    async with control_site.running() as replica:
        node = await replica.join("one")
        await deploy.schema(replica, BOOKS)
        await deploy.release(replica)
        await node.plan()
        await replica.services.databases.writes.transaction(
            lambda conn: conn.execute("UPDATE schema_changes SET planned_at = NULL")
        )
        await withdraw(replica, 1, "schema_planned")


async def test_what_an_open_rollout_has_isnt_withdrawn(control_site: Site) -> None:
    async with control_site.running() as replica:
        await deploy.schema(replica, BOOKS)
        await deploy.schema(replica, AUTHORS)
        rollout = await open_rollout(replica, functions={}, schema_floor=2, step=0)
        problem = await withdraw(replica, 2, "schema_planned")
        assert isinstance(problem, dict)
        assert "release default/1, whose rollout is open" in problem["detail"]
        await rollout.give_back(replica)
        await withdraw(replica, 2)
