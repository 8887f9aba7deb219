"""Functions, the schema and `Go to` in the console: what they show, to whom, and what the forms of the schema do."""

import html
import re
from typing import Any

from tests.support import deploy, numbers
from tests.support.console import MARKUP, ShownPage, page, send
from tests.support.control import module
from tests.support.replica import Replica, Site

KEY = "k" * 12
TABLE = "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT);"


async def ok(replica: Replica, path: str, body: object) -> Any:
    return await deploy.ok(replica, "POST", path, body)


def hidden(shown: ShownPage, name: str) -> str:
    found = re.search(rf'<input type="hidden" name="{name}" value="([^"]*)">', shown.text)
    assert found, shown.words
    return html.unescape(found[1])


async def test_functions_their_versions_and_where_they_run(control_site: Site) -> None:
    async with control_site.running() as replica:
        assert "No function was pushed yet" in (await page(replica, "/functions")).words
        await ok(replica, "/v1/groups", {"name": "shops"})
        await deploy.push(replica, "orders", module("1"))
        await deploy.push(replica, "orders", module("2"), sql="read", config={"NOTE": MARKUP})
        await deploy.push(replica, "stock", module("3"), route={"path": "/stock"})
        await deploy.release(replica, functions={"orders": 1})
        await deploy.release(replica, "shops", functions={"orders": 2})
        await replica.join("edge-1", "shops")
        shown = await page(replica, "/functions")
        assert "orders 2 2 2" in shown.words, "the newest version, how many, in how many groups"
        shown = await page(replica, "/functions/orders")
        assert "<img" not in shown.text
        assert "sql read" in shown.words
        where = shown.words[shown.words.index("Where it runs") :]
        assert "default 1 1 0 of 0" in where
        assert "shops 1 2" in where
        assert "Manifest of version 2" in shown.words
        shown = await page(replica, "/functions/orders?version=1")
        assert "Manifest of version 1" in shown.words
        for path, status in (
            ("/functions/nothing", 404),
            ("/functions/orders?version=9", 404),
            ("/functions/orders?version=x", 422),
            ("/functions/%3Cb%3E", 422),
        ):
            assert (await page(replica, path)).status == status, path
        # Which groups have it is said of those alone that the operator may see.
        grants = [{"role": "read", "group": "shops"}]
        token = (await ok(replica, "/v1/operators", {"name": "one", "grants": grants}))["token"]
        assert "orders 2 2 1" in (await page(replica, "/functions", token=token)).words
        shown = await page(replica, "/functions/orders", token=token)
        assert "default" not in shown.words
        assert "Release version 2 … needs push" in shown.words


async def test_the_calls_of_a_function_are_charted_by_release(control_site: Site) -> None:
    async with control_site.running() as replica:
        await deploy.push(replica, "orders", module("1"))
        await deploy.push(replica, "stock", module("2"))
        await deploy.release(replica, functions={"orders": 1, "stock": 1})
        assert "No calls in the last hour" in (await page(replica, "/functions/orders")).words
        node = await replica.join("edge-1")
        await node.sync()
        told = [
            numbers.function(0, calls=200, seconds=0.002, guest_trap=50, client_gone=10),
            numbers.function(1, calls=7),
        ]
        assert (await numbers.tell(node, numbers.message(told))).status == 204
        await replica.services.numbers.resolve()
        for span in ("1h", "24h", "7d"):
            shown = await page(replica, f"/functions/orders?range={span}")
            assert shown.status == 200
            assert "50 of 200 calls" in shown.words, span
            assert "default 1 200 25.0 % 2 ms 2 ms" in shown.words, shown.words
            assert "guest_trap 50" in shown.words
            assert shown.text.count("<figure") == 3
        shown = await page(replica, "/functions")
        assert "orders 1 1 1 200 50 25.0 % 2 ms" in shown.words, "the calls of the last ten minutes, the failed ones"
        assert "stock 1 1 1 7 0" in shown.words
        assert "7 in all" in (await page(replica, "/functions/stock")).words
        assert (await page(replica, "/functions/orders?range=1y")).status == 422
        # What other groups' nodes have called isn't shown to who may not see these.
        await ok(replica, "/v1/groups", {"name": "shops"})
        grants = [{"role": "read", "group": "shops"}]
        token = (await ok(replica, "/v1/operators", {"name": "one", "grants": grants}))["token"]
        assert "No calls" in (await page(replica, "/functions/orders", token=token)).words


async def test_many_versions_are_shown_page_by_page(control_site: Site) -> None:
    async with control_site.running() as replica:
        for _ in range(23):
            await deploy.push(replica, "orders", module("1"))
        shown = await page(replica, "/functions/orders")
        assert [f'?version={n}"' in shown.text for n in (23, 4, 3)] == [True, True, False]
        [further] = re.findall(r'<a href="([^"]*)" rel="next">', shown.text)
        shown = await page(replica, html.unescape(further))
        assert [f'?version={n}"' in shown.text for n in (4, 3, 1)] == [False, True, True]


async def test_the_schema_is_shown_added_to_amended_and_withdrawn(control_site: Site) -> None:
    async with control_site.running() as replica:
        assert "No schema change was registered yet" in (await page(replica, "/schema")).words
        tried = await send(replica, "/schema/new", key=KEY, do="plan", name=MARKUP, sql=TABLE.replace(";", ";\r\n"))
        assert "Registers schema change 1" in tried.words
        assert "<img" not in tried.text
        assert await deploy.items(replica, "/v1/schema-changes") == []
        fields = {"key": f"{KEY}1", "do": "add", "name": MARKUP, "sql": TABLE, "number": hidden(tried, "number")}
        for _ in range(2):
            made = await send(replica, "/schema/new", **fields)
            assert (made.status, made.headers["location"]) == (303, "/schema/1")
        [change] = await deploy.items(replica, "/v1/schema-changes")
        assert (change["name"], change["sql"]) == (MARKUP, TABLE)
        taken = await send(replica, "/schema/new", **{**fields, "key": f"{KEY}2", "sql": "CREATE TABLE other (a)"})
        assert (taken.status, "schema_conflict" in taken.words) == (409, True)
        wrong = await send(replica, "/schema/new", key=f"{KEY}3", do="plan", name="x", sql="DROP TABLE nowhere")
        assert (wrong.status, "schema_refused" in wrong.words) == (422, True)

        shown = await page(replica, "/schema/1")
        assert "<img" not in shown.text
        assert html.escape(TABLE) in shown.text
        assert "No node has applied it" in shown.words
        await deploy.schema(replica, "DROP TABLE notes", "gone")
        assert "Loses" in (await page(replica, "/schema/2")).words
        assert "can lose rows" in (await page(replica, "/schema")).words
        for path, status in (("/schema/9", 404), ("/schema/1?revision=7", 422), ("/schema/x", 422)):
            assert (await page(replica, path)).status == status, path

        other = f"SELECT 1; {TABLE}"
        planned = await send(replica, "/schema/1/amend", key=f"{KEY}4", do="plan", sql=other)
        assert "Registers revision 2 of change 1" in planned.words
        digest = hidden(planned, "plan_digest")
        await ok(replica, "/v1/schema-changes/1/revisions", {"sql": f"SELECT 2; {TABLE}"})
        sent = {"key": f"{KEY}5", "do": "amend", "sql": other, "plan_digest": digest}
        changed = await send(replica, "/schema/1/amend", **sent)
        assert (changed.status, "plan_changed" in changed.words) == (409, True)
        assert "Registers revision 3 of change 1" in changed.words
        sent |= {"key": f"{KEY}6", "plan_digest": hidden(changed, "plan_digest")}
        for _ in range(2):
            amended = await send(replica, "/schema/1/amend", **sent)
            assert (amended.status, amended.headers.get("location")) == (303, "/schema/1"), amended.words
        assert [c["revision"] for c in await deploy.items(replica, "/v1/schema-changes")] == [3, 1]

        assert (await send(replica, "/schema/2/withdraw", key=f"{KEY}7", typed="1")).status == 422
        refused = await send(replica, "/schema/1/withdraw", key=f"{KEY}8", typed="1")
        assert (refused.status, "schema_conflict" in refused.words) == (409, True)
        assert (await send(replica, "/schema/2/withdraw", key=f"{KEY}9", typed="2")).status == 303
        assert "withdrawn" in (await page(replica, "/schema/2")).words

        # Who may not change the schema for all groups reads it.
        await ok(replica, "/v1/groups", {"name": "shops"})
        grants = [{"role": "deploy", "group": "shops"}]
        token = (await ok(replica, "/v1/operators", {"name": "one", "grants": grants}))["token"]
        assert "Amend … needs deploy" in (await page(replica, "/schema/1", token=token)).words
        for path in ("/schema/new", "/schema/1/amend", "/schema/1/withdraw"):
            assert (await page(replica, path, token=token)).status == 403, path
            assert (await send(replica, path, token=token, key=KEY, sql=other, do="amend")).status == 403, path


async def test_of_more_functions_than_a_list_has_each_is_found_and_shown(control_site: Site) -> None:
    async with control_site.running() as replica:
        for name, text in (("zebra", "1"), ("zebra", "2"), ("a-zebra-house", "3"), ("yak", "4")):
            await deploy.push(replica, name, module(text))
        await deploy.release(replica, functions={"zebra": 1})
        assert "There are more functions" not in (await page(replica, "/releases/new")).words
        of_versions = "version, artifact_id, sha256, size, manifest, manifest_digest, created_by, created_at"
        for table, columns in (("functions", "last_version, created_at"), ("function_versions", of_versions)):
            sql = (
                f"INSERT INTO {table} (name, {columns}) SELECT 'f-' || n::text, {columns} FROM {table}, "
                "generate_series(1, 1100) AS s (n) WHERE name = 'yak'"
            )
            await replica.services.db.transaction(lambda conn, sql=sql: conn.execute(sql))  # type: ignore[misc]
        shown = await page(replica, "/releases/new")
        assert "zebra 1 2 Version of zebra" in shown.words, "the newest of what the release has"
        assert "There are more functions than have a row here" in shown.words
        assert "f-1 not in it 1" in shown.words
        assert 'value="2"' in (await page(replica, "/releases/new?group=default&newest")).text
        shown = await page(replica, "/go?q=zebra@1")
        assert (shown.status, shown.headers["location"]) == (303, "/functions/zebra?version=1")
        shown = await page(replica, "/go?q=zeb")
        assert ("function zebra" in shown.words, "function a-zebra-house" in shown.words) == (True, True)
        assert "At most 20" not in shown.words
        assert "At most 20 of a kind" in (await page(replica, "/go?q=f-")).words


async def test_go_to_finds_the_one_page_or_lists_what_may_be_meant(control_site: Site) -> None:
    async with control_site.running() as replica:
        await ok(replica, "/v1/groups", {"name": "shops"})
        sha256 = (await deploy.push(replica, "orders", module("1")))["sha256"]
        await deploy.push(replica, "orders-import", module("2"))
        await deploy.schema(replica, TABLE)
        await deploy.release(replica, functions={"orders": 1})
        for name in ("edge-1", "edge-12"):
            await replica.join(name)
        await replica.join("hidden-1", "shops")

        async def leads(wanted: str, token: str | None = None) -> str:
            shown = await page(replica, f"/go?q={wanted}", token=token)
            assert shown.status in (200, 303), (wanted, shown.words)
            return str(shown.headers.get("location", "")) if shown.status == 303 else ""

        # The fleet is read once a second.
        await replica.services.standings.stop()
        for wanted, to in (
            ("", "/"),
            ("edge-1", "/nodes/edge-1"),
            ("EDGE-12", "/nodes/edge-12"),
            ("default/1", "/releases/default/1"),
            ("default%201", "/releases/default/1"),
            ("shops", "/releases?group=shops"),
            ("orders", "/functions/orders"),
            ("orders@1", "/functions/orders?version=1"),
            ("orders-imp", "/functions/orders-import"),
            (sha256, "/functions/orders?version=1"),
            (sha256[:10].upper(), "/functions/orders?version=1"),
            ("1", "/schema/1"),
            ("disk_full", "/errors/disk_full"),
            ("loss_not_allowed", "/errors/loss_not_allowed"),
            ("edge", ""),
            ("default/9", ""),
            ("%3Cimg%20src=x%3E", ""),
        ):
            assert await leads(wanted) == to, wanted
        shown = await page(replica, "/go?q=edge")
        assert ("edge-1" in shown.words, "edge-12" in shown.words) == (True, True)
        assert "<img" not in (await page(replica, "/go?q=%3Cimg%20src=x%3E")).text
        told = await page(replica, "/errors/function_uncompiled")
        assert "Error function_uncompiled 503 · The function has no compiled code on this node yet." in told.words
        assert "Cure:" in told.words
        for unknown in ("nothing", "%3Cimg%20src=x%3E"):
            assert (await page(replica, f"/errors/{unknown}")).status == 404, unknown

        grants = [{"role": "read", "group": "default"}]
        token = (await ok(replica, "/v1/operators", {"name": "one", "grants": grants}))["token"]
        assert await leads("hidden-1", token) == ""
        assert await leads("shops", token) == ""
        assert await leads("edge-12", token) == "/nodes/edge-12"
