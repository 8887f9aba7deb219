"""What a replica remembers of credentials and nodes that have ended: not for ever, and none of them comes back."""

from control.protocol import wire
from control.sync import fleet_cache
from tests.support.clock import SetClock
from tests.support.control import Control
from tests.support.replica import Site

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


async def test_a_replica_forgets_by_itself(control_site: Site) -> None:
    clock = SetClock(timers="stand")
    async with control_site.running(clock=clock) as replica:
        kept, began = replica.services.fleet, clock.monotonic()
        node = await replica.join("one")
        assert (await node.poll()).status == 204
        assert len(kept.credentials) == 1
        assert (await replica.call("DELETE", "/v1/nodes/one")).status == 204
        # The epochs are read a hundred times in each round of forgetting.
        await clock.passes_until(lambda: not kept.credentials and not kept.nodes, fleet_cache.FORGET_EVERY / 100)
        assert clock.monotonic() - began >= 2 * fleet_cache.FORGET_EVERY, "they stay for a round"
        assert (await node.ask()).status == 401
