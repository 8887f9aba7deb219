"""The commands of a node as processes: join, run, status, check, and what they exit with."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.built import parts
from edge_runtime.cli import status as status_command
from edge_runtime.settings import EdgeSettingsError
from edge_runtime.state import State
from edge_runtime.sync import identity
from edge_runtime.sync.join import join
from edge_runtime.web import node_socket
from tests.guests.build import guest
from tests.guests.version import version
from tests.support import programs
from tests.support.agents import Control
from tests.support.deadlines import deadline
from tests.support.environment import without_settings
from tests.support.ports import free_port

DEADLINE = 60.0


async def command(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Status, stdout, stderr of `skerry-edge`."""
    done = await programs.command("edge_runtime.cli.main", *arguments, **environment)
    return done.status, done.out.decode(), done.err


async def start(*arguments: str, **environment: str) -> asyncio.subprocess.Process:
    kept = without_settings()
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "edge_runtime.cli.main",
        *arguments,
        env=kept | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=Path(status_command.__file__).parents[2],
    )


@asynccontextmanager
async def running_node(
    state: Path, listen: str, logged: list[str] | None = None, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a node until the block ends; `logged` gets its log then."""
    process = await start("run", "--state", str(state), "--listen", listen, "--workers", "1", **environment)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        async with deadline(DEADLINE):
            _, log = await process.communicate()
        assert process.returncode == 0
        if logged is not None:
            logged.append(log.decode())


async def test_a_node_says_how_its_parts_run(control: Control, tmp_path: Path) -> None:
    state, listen, logged = tmp_path / "state", f"127.0.0.1:{free_port()}", []
    await command("join", "--state", str(state), "--control", control.url, SKERRY_JOIN_TOKEN=await control.join_token())
    async with running_node(state, listen, logged, SKERRY_EDGE_PURE="1"):
        found = await status_until(listen, 0)
        told = {"compiled": False, "why": "SKERRY_EDGE_PURE is set", "stale": False}
        assert found["built"] == {"front": told, "workers' loop": told}
    async with running_node(state, listen, logged):
        await status_until(listen, 0)
    for name, part in parts.document().items():
        assert f"INFO    skerry.front: the {name} is not compiled: SKERRY_EDGE_PURE is set\n" in logged[0]
        assert f"skerry.front: {parts.told(name, part)}\n" in logged[1]
    assert "workers run all calls in Python: their loop is not compiled: SKERRY_EDGE_PURE is set\n" in logged[0]
    assert ("workers run all calls in Python" in logged[1]) != parts.document()["workers' loop"]["compiled"]


async def status(listen: str, *more: str) -> tuple[int, Any]:
    code, out, _ = await command("status", "--listen", listen, "--json", *more)
    return code, json.loads(out)


async def status_until(listen: str, wanted: int) -> Any:
    """What the command prints that ends with this status; it is started once the node says the like itself."""
    async with deadline(DEADLINE):
        while True:
            if await _is_well(listen) is (wanted == 0):
                code, found = await status(listen)
                if code == wanted:
                    return found
            await asyncio.sleep(0.02)


async def _is_well(listen: str) -> bool | None:
    """Whether the node that listens there is at its target; None where there is none."""
    try:
        found = await asyncio.to_thread(status_command.read_status, listen, "")
    except OSError:
        return None
    except ValueError:
        # It wants a token.
        return False
    return bool(found["at_target"]) and not found["error"]


async def own_error(listen: str) -> Any:
    """What a node says that is wrong, as soon as it says anything of that."""
    async with deadline(DEADLINE):
        while True:
            with contextlib.suppress(OSError):
                found = await asyncio.to_thread(status_command.read_status, listen, "")
                if found["error"]:
                    return found["error"]
            await asyncio.sleep(0.02)


async def test_a_node_from_its_token_to_its_status(control: Control, tmp_path: Path) -> None:
    state, listen = tmp_path / "state", f"127.0.0.1:{free_port()}"
    where = ("--state", str(state), "--control", control.url, "--name", "edge-1")
    token = await control.join_token()
    code, out, err = await command("join", *where, "--label", "site=tokyo", SKERRY_JOIN_TOKEN=token)
    assert (code, err) == (0, "")
    assert "Joined" in out
    assert token.split(".")[0][-43:] not in out
    assert (await control.node())["labels"] == {"site": "tokyo"}

    code, found = await status(listen, "--state", str(state))
    assert code == status_command.NOT_RUNNING
    assert (found["running"], found["node"]) == (False, "edge-1")

    await control.release(functions={"hello": await control.push("hello", version(1), {"sql": "read"})})
    logged: list[str] = []
    async with running_node(state, listen, logged):
        found = await status_until(listen, 0)
        assert found["at_target"]
        assert [f["name"] for f in found["functions"]] == ["hello"]
        code, text, _ = await command("status", "--listen", listen)
        assert code == 0
        assert f"control    {control.url} answers" in text
        assert "function   hello version 1" in text
        assert parts.document() == found["built"]
        for name in ("front", "workers' loop"):
            assert f"built      {parts.told(name, found['built'][name])}\n" in text

        await control.call("POST", "nodes/edge-1/rename", {"name": "tokyo-1"})
        async with deadline(DEADLINE):
            while (await asyncio.to_thread(node_socket.ask, state, "status"))["node"]["name"] != "tokyo-1":
                await asyncio.sleep(0.05)
        assert identity.read(state).name == "tokyo-1"

        await control.call("POST", "nodes/tokyo-1/revoke", {})
        found = await status_until(listen, 1)
        assert found["error"]["code"] == "node_revoked"
        code, text, _ = await command("status", "--listen", listen)
        assert code == 1
        assert f"control    {control.url} refuses this node's credential" in text
        assert "at target  not known while control refuses the node" in text
        assert "an operator has revoked it" in text
        assert "skerry-edge join --again" in text
        assert "next try" in text
    assert "release 1 serves: hello@1" in logged[0]
    assert "this node was edge-1, and is called tokyo-1 now" in logged[0]


async def test_a_join_that_fails_says_why_and_exits_with_1(control: Control, tmp_path: Path) -> None:
    where = ("join", "--state", str(tmp_path / "s"), "--control", control.url, "--name", "edge-1")
    code, out, err = await command(*where, "--token", "nonsense")
    assert (code, out) == (1, "")
    assert "skerry node token" in err
    code, out, _ = await command(*where, "--token", "nonsense", "--json")
    assert code == 1
    assert json.loads(out)["error"]["code"] == "token_malformed"
    code, _, err = await command(*where, "--token", "x", "--label", "nonsense")
    assert code == 2
    assert "KEY=VALUE" in err


async def test_a_node_that_has_not_joined_is_told_how_to(tmp_path: Path) -> None:
    code, _, err = await command("run", "--state", str(tmp_path))
    assert code == 1
    assert "skerry-edge join" in err


async def test_a_module_is_checked_as_control_does(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.wasm", tmp_path / "bad.wasm"
    good.write_bytes(guest("echo"))
    bad.write_bytes(b"\0asm\x0d\0\x01\0")
    code, out, _ = await command("check", str(good), "--json")
    assert code == 0
    assert json.loads(out)["ok"]
    code, out, _ = await command("check", str(good))
    assert code == 0
    assert ("  memory maximum: none\n" in out, "  sql: no\n" in out) == (True, True)
    code, out, err = await command("check", str(bad))
    assert (code, out) == (1, "")
    assert "component" in err.lower()
    assert (await command("check", str(tmp_path / "none.wasm")))[0] == 2


@pytest.mark.parametrize(("answer", "code"), [(b"SSH-2.0-OpenSSH\r\n", 1), (b"HTTP/1.1 404 x\r\n\r\nhi", 1)])
async def test_what_listens_there_and_is_no_node(answer: bytes, code: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        listen = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        found, _, err = await command("status", "--listen", listen)
    assert found == code
    assert "is no node" in err


async def test_a_release_that_ends_the_process_each_time_is_not_tried_in_a_hot_loop(
    control: Control, tmp_path: Path
) -> None:
    state, listen, faults = tmp_path / "state", f"127.0.0.1:{free_port()}", tmp_path / "faults"
    faults.mkdir()
    await join(state, control.url, await control.join_token(), "edge-1", {})
    await control.release(functions={"hello": await control.push("hello", version(1), {"sql": "read"})})
    run = ("run", "--state", str(state), "--listen", listen, "--workers", "1")
    for _ in range(3):
        (faults / "edge.sync.compile.before").write_text("kill")
        process = await start(*run, SKERRY_FAULTS=str(faults))
        async with deadline(DEADLINE):
            await process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert (await control.node())["failures"] == 0
    async with running_node(state, listen):
        # Both say so for some seconds, until it is tried again: a command would take too many of them to start.
        seen, found = await asyncio.gather(control.until(lambda n: n["failures"] == 1), own_error(listen))
        assert seen["error"]["code"] == "node_crashed"
        assert found["code"] == "node_crashed"
        # When its time has come it is tried again, and nothing ends the process now.
        found = await status_until(listen, 0)
        assert found["at_target"]
        assert found["error"] is None
    assert not (state / "outbox" / "attempt.json").exists()


async def test_the_status_of_a_node_with_a_token_needs_it_and_takes_it_from_a_file(
    control: Control, tmp_path: Path
) -> None:
    state, listen, file = tmp_path / "state", f"127.0.0.1:{free_port()}", tmp_path / "token"
    file.write_text("a long and random secret\n")
    await join(state, control.url, await control.join_token(), "edge-1", {})
    async with running_node(state, listen, SKERRY_EDGE_TOKEN_FILE=str(file)):
        await status_until(listen, 1)  # it answers, but not without the token
        code, _, err = await command("status", "--listen", listen)
        assert code == 1
        assert "token" in err
        async with deadline(DEADLINE):
            while (await command("status", "--listen", listen, SKERRY_EDGE_TOKEN_FILE=str(file)))[0] != 0:
                await asyncio.sleep(0.1)
        # The file is read again when it changes, and one that can't be used leaves the token in force.
        await asyncio.to_thread(file.write_text, "another long and random secret\n")
        async with deadline(DEADLINE):
            while (await command("status", "--listen", listen, SKERRY_EDGE_TOKEN_FILE=str(file)))[0] != 0:
                await asyncio.sleep(0.1)
        await asyncio.to_thread(file.write_text, "short")
        async with deadline(DEADLINE):
            while True:
                told = await command("status", "--listen", listen, SKERRY_EDGE_TOKEN="another long and random secret")
                if told[0] == 1 and "less than 16 characters" in told[1]:
                    break
                await asyncio.sleep(0.1)
    code, _, err = await command("status", "--listen", listen, SKERRY_EDGE_TOKEN_FILE=str(tmp_path / "none"))
    assert code == 2
    assert "SKERRY_EDGE_TOKEN_FILE" in err


async def test_the_status_of_a_state_directory_is_that_of_its_own_node(control: Control, tmp_path: Path) -> None:
    one, other, listen = tmp_path / "one", tmp_path / "other", f"127.0.0.1:{free_port()}"
    # A longer path than the address of a socket may have.
    one = one / ("x" * 120)
    for state, name in ((one, "edge-1"), (other, "edge-2")):
        await join(state, control.url, await control.join_token(), name, {})
    async with running_node(other, listen):
        await status_until(listen, 0)
        # What answers at the address that the command would ask without a state directory is another node.
        code, found = await status(listen, "--state", str(one))
        assert (code, found["running"], found["node"]) == (status_command.NOT_RUNNING, False, "edge-1")
        assert str(one) in found["error"]["message"]
        code, found = await status(listen, "--state", str(other))
        assert (code, found["node"]["name"]) == (0, "edge-2")
        async with running_node(one, f"127.0.0.1:{free_port()}", SKERRY_EDGE_TOKEN="a long and random secret"):
            async with deadline(DEADLINE):
                while not (found := (await status(listen, "--state", str(one)))[1]).get("running"):
                    await asyncio.sleep(0.1)
            assert found["node"]["name"] == "edge-1"


async def test_a_nodes_settings_are_those_that_it_runs_with(control: Control, tmp_path: Path) -> None:
    state, listen, file = tmp_path / "state", f"127.0.0.1:{free_port()}", tmp_path / "token"
    file.write_text("a long and random secret\n")
    await join(state, control.url, await control.join_token(), "edge-1", {})

    async def shown(**environment: str) -> tuple[bool, dict[str, tuple[str, str]]]:
        code, out, _ = await command("settings", "--state", str(state), "--json", **environment)
        assert (code, "random secret" in out) == (0, False)
        found = json.loads(out)
        return found["running"], {s["name"]: (s["value"], s["origin"]) for s in found["settings"]}

    given = {
        "SKERRY_EDGE_LOG": "json",
        "SKERRY_EDGE_HOLD": "1",
        "SKERRY_EDGE_BODY_LIMIT": "5000",
        "SKERRY_EDGE_TOKEN_FILE": str(file),
    }
    running, found = await shown(**given)
    assert (running, found["SKERRY_EDGE_BODY_LIMIT"]) == (False, ("5000", "environment"))
    process = await start("run", "--state", str(state), "--listen", listen, "--workers", "1", **given)
    try:
        async with deadline(DEADLINE):
            while (await command("status", "--state", str(state)))[0] == status_command.NOT_RUNNING:
                await asyncio.sleep(0.1)
            while True:
                with contextlib.suppress(json.JSONDecodeError, AssertionError):
                    running, found = await shown()
                    break
    finally:
        process.send_signal(signal.SIGTERM)
        async with deadline(DEADLINE):
            _, log = await process.communicate()
    # This command has another environment than the node.
    assert running
    assert found["SKERRY_EDGE_LISTEN"] == (listen, "flag")
    assert found["SKERRY_EDGE_BODY_LIMIT"] == ("5000", "environment")
    assert found["SKERRY_EDGE_TOKEN"] == ("(set, and not shown)", "file")
    assert found["SKERRY_EDGE_TOKEN_FILE"] == (str(file), "environment")
    assert found["SKERRY_EDGE_DEPTH"] == ("8", "default")
    assert "SKERRY_EDGE_HOLD is none of Skerry's" in log.decode()
    [first] = [json.loads(line) for line in log.decode().splitlines() if "this is skerry-edge" in line]
    assert first["node"] == "edge-1"


async def test_a_misspelt_variable_is_warned_of_and_changes_no_answer(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    code, out, err = await command("settings", "--state", state, "--json", SKERRY_EDGE_LISTN="x")
    assert (code, json.loads(out)["running"]) == (0, False)
    assert "is SKERRY_EDGE_LISTEN meant?" in err


async def test_a_state_directory_that_is_in_use_and_does_not_answer_is_said_to_be(tmp_path: Path) -> None:
    with State(tmp_path / "state", 0.0):
        code, out, _ = await command("status", "--state", str(tmp_path / "state"), "--json")
        found = json.loads(out)
        assert (code, found["error"]["code"]) == (1, "status_unavailable")
        assert str(os.getpid()) in found["error"]["message"]
    code, out, _ = await command("status", "--state", str(tmp_path / "state"), "--json")
    assert (code, json.loads(out)["error"]["code"]) == (status_command.NOT_RUNNING, "not_running")


@pytest.mark.parametrize(
    ("function", "notes"),
    [
        ({"calls": {"ok": 7, "client_gone": 1}, "denied": {}}, ""),
        ({"calls": {"ok": 7, "guest_trap": 2, "time_limit": 1}}, " (of 10 calls: guest_trap 2, time_limit 1)"),
        ({"denied": {"sql": 3}}, " (denied: sql 3)"),
        ({"runs": True, "compiled": True}, ""),
        ({"runs": True, "compiled": False}, " (interpreted, until it is compiled)"),
        ({"runs": False, "compiled": False}, " (can't be called: its code isn't here)"),
        ({"error": {"code": "secret_missing", "message": "No."}}, " (can't be called: No.)"),
        (
            {"breaker": {"state": "open", "seconds_left": 3.8}},
            " (cut off for 4 s: its calls ended their processes)",
        ),
        (
            {"breaker": {"state": "open", "seconds_left": 0.0}},
            " (cut off until its next call ends well: its calls ended their processes)",
        ),
    ],
)
def test_the_status_says_what_is_wrong_with_a_function(function: dict[str, Any], notes: str) -> None:
    text = status_command.render({"functions": [{"name": "orders", "version": 3, **function}]})
    assert text.splitlines()[-1] == f"function   orders version 3{notes}"


def test_the_status_says_what_the_fence_lacks() -> None:
    assert "workers lack of their fence: landlock" in status_command.render({"workers": {"unfenced": ["landlock"]}})


@pytest.mark.parametrize("listen", ["localhost:abc", "localhost", "127.0.0.1:99999", ""])
def test_an_address_that_is_none_is_said_to_be(listen: str) -> None:
    with pytest.raises(EdgeSettingsError, match="HOST:PORT"):
        status_command.read_status(listen, "")


def test_a_database_that_takes_no_writes_is_told() -> None:
    found = {"wal_bytes": 300 << 20, "wal_limit": 256 << 20, "writes": "open", "checkpoint_error": None}
    assert "database" not in status_command.render({"database": found})
    told = status_command.render({"database": {**found, "writes": "refused"}})
    assert "log has 300 MiB of 256; calls that may write are refused" in told
    assert "no checkpoint is made: EIO" in status_command.render({"database": {**found, "checkpoint_error": "EIO"}})
