"""A push of several things of which control would refuse the release: none of them is made."""

from pathlib import Path

import pytest

from tests.guests.build import guest
from tests.integration.control.api.test_stalls import ITEMS, with_estimates
from tests.support import deploy
from tests.support.programs import skerry
from tests.support.replica import Site

REFUSED = {
    "stall": ("CREATE INDEX names ON items (name);", 3_000_000, "stall_not_allowed", "about 6.6 s on node large"),
    "loss": ("DROP TABLE items;", 20_000, "loss_not_allowed", "`skerry schema withdraw` takes"),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_a_release_that_is_refused_leaves_nothing(control_site: Site, tmp_path: Path, what: str) -> None:
    sql, rows, code, told = REFUSED[what]
    folder = tmp_path / "shop"
    (folder / "schema").mkdir(parents=True)
    (folder / "function.wasm").write_bytes(guest("sql"))
    (folder / "function.toml").write_text('name = "shop"\nmodule = "function.wasm"\nschema = "schema"\n')
    (folder / "schema" / "0001_shop.sql").write_text(sql)
    async with control_site.running() as replica:
        await deploy.schema(replica, ITEMS)
        await deploy.release(replica)
        await with_estimates(replica, "large", items=rows)
        push = "function", "push", folder
        done = await skerry(replica, *push)
        assert done.status == 3, done
        assert f"[{code}, field allow_{what}]" in done.err
        assert told in done.err
        assert len(await deploy.items(replica, "/v1/schema-changes")) == 1
        assert await deploy.items(replica, "/v1/functions") == []
        done = await skerry(replica, *push, f"--allow-{what}")
        assert done.status == 0, done
        assert len(await deploy.items(replica, "/v1/schema-changes")) == 2
