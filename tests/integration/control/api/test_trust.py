"""Which nodes trust the CAs that control gives out."""

from tests.support.control import Control


async def test_a_revoked_node_holds_no_change_of_the_ca_up(control: Control) -> None:
    """It can't learn of a CA until it joins again, by a token that names one."""
    await control.join("kept")
    await control.join("stolen")
    assert (await control.ok("GET", "/v1/certificates/nodes"))["nodes"] == 2
    await control.ok("POST", "/v1/nodes/stolen/revoke")
    found = await control.ok("GET", "/v1/certificates/nodes")
    assert (found["nodes"], "stolen" in {node["name"] for node in found["lacking"]}) == (1, False)
