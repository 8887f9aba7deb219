"""Control's CA is changed as docs/how-to/change-the-ca.md says: its own commands, real certificates, real nodes."""

import asyncio
import os
import re
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from control.local.pki import Pki
from edge_runtime.sync import authorities, control_trust, identity
from edge_runtime.sync.control_client import ControlClient
from edge_runtime.sync.control_trust import ControlTrust
from edge_runtime.sync.join import join
from edge_runtime.telemetry import poll_report
from tests.support import programs
from tests.support.agents import Control, Edge, edge, joined, running_control
from tests.support.certificates import Authority
from tests.support.deadlines import deadline
from tests.support.moved_clock import MovedClock

PAGE = Path(__file__).parents[4] / "docs/how-to/change-the-ca.md"
LONG = timedelta(days=400)


def commands(heading: str) -> str:
    """The shell commands of a section of the page."""
    [section] = [part for part in PAGE.read_text().split("\n## ") if part.startswith(heading)]
    blocks = re.findall(r"```text\n(.+?)```", section, re.DOTALL)
    return "\n".join(block for block in blocks if not block.startswith("skerry"))


@dataclass
class Changing:
    """A control whose files are in `etc`, and an operator's folder with both CAs."""

    control: Control
    etc: Path
    desk: Path
    old: Authority
    new: Authority

    async def do(self, heading: str) -> None:
        """Do what a section of the page says, and wait until control has read it."""
        before = self.held.error, self.held.context, self.held.trust
        # The users that the packages make needn't be here.
        text = commands(heading).replace("-o root -g skerry ", f"-o {os.getuid()} -g {os.getgid()} ")
        text = text.replace("/etc/skerry", str(self.etc))
        shell = await asyncio.create_subprocess_exec("bash", "-eu", "-c", text, cwd=self.desk)
        assert await shell.wait() == 0
        if heading != "Before":
            async with deadline(60):
                while (self.held.error, self.held.context, self.held.trust) == before or self.held.error:
                    await asyncio.sleep(0.05)

    @property
    def held(self) -> Any:
        return self.control.server.app.services.certificates

    async def ca(self, *arguments: str) -> programs.Done:
        """`skerry ca …`."""
        return await programs.command(
            "control.cli",
            "ca",
            *arguments,
            SKERRY_URL=self.control.url,
            SKERRY_TOKEN=self.control.token,
            SKERRY_CA=str(self.desk / "both.pem"),
        )

    async def lack(self, *names: str) -> programs.Done:
        """`skerry ca --check`, as soon as these nodes alone lack what control gives out."""
        async with deadline(150):
            while [node["name"] for node in (await self.nodes())["lacking"]] != list(names):
                await asyncio.sleep(0.1)
        return await self.ca("--check")

    async def nodes(self) -> Any:
        await self.control.server.app.services.numbers.nodes.write()
        return await self.control.call("GET", "certificates/nodes")


@pytest.fixture
async def changing(
    database_url: str, bucket_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Changing]:
    monkeypatch.setattr(control_trust, "AGAIN", 0.2)
    for name in ("PERIOD", "SOON", "NODE_PERIOD"):
        monkeypatch.setattr(poll_report, name, 0.5)
    old, new = Authority("old", timedelta(days=500)), Authority("new", timedelta(days=900))
    etc, desk = tmp_path / "etc", tmp_path / "desk"
    certificate, key = old.issue("control", LONG).put(etc, "control")
    old.put(desk, "old")
    new.put(desk, "new")
    new.issue("control", LONG).put(desk, "control-by-new")
    (etc / "ca.pem").write_bytes(old.certificate)
    (desk / "both.pem").write_bytes(old.certificate + new.certificate)
    pki = Pki(etc / "ca.pem", certificate, key, old.digest)
    async with running_control(database_url, bucket_url, pki, hold=1.0) as control:
        tls = ssl.create_default_context(cafile=str(desk / "both.pem"))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as http:
            control.http = http
            yield Changing(control, etc, desk, old, new)


def agent(state: Path) -> Any:
    """A node that waits for as little as it may."""
    return edge(state, jitter=lambda: 0.0, drop_after=0.5)


def trusted(state: Path) -> set[str]:
    return set(authorities.ders((state / "ca.pem").read_text("ascii", "ignore")))


async def until_trusted(state: Path, *wanted: Authority) -> None:
    async with deadline(90):
        while trusted(state) != {authority.digest for authority in wanted}:
            await asyncio.sleep(0.05)


async def reaches(node: Edge) -> None:
    await node.until(lambda s: s["control"]["reachable"] and s["at_target"])


async def test_the_page_brings_all_nodes_to_another_ca(changing: Changing, tmp_path: Path) -> None:
    here, away, late = (tmp_path / name for name in ("here", "away", "late"))
    old, new = changing.old, changing.new
    await joined(changing.control, away, "edge-away")
    await joined(changing.control, here, "edge-here")
    async with agent(here) as node:
        await reaches(node)
        done = await changing.lack("edge-away")
        assert (done.status, "trusted by 1 of 2 nodes" in done.out.decode()) == (5, True)
        assert "not yet: edge-away (" in done.out.decode()

        await changing.do("Before")
        await changing.do("1. Add")
        await until_trusted(here, old, new)
        # Whoever joins now trusts what control shows now, and takes the other CA as all do.
        await joined(changing.control, late, "edge-late")
        assert trusted(late) == {old.digest}
        done = await changing.lack("edge-away", "edge-late")
        assert done.status == 5
        assert "without the CAs yet: 2 of 3 nodes" in done.err

        await changing.do("2. Move")
        await reaches(node)
        # A node that was away throughout comes back by the cross-signature, and then has both.
        async with agent(away) as returned, agent(late) as other:
            for each in (returned, other):
                await reaches(each)
            for state in (away, late):
                await until_trusted(state, old, new)
            assert (await changing.lack()).status == 0

            await changing.do("3. Drop")
            for state in (here, away, late):
                await until_trusted(state, new)
            for each in (node, returned, other):
                own = await each.until(lambda s: s["control"]["reachable"])
                assert own["control"]["trust"]["error"] is None
            assert (await changing.lack()).status == 0
    shown = await changing.ca("--json")
    assert [one["sha256"] for one in shown.json()["certificates"] if one["what"] == "ca"] == [new.digest]
    assert shown.json()["nodes"]["lacking"] == []
    node_shown = await changing.control.node("edge-here")
    assert node_shown["numbers"]["trust_ends_at"] is not None


async def test_a_node_that_was_away_for_too_long_is_mended_by_one_command(changing: Changing, tmp_path: Path) -> None:
    state, new = tmp_path / "state", changing.new
    await joined(changing.control, state)
    # Without the cross-signature, and all at once.
    (changing.desk / "cross.pem").write_text("")
    for step in ("1. Add", "2. Move", "3. Drop"):
        await changing.do(step)
    async with agent(state) as node:
        own = await node.until(lambda s: s["error"])
        assert own["error"]["code"] == "tls_untrusted"
        assert f"skerry-edge trust FINGERPRINT --state {state}" in own["error"]["message"]
        # What is wrong changes nothing.
        for wrong in ("0" * 64, changing.old.digest):
            done = await programs.command("edge_runtime.cli.main", "trust", wrong, "--state", str(state))
            assert (done.status, "Nothing was changed" in done.err) == (1, True), done
        assert trusted(state) == {changing.old.digest}
        assert new.digest in (await changing.ca()).out.decode()
        done = await programs.command("edge_runtime.cli.main", "trust", new.digest, "--state", str(state))
        assert done.status == 0, done
        assert trusted(state) == {new.digest}
        # The node that runs goes on by itself.
        await reaches(node)
    assert sorted(file.name for file in state.iterdir() if "pem" in file.name) == ["ca.pem"]


async def test_cas_that_would_lock_the_node_out_are_not_taken(
    changing: Changing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    await joined(changing.control, state)
    stranger = Authority("stranger", LONG)
    services = changing.control.server.app.services

    def give_out(pem: bytes) -> None:
        """As a control would that doesn't look at what it gives out."""
        told = authorities.digest(pem.decode()) or "0" * 16
        monkeypatch.setattr(
            type(services.certificates), "trust", property(lambda self: type(self._in_force.trust)(pem, told, ""))
        )
        services.reread.changed[-1]()

    async with agent(state) as node:
        await reaches(node)
        give_out(stranger.certificate + b"-----BEGIN CERTIFICATE-----" * 10_000)
        await node.until(lambda s: "65536 are allowed" in (s["control"]["trust"]["error"] or ""))
        give_out(stranger.certificate)
        await node.until(lambda s: "by them alone control can't be reached" in (s["control"]["trust"]["error"] or ""))
        give_out(b"no certificate")
        await node.until(lambda s: "no certificate in PEM" in (s["control"]["trust"]["error"] or ""))
        assert trusted(state) == {changing.old.digest}
        # What is right again is forgotten.
        give_out(changing.old.certificate)
        own = await node.until(lambda s: s["control"]["trust"]["error"] is None)
        assert own["control"]["reachable"]
    assert sorted(file.name for file in state.iterdir() if "pem" in file.name) == ["ca.pem"]


async def test_a_bundle_may_have_names_in_any_encoding(
    changing: Changing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the bundles of browsers' makers have."""
    state = tmp_path / "state"
    named = "# Főtanúsítvány\n".encode() + b"# \xe9\n" + changing.old.certificate
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(named)
    token = (await changing.control.join_token()).partition(".")[0]
    await join(state, changing.control.url, token, "edge-1", {}, ca=bundle)
    both = named + changing.new.certificate
    services = changing.control.server.app.services
    trust = type(services.certificates.trust)(
        both, authorities.digest(both.decode("ascii", "ignore")), changing.old.digest
    )
    async with agent(state) as node:
        await reaches(node)
        monkeypatch.setattr(type(services.certificates), "trust", property(lambda _: trust))
        services.reread.changed[-1]()
        await until_trusted(state, changing.old, changing.new)
        await reaches(node)


async def test_another_trust_that_came_meanwhile_stays(changing: Changing, tmp_path: Path) -> None:
    """As of a node that joins again at another control while its process still asks the one before."""
    state = tmp_path / "state"
    stranger = Authority("stranger", LONG)
    await joined(changing.control, state)
    async with agent(state) as node:
        await reaches(node)
        (state / "ca.pem").write_bytes(stranger.certificate)
        await changing.do("Before")
        await changing.do("1. Add")
        own = await node.until(lambda s: s["error"])
        assert own["error"]["code"] == "tls_untrusted"
        assert trusted(state) == {stranger.digest}
        (state / "ca.pem").write_bytes(changing.old.certificate)
        await until_trusted(state, changing.old, changing.new)
        await reaches(node)


async def test_a_ca_is_given_up_only_after_it_was_told_for_a_while(changing: Changing, tmp_path: Path) -> None:
    state = tmp_path / "state"
    await joined(changing.control, state)
    await changing.do("1. Add")
    async with edge(state, jitter=lambda: 0.0) as node:
        await until_trusted(state, changing.old, changing.new)
        # As while a replica that wasn't changed yet answers.
        (changing.etc / "ca.pem").write_bytes(changing.old.certificate)
        told = authorities.digest(changing.old.certificate.decode())
        await node.until(lambda s: s["control"]["trust"]["told"] == told)
        for _ in range(3):
            heard = (await node.status())["control"]["heard_at"]
            await node.until(lambda s, heard=heard: s["control"]["heard_at"] != heard)
        assert trusted(state) == {changing.old.digest, changing.new.digest}


async def test_a_node_follows_at_a_time_of_its_own_and_no_replica_that_lags(
    changing: Changing, tmp_path: Path, clock: MovedClock
) -> None:
    clock.stand()
    state, url = tmp_path / "state", changing.control.url
    await joined(changing.control, state)
    both, new = (changing.desk / "both.pem").read_text(), changing.new.certificate.decode()
    share = [0.5, 0.5, 0.0]
    trust = ControlTrust(state, jitter=share.pop)
    async with ControlClient(url, state / "ca.pem", identity.read(state).credential) as client:

        async def follows(told: str) -> bool:
            client.trust = authorities.digest(told)
            return await trust.follow(client, url)

        async def after(seconds: float, told: str) -> bool:
            await clock.move(seconds)
            return await follows(told)

        # One replica tells both CAs, the other one, which answers at /v1/ca, hasn't read them yet.
        assert not await follows(both)
        assert (trusted(state), trust.error) == ({changing.old.digest}, "")
        await changing.do("Before")
        await changing.do("1. Add")
        assert await follows(both)
        await until_trusted(state, changing.old, changing.new)
        await changing.do("2. Move")
        await changing.do("3. Drop")
        # The node's share is a half, and no CA is given up before others were told for long enough.
        assert not await follows(new)
        assert not await after(control_trust.SPREAD / 2 + 1, new)
        assert not await after(control_trust.DROP_AFTER - control_trust.SPREAD / 2 - 2, new)
        assert trusted(state) == {changing.old.digest, changing.new.digest}
        assert await after(2, new)
        assert trusted(state) == {changing.new.digest}
        # None is given up by this one.
        (changing.etc / "ca.pem").write_text(both)
        changing.control.server.app.services.reread.look_now()
        async with deadline(60):
            while changing.held.trust.digest != authorities.digest(both):
                await asyncio.sleep(0.05)
        assert not await follows(both)
        assert not await after(control_trust.SPREAD / 2 - 1, both)
        assert trusted(state) == {changing.new.digest}
        assert await after(2, both)
    assert trusted(state) == {changing.old.digest, changing.new.digest}


def test_the_end_of_the_last_ca_is_told_from_thirty_days_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def look(trust: ControlTrust) -> list[str]:
        caplog.clear()

        class Client:
            trust = ""

        await trust_of.follow(Client(), "https://localhost")  # type: ignore[arg-type]
        return [line for line in caplog.messages if "the last CA" in line]

    for life, wanted in ((40, []), (20, ["ends at"]), (-1, ["ended at"])):
        pem = Authority("short", timedelta(days=life)).certificate
        (tmp_path / "ca.pem").write_bytes(pem)
        trust_of = ControlTrust(tmp_path)
        first, again = asyncio.run(look(trust_of)), asyncio.run(look(trust_of))
        assert [word in first[0] for word in wanted] == [True] * len(first) == [True] * len(wanted)
        assert again == [], "once a day"
        assert trust_of.status()["ends_soon"] == bool(wanted)
