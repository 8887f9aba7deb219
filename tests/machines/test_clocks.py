"""Machines without a battery for their clocks start in January 2000, and get the time from the network later."""

import json
from collections.abc import Iterator

import pytest

from tests.machines.clocks import WITHOUT_A_BATTERY, Clocks, clocks_of
from tests.machines.conftest import BoxFleet
from tests.machines.test_power_cuts import VISITS
from tests.machines.units import said, until, wait
from tests.packages.machine import Machine

pytestmark = [pytest.mark.timeout(900), pytest.mark.never_retry]
STATE = "/var/lib/skerry-edge"
USERS = ("skerry", "skerry-edge", "postgres")
IDENTITY = f"{STATE}/identity.json"
CALLS = ("calls", "--json", "--limit", "1000", "--since", "1999-01-01T00:00:00Z")
BEFORE_2001 = """
SELECT format('SELECT count(*) FROM %I WHERE %I < ''2001-01-01''', table_name, column_name)
FROM information_schema.columns WHERE table_schema = 'public' AND data_type LIKE 'timestamp%' \\gexec
"""


@pytest.fixture(scope="module")
def clocks(fleet: BoxFleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clocks]:
    """Clocks of control, of its database and of the node, which run by them."""
    units = ("skerry-edge", "skerry", "postgresql")
    with clocks_of(fleet.machine, *USERS, folder=tmp_path_factory.mktemp("clocks")) as made:
        fleet.machine.run("systemctl", "restart", *reversed(units))
        try:
            yield made
        finally:
            for user in USERS:
                made.set(user)
    fleet.machine.run("systemctl", "restart", *reversed(units))


def test_a_node_serves_in_the_year_2000_and_converges_once_it_has_the_time(fleet: BoxFleet, clocks: Clocks) -> None:
    box, identity = fleet.machine, fleet.machine.run("cat", IDENTITY)
    before, release = fleet.count("clock"), fleet.edge("status")["release"]["number"]
    fleet.stop("skerry-edge")
    clocks.set("skerry-edge", WITHOUT_A_BATTERY)
    fleet.start("skerry-edge")
    assert fleet.visits("clock") == before
    counted = fleet.count("clock")
    assert counted != before
    # Its clock is that one, and control isn't asked by it.
    assert " Jan 2000 " in fleet.call("-i", f"http://127.0.0.1:{fleet.node_port}/_skerry/healthz")
    trouble = wait(lambda: fleet.edge("status")["control"]["error"], "the node says nothing of its clock")
    assert trouble["code"] == "clock_behind"
    assert "which says 2000-01-01" in trouble["message"]
    found = {one["check"]: one for one in fleet.edge("doctor")["findings"]}
    assert (found["control"]["level"], found["control"]["cure"]) == ("wrong", "timedatectl set-ntp true")
    fleet.skerry(f"skerry function push {VISITS} --config CLOCK=2000")

    clocks.set("skerry-edge")
    fleet.at_target(after=release)
    assert fleet.visits("clock") == counted
    assert box.run("cat", IDENTITY) == identity
    # The calls of both times are kept.
    years = {call["t"][:4] for call in map(json.loads, fleet.edge_says(*CALLS).splitlines())}
    assert "2000" in years
    assert len(years) == 2
    fleet.machine.run("systemctl", "restart", "skerry-edge")
    assert fleet.visits("clock") == counted


def stored(box: Machine) -> str:
    """A digest of all that control has stored."""
    return box.shell("runuser -u postgres -- pg_dump --data-only skerry | grep -v restrict | sha256sum")


def test_control_stores_nothing_in_the_year_2000(fleet: BoxFleet, clocks: Clocks) -> None:
    """Its machine is its database's, too: nobody there knows the time."""
    box, why = fleet.machine, "says a time that can be right"
    identity, release = box.run("cat", IDENTITY), fleet.edge("status")["release"]["number"]
    token = fleet.skerry("skerry node token --group default --json")
    fleet.stop("skerry")
    before = stored(box)
    for user in ("skerry", "postgres"):
        clocks.set(user, WITHOUT_A_BATTERY)
    box.run("systemctl", "restart", "postgresql")
    # It fails at once, and is tried again and again.
    assert box.attempt("systemctl", "start", "skerry").returncode != 0
    wait(lambda: said(box, "skerry", why) > 2, "control doesn't say why it doesn't start")
    counted = fleet.count("year")
    assert stored(box) == before

    for user in ("skerry", "postgres"):
        clocks.set(user)
    until(box, "skerry", "SubState", "running")
    fleet.answers("skerry")
    fleet.skerry(f"skerry function push {VISITS} --config CLOCK=right")
    fleet.at_target(after=release)
    assert fleet.visits("year") == counted
    assert box.run("cat", IDENTITY) == identity
    open_tokens = fleet.skerry("skerry node token list --json")
    assert json.loads(token)["id"] in open_tokens


def test_a_database_in_the_year_2000_isnt_believed(fleet: BoxFleet, clocks: Clocks) -> None:
    box, release = fleet.machine, fleet.edge("status")["release"]["number"]
    clocks.set("postgres", WITHOUT_A_BATTERY)
    wait(lambda: said(box, "skerry", "the database's clock says 2000-01-01"), "control doesn't say that it is wrong")
    fleet.skerry(f"skerry function push {VISITS} --config CLOCK=database")
    fleet.at_target(after=release)
    counts = box.shell('printf %s "$SQL" | runuser -u postgres -- psql -At skerry', SQL=BEFORE_2001).split()
    assert len(counts) > 20
    assert set(counts) == {"0"}
    clocks.set("postgres")
    wait(lambda: said(box, "skerry", "agree again"), "control doesn't say that the clocks agree")
