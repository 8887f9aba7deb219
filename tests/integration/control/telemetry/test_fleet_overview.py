"""`GET /v1/fleet` and `/v1/fleet/calls`: counts, causes, calls, and only of the groups that an operator may see."""

from typing import Any

import pytest

from tests.support import numbers, seeds
from tests.support.replica import Replica, Site
from tests.support.standings import group, node


async def ask(replica: Replica, path: str, token: str | None = None) -> Any:
    answer = await replica.call("GET", path, token=token)
    assert answer.status == 200, answer.body
    return answer.json()


async def test_the_fleet_by_group(control_site: Site) -> None:
    async with control_site.running() as replica:
        await group(replica, "shops", 2)
        await node(replica, "well", "shops", confirmed=20)
        await node(replica, "bad", "shops", confirmed=10, code="disk_full", overdue=True)
        await node(replica, "far", "shops", confirmed=5)
        found = await ask(replica, "/v1/fleet")
        assert [g["name"] for g in found["groups"]] == ["default", "shops"]
        shops = found["groups"][1]
        away = {"revoked": 0, "offline": 0, "syncing": 0, "held": 0}
        assert shops["standings"] == {**away, "failing": 1, "behind": 1, "at_target": 1}
        assert (shops["nodes"], shops["release"], shops["overdue"], shops["elsewhere"]) == (3, 2, 1, 1)
        assert [(r["release"], r["nodes"], r["calls"], r["p99"]) for r in shops["releases"]] == [
            (2, 1, 0, None),
            (1, 1, 0, None),
        ]
        (cause,) = shops["failing"]
        assert (cause["code"], cause["nodes"], cause["examples"]) == ("disk_full", 1, ["bad"])
        (only,) = (await ask(replica, "/v1/fleet?group=shops"))["groups"]
        assert only == shops
        for path in ("/v1/fleet", "/v1/fleet/calls", "/v1/fleet/schedules"):
            assert (await replica.call("GET", f"{path}?group=nowhere")).json()["code"] == "unknown_group"
        wide = await replica.call("GET", "/v1/fleet/calls?minutes=1441")
        assert (wide.status, wide.json()["field"]) == (422, "minutes")
        assert (await ask(replica, "/v1/fleet/calls?minutes=129600&group=shops"))["calls"] == []


async def test_a_release_whose_calls_all_fail_is_seen_on_every_replica(control_site: Site) -> None:
    """Its nodes are at their target; before, nothing told that none of its calls ends well."""
    async with control_site.running() as replica, control_site.running() as other:
        made = await replica.join("one")
        await seeds.function(replica, "hello")
        await seeds.release(replica, functions={"hello": 1})
        await made.sync()
        await seeds.release(replica, functions={"hello": 1})
        assert (await made.poll()).status == 204
        before = [numbers.function(0, release=1, calls=100, seconds=0.01)]
        await numbers.tell(made, numbers.message(before, seconds=5))
        sent = [numbers.function(0, release=2, calls=40, seconds=0.1, guest_trap=40)]
        await numbers.tell(made, numbers.message(sent, seconds=5, sequence=2))
        services = replica.services
        await services.numbers.resolve()
        for written in (False, True):
            if written:
                await services.numbers.write(services.clock.now())
            for asked in (replica, other)[: 1 + written]:
                (found,) = (await ask(asked, "/v1/fleet"))["groups"]
                assert found["standings"]["at_target"] == 1
                newest, earlier = found["releases"]
                assert (newest["release"], newest["nodes"], newest["calls"], newest["errors"]) == (2, 1, 40, 40)
                assert (newest["outcomes"], earlier["errors"], earlier["calls"]) == ({"guest_trap": 40}, 0, 100)
                assert newest["p99"] == pytest.approx(0.1, rel=0.1)
                calls = (await ask(asked, "/v1/fleet/calls?function=hello"))["calls"]
                assert [(c["function"], c["release"], c["calls"], c["errors"]) for c in calls] == [
                    ("hello", 1, 100, 0),
                    ("hello", 2, 40, 40),
                ]
                assert (await ask(asked, "/v1/fleet/calls?function=another"))["calls"] == []


async def test_an_operator_sees_its_groups_alone(control_site: Site) -> None:
    async with control_site.running() as replica:
        for name in ("east", "west"):
            await group(replica, name, 1)
            await node(replica, f"in-{name}", name, code="disk_full")
        made = {"name": "of-east", "grants": [{"role": "read", "group": "east"}]}
        token = (await replica.call("POST", "/v1/operators", made)).json()["token"]
        found = await ask(replica, "/v1/fleet", token)
        assert [g["name"] for g in found["groups"]] == ["east"]
        for path in ("/v1/fleet", "/v1/fleet/calls", "/v1/fleet/schedules"):
            refused = await replica.call("GET", f"{path}?group=west", token=token)
            assert (refused.status, refused.json()["code"]) == (404, "unknown_group")
            assert (await replica.call("GET", path, token="")).status == 401


async def test_an_operator_sees_the_calls_of_its_groups_alone(control_site: Site) -> None:
    async with control_site.running() as replica:
        await seeds.function(replica, "hello")
        for name in ("east", "west"):
            assert (await replica.call("POST", "/v1/groups", {"name": name})).status == 201
            await seeds.release(replica, name, functions={"hello": 1})
            made = await replica.join(f"in-{name}", name)
            await made.sync()
            await numbers.tell(made, numbers.message([numbers.function()]))
        await replica.services.numbers.resolve()
        operator = {"name": "of-east", "grants": [{"role": "read", "group": "east"}]}
        token = (await replica.call("POST", "/v1/operators", operator)).json()["token"]
        for asking, groups in ((replica.admin, ["east", "west"]), (token, ["east"])):
            calls = (await ask(replica, "/v1/fleet/calls", asking))["calls"]
            assert [one["group"] for one in calls] == groups
