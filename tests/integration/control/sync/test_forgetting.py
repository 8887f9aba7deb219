"""What a replica remembers of credentials and nodes that have ended: not for ever, and none of them comes back."""

import pytest

from control import wire
from control.sync import fleet_cache
from tests.support.control import Control, until

POLL = {"generation": 0, "digest": wire.digest(wire.Inventory()), "inventory": {}}


async def poll(control: Control, token: str) -> int:
    return (await control.call("POST", "/v1/poll", POLL, token=token)).status


async def test_revoked_credentials_and_removed_nodes_are_forgotten(control: Control) -> None:
    kept = control.services.fleet
    nodes = {name: await control.join(name) for name in ("stays", "revoked", "removed")}
    for node in nodes.values():
        assert await poll(control, node.credential) == 204
    await control.ok("POST", "/v1/nodes/revoked/revoke")
    await control.ok("DELETE", "/v1/nodes/removed")
    ids = {name: node.credential.split("_")[1] for name, node in nodes.items()}

    # For one round they stay: a look-up that began before their end must not bring them back as good ones.
    kept.forget()
    assert kept.credentials.keys() == set(ids.values())
    kept.forget()
    assert kept.credentials.keys() == {ids["stays"]}
    assert kept.nodes.keys() == {nodes[name].id for name in ("stays", "revoked")}
    assert await poll(control, nodes["stays"].credential) == 204

    # Asked for again, they are looked up, refused, and forgotten again.
    for name in ("revoked", "removed"):
        assert await poll(control, nodes[name].credential) == 401
    assert kept.credentials.keys() == {ids[name] for name in ("stays", "revoked", "removed")}
    for _ in range(2):
        kept.forget()
    assert kept.credentials.keys() == {ids["stays"]}
    assert await poll(control, nodes["stays"].credential) == 204


async def test_a_replica_forgets_by_itself(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_cache, "FORGET_EVERY", 0.1)
    kept = control.services.fleet
    node = await control.join("one")
    assert await poll(control, node.credential) == 204
    assert len(kept.credentials) == 1
    await control.ok("DELETE", "/v1/nodes/one")

    async def forgotten() -> bool:
        return not kept.credentials and not kept.nodes

    await until(forgotten)
    assert await poll(control, node.credential) == 401
