"""The pages that rename and label nodes and delete groups."""

import re

from tests.support import deploy
from tests.support.console import page, send
from tests.support.replica import Replica, Site

KEY = "k" * 12


async def labels_of(replica: Replica, node: str) -> dict[str, str]:
    found: dict[str, str] = (await deploy.ok(replica, "GET", f"/v1/nodes/{node}"))["labels"]
    return found


async def test_a_node_is_renamed_and_labelled_by_its_forms(control_site: Site) -> None:
    async with control_site.running() as replica:
        await replica.join("edge-1")
        await replica.join("edge-2")
        await deploy.ok(replica, "POST", "/v1/nodes/edge-1/labels", {"set": {"site": "ams", "floor": "2"}})
        assert 'href="/nodes/edge-1/naming"' in (await page(replica, "/nodes/edge-1")).text
        shown = await page(replica, "/nodes/edge-1/naming")
        assert re.search(r"<textarea[^>]*>\s*floor=2\nsite=ams</textarea>", shown.text)

        form = {"key": KEY, "do": "label"}
        refused = await send(replica, "/nodes/edge-1/naming", **form, labels="site=ber\nnonsense")
        assert (refused.status, "invalid_body" in refused.words) == (422, True)
        assert await labels_of(replica, "edge-1") == {"site": "ams", "floor": "2"}
        done = await send(replica, "/nodes/edge-1/naming", **form, labels=" site = ber\n\n")
        assert (done.status, done.headers["location"]) == (303, "/nodes/edge-1?done=label")
        assert await labels_of(replica, "edge-1") == {"site": "ber"}

        form = {"key": KEY + "2", "do": "rename"}
        refused = await send(replica, "/nodes/edge-1/naming", **form, name="edge-2")
        assert (refused.status, "name_taken" in refused.words) == (409, True)
        done = await send(replica, "/nodes/edge-1/naming", **form, name="berlin-1")
        assert (done.status, done.headers["location"]) == (303, "/nodes/berlin-1?done=rename")
        assert "It is called berlin-1 now" in (await page(replica, "/nodes/berlin-1?done=rename")).words
        assert (await page(replica, "/nodes/edge-1")).status == 404


async def test_a_group_is_deleted_when_its_name_is_typed(control_site: Site) -> None:
    async with control_site.running() as replica:
        await deploy.ok(replica, "POST", "/v1/groups", {"name": "shops"})
        grants = [{"role": "admin", "group": "shops"}]
        other = (await deploy.ok(replica, "POST", "/v1/operators", {"name": "other", "grants": grants}))["token"]
        assert 'href="/groups/shops/delete"' in (await page(replica, "/releases?group=shops")).text
        form = {"key": KEY}
        path = "/groups/shops/delete"
        assert (await page(replica, path)).status == 200
        assert (await send(replica, path, token=other, **form, typed="shops")).status == 403
        assert (await send(replica, path, **form, typed="shop")).status == 422
        refused = await send(replica, path, **form, typed="shops")
        assert (refused.status, "grants of operators (other)" in refused.words) == (409, True)
        await deploy.ok(replica, "DELETE", "/v1/operators/other")
        assert (await send(replica, path, **form, typed="shops")).status == 303
        groups = (await deploy.ok(replica, "GET", "/v1/groups"))["items"]
        assert [group["name"] for group in groups] == ["default"]
