"""Polls and plans between nodes and replicas, through the public interfaces."""

from tests.support.replica import Site


async def test_a_node_joins_and_has_nothing_to_do(control_site: Site) -> None:
    async with control_site.running() as replica:
        node = await replica.join("one")
        first = await node.ask()
        assert (first.status, first.json()) == (200, {"type": "report"})
        assert (await node.ask(report=True)).status == 204
        assert (await node.ask()).status == 204
        assert (await replica.node("one"))["state"] == "online"
