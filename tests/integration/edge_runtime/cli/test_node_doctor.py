"""`skerry-edge doctor` on a real node of a real control, which is broken in one way after the other."""

import json
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from edge_runtime import wal
from edge_runtime.sync import identity
from tests.guests.version import version
from tests.integration.edge_runtime.cli.test_node import command, running_node, status_until
from tests.support.agents import Control, joined
from tests.support.certificates import Authority
from tests.support.locks import locked
from tests.support.otlp_receiver import collector
from tests.support.ports import free_port
from tests.support.services import LIKE_COCKROACHDB


async def doctor(state: Path, *more: str, **environment: str) -> tuple[int, dict[str, Any]]:
    """Exit status, and the findings that aren't ok, by their checks."""
    code, out, err = await command("doctor", "--state", str(state), "--json", *more, **environment)
    assert err == ""
    told = json.loads(out)
    assert code == {"ok": 0, "note": 4, "wrong": 1}[told["worst"]]
    checks = [finding["check"] for finding in told["findings"]]
    if "database" in checks:
        # A full disk is told first: it may be all that is wrong with the database.
        assert checks.index("disk") < checks.index("database")
    found = {finding["check"]: finding for finding in told["findings"] if finding["level"] != "ok"}
    assert all(finding["cure"] for finding in found.values())
    # What was compiled in this checkout may be of older sources.
    return code, {check: finding for check, finding in found.items() if check != "built"}


async def test_a_node_that_runs(control: Control, tmp_path: Path) -> None:
    state, listen = tmp_path / "state", f"127.0.0.1:{free_port()}"
    await joined(control, state)
    await control.release(functions={"hello": await control.push("hello", version(1), {"sql": "read"})})
    async with running_node(state, listen):
        await status_until(listen, 0)
        ended, found = await doctor(state)
        assert found == {}
        code, out, _ = await command("doctor", "--state", str(state), "--verbose")
        assert "ok     credential: control takes the credential of edge-1" in out
        assert "ok     functions: all can be called: 1 function" in out
        assert "ok     unit: no systemd unit skerry-edge.service is for this state directory" in out
        assert f"ok     listen: the local HTTP is at {listen}" in out  # as the node has it, not this environment
        assert code == ended
        await control.call("POST", "nodes/edge-1/revoke", {})
        await status_until(listen, 1)
        code, found = await doctor(state)
        assert code == 1
        assert found["credential"]["level"] == "wrong"
        assert "an operator has revoked it" in found["credential"]["what"]
        assert found["credential"]["what"].endswith("[node_revoked]")
        assert "skerry-edge join --again" in found["credential"]["cure"]
        assert "node_revoked" in found["target"]["what"]
    who = identity.read(state)
    code, out, _ = await command("doctor", "--state", str(state), "--verbose")
    assert who.credential not in out


async def test_a_node_that_is_down(control: Control, tmp_path: Path) -> None:
    state = tmp_path / "state"
    await joined(control, state)
    listen = ("--listen", f"127.0.0.1:{free_port()}")
    async with running_node(state, listen[1]):
        await status_until(listen[1], 0)

    async def found(*more: str, **environment: str) -> dict[str, Any]:
        code, all_of_it = await doctor(state, *listen, *more, **environment)
        assert code == 1  # it doesn't run
        return {name: f for name, f in all_of_it.items() if name != "node"}

    assert await found() == {}

    # What its settings name.
    assert "SKERRY_EDGE_CALLERS" in (await found("--listen", "0.0.0.0:8087"))["settings"]["what"]
    open_to_others = await found("--listen", f"0.0.0.0:{free_port()}", SKERRY_EDGE_TOKEN="a-token-that-is-long-enough")
    assert "plain HTTP" in open_to_others["listen"]["what"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        of_another = await found("--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert "another process has it" in of_another["listen"]["what"]
    assert "is none of Skerry's" in (await found(SKERRY_EDGE_LISTNE="x"))["variables"]["what"]
    (state / "secrets.toml").write_text("[orders]\nKEY = 'a-value'\n")
    (state / "secrets.toml").chmod(0o644)
    told = (await found())["secrets"]
    assert "chmod 600" in told["what"]
    assert "a-value" not in json.dumps(told)
    (state / "secrets.toml").unlink()
    callers = tmp_path / "callers.toml"
    assert "isn't there" in (await found("--callers", str(callers)))["callers"]["what"]
    callers.write_text("caller = 3")
    callers.chmod(0o600)
    assert "[[caller]]" in (await found("--callers", str(callers)))["callers"]["what"]
    assert "risks" in await found("--synchronous", "NORMAL")

    # Its certificate: of another key, about to end, and ended.
    authority = Authority()
    soon, key = authority.issue("edge", life=timedelta(days=10)).put(tmp_path, "soon")
    _, other = authority.issue("edge").put(tmp_path, "other")
    ended, ended_key = authority.issue("edge", life=timedelta(days=-1)).put(tmp_path, "ended")
    tls = (await found("--tls-cert", str(soon), "--tls-key", str(other)))["tls"]
    assert "aren't a pair" in tls["what"]
    tls = (await found("--tls-cert", str(soon), "--tls-key", str(key)))["tls"]
    assert (tls["level"], "ends at" in tls["what"]) == ("note", True)
    tls = (await found("--tls-cert", str(ended), "--tls-key", str(ended_key)))["tls"]
    assert (tls["level"], "clients refuse it" in tls["what"]) == ("wrong", True)

    # Its state directory.
    state.chmod(0o755)
    assert "others may use" in (await found())["state"]["what"]
    state.chmod(0o700)
    (state / wal.FILE).write_bytes(b"nonsense" * 1024)
    assert (await found())["database"]["level"] == "wrong"


async def test_control_that_cant_be_reached_or_trusted(control: Control, tmp_path: Path) -> None:
    state = tmp_path / "state"
    who = await joined(control, state)
    ca = (state / "ca.pem").read_text()
    listen = ("--listen", f"127.0.0.1:{free_port()}")

    (state / "ca.pem").write_bytes(Authority("another one").certificate)
    _, found = await doctor(state, *listen)
    assert "is not trusted" in found["control"]["what"]
    assert "skerry-edge trust" in found["control"]["cure"]
    (state / "ca.pem").write_bytes(Authority("it has ended", life=timedelta(days=-1)).certificate)
    _, found = await doctor(state, *listen)
    assert found["trust"]["level"] == "wrong"
    assert "control isn't trusted any more" in found["trust"]["what"]
    (state / "ca.pem").write_text("nonsense")
    _, found = await doctor(state, *listen)
    assert "holds no PEM certificate" in found["control"]["what"]
    assert "has no certificate" in found["trust"]["what"]
    (state / "ca.pem").write_text(ca + Authority("one more").certificate.decode())
    _, found = await doctor(state, *listen)
    assert "other CAs" in found["trust"]["what"]
    # A name before a certificate may be in any encoding, for the node too.
    (state / "ca.pem").write_bytes(b"# Autorit\xe9\n" + ca.encode())
    _, found = await doctor(state, *listen)
    assert not {"control", "trust"} & found.keys()
    (state / "ca.pem").write_text(ca)

    text = identity.path(state).read_text()
    identity.path(state).write_text(text.replace(who.control_url, "https://no-such-host.invalid:8443"))
    _, found = await doctor(state, *listen)
    assert "can't be resolved" in found["control"]["what"]
    identity.path(state).write_text(text.replace(who.control_url, f"https://127.0.0.1:{free_port()}"))
    _, found = await doctor(state, *listen)
    assert found["control"]["what"].endswith("[unreachable]")
    identity.path(state).write_text("nonsense")
    code, found = await doctor(state, *listen)
    assert (code, found["identity"]["level"]) == (1, "wrong")
    identity.path(state).unlink()
    _, found = await doctor(state, *listen)
    assert "belongs to no node yet" in found["identity"]["what"]
    code, found = await doctor(tmp_path / "nowhere")
    assert (code, set(found)) == (1, {"state"})


async def test_a_control_without_its_database_is_no_refused_credential(control: Control, tmp_path: Path) -> None:
    """Or a node would be joined again for nothing."""
    state = tmp_path / "state"
    await joined(control, state)
    if LIKE_COCKROACHDB:
        pytest.skip("CockroachDB has no LOCK TABLE")
    async with locked(control.settings.metadata_url, "LOCK TABLE artifacts IN ACCESS EXCLUSIVE MODE"):
        _, found = await doctor(state, "--listen", f"127.0.0.1:{free_port()}")
    assert "credential" not in found
    assert "[database_" in found["control"]["what"]
    assert "/readyz" in found["control"]["cure"]


async def test_a_collector_of_traces(control: Control, tmp_path: Path) -> None:
    state = tmp_path / "state"
    await joined(control, state)
    listen = ("--listen", f"127.0.0.1:{free_port()}")
    headers = tmp_path / "headers"
    headers.write_text("X-Token: a-token-of-ours\n")
    with collector() as made:
        settings = ("--otlp-url", made.url, "--otlp-headers-file", str(headers))
        _, found = await doctor(state, *listen, *settings)
        assert "traces" not in found
        assert [sent["x-token"] for sent in made.headers] == ["a-token-of-ours"]
        made.status = 401
        _, found = await doctor(state, *listen, *settings)
        assert (found["traces"]["level"], "it answered 401" in found["traces"]["what"]) == ("note", True)
        assert "a-token-of-ours" not in json.dumps(found)
    _, found = await doctor(state, *listen, "--otlp-url", f"http://127.0.0.1:{free_port()}")
    assert "refused" in found["traces"]["what"]
    headers.write_text("no header")
    _, found = await doctor(state, *listen, *settings)
    assert (found["traces"]["level"], str(headers) in found["traces"]["what"]) == ("wrong", True)
