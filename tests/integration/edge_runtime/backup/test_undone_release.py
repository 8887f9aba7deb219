"""A bad release that has damaged rows is undone with its data on a real node, and the mended one is applied."""

from pathlib import Path

import pytest

from tests.integration.edge_runtime.backup.test_restored_node import rows, spoilt, state, texts, write
from tests.support.agents import Control, edge
from tests.support.deadlines import deadline

__all__ = ["state"]

pytestmark = pytest.mark.never_retry

MENDED = "ALTER TABLE notes ADD COLUMN more TEXT; UPDATE notes SET more = text"


async def test_a_bad_release_is_undone_with_its_data(control: Control, state: Path) -> None:
    async with edge(state) as node:
        await spoilt(control, node)

        made = await control.call("POST", "releases", {"rollback": True, "data": True})
        assert (made["undo"]["back"], made["undo"]["left"]) == (1, 0)
        # It goes on by itself to the release of the rollback, which it has then.
        await control.until(lambda n: n["at_target"] and n["schema_version"] == 1 and not n["held"])
        assert await texts(node) == ["early"]
        undo = (await control.call("GET", f"releases/default/{made['number']}"))["undo"]
        assert (undo["done"], undo["ordered"]) == (1, 0)
        (told,) = (await control.call("GET", "nodes/edge-1/restores"))["items"]
        assert rows(Path(told["kept"])) == ["spoilt", "late"]
        await write(node, "since")

        # The mended change is applied to the rows of before, and to those since.
        await control.call("POST", "schema-changes/2/revisions", {"sql": MENDED})
        await control.release(functions={}, schema=2, now=True)
        await control.until(lambda n: n["at_target"] and n["schema_version"] == 2)
        assert await texts(node) == ["early", "since"]
        async with deadline(60):
            assert (await control.node())["older_revisions"] == []
