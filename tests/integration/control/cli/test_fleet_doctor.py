"""`skerry doctor` of a real control, which is broken in one way after the other."""

import json
from pathlib import Path
from typing import Any

from control.local.pki import Pki
from tests.support import programs
from tests.support.agents import Control, joined, running_control


async def doctor(control: Control, token: str = "", **environment: str) -> tuple[int, dict[str, Any]]:
    """Exit code, and the findings that aren't ok, by their checks."""
    to = {"SKERRY_URL": control.url, "SKERRY_TOKEN": token or control.token, "SKERRY_CA": str(control.pki.ca)}
    done = await programs.command("control.cli", "doctor", "--json", **(to | environment))
    assert done.err == ""
    told = json.loads(done.out)
    assert done.status == {"ok": 0, "note": 7, "wrong": 5}[told["worst"]]
    found = {finding["check"]: finding for finding in told["findings"] if finding["level"] != "ok"}
    assert all(finding["cure"] for finding in found.values())
    return done.status, found


async def test_a_control_and_its_nodes(database_url: str, bucket_url: str, pki: Pki, tmp_path: Path) -> None:
    async with running_control(database_url, bucket_url, pki) as control:
        code, found = await doctor(control)
        assert (code, set(found)) == (7, {"operators"})
        assert "is the only admin" in found["operators"]["what"]
        second = await control.call("POST", "operators", {"name": "second", "grants": [{"role": "admin"}]})
        assert await doctor(control) == (0, {})

        _, found = await doctor(control, SKERRY_TOKN="x")
        assert "is SKERRY_TOKEN meant?" in found["settings"]["what"]
        await control.call(
            "POST", "operators", {"name": "brief", "grants": [{"role": "read"}], "expires_in": 3 * 86_400}
        )
        code, found = await doctor(control)
        assert (code, "the token of brief ends" in found["operators"]["what"]) == (7, True)
        await control.call("DELETE", "operators/brief")

        await joined(control, tmp_path / "edge")
        await control.call("POST", "groups", {"name": "empty"})
        await control.call("POST", "releases", {"group": "empty"})
        _, found = await doctor(control)
        assert "empty" in found["groups"]["what"]
        await control.call("POST", "nodes/edge-1/revoke", {})
        _, found = await doctor(control)
        assert "revoked, and still listed: edge-1" in found["nodes"]["what"]

        reader = await control.call("POST", "operators", {"name": "reader", "grants": [{"role": "read"}]})
        _, found = await doctor(control, reader["token"])
        assert "operators, join tokens" in found["access"]["what"]
        assert second["token"] not in json.dumps(found)

        await control.stop()
        code, found = await doctor(control)
        assert (code, set(found)) == (5, {"control"})
        await control.start()
