"""A node with a file of callers: who may call what and how often, what the function, the log and the metrics know of
it, and what becomes of a file that changes while calls run."""

import asyncio
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.cli import status as status_command
from edge_runtime.files import FileUnfit
from edge_runtime.web import callers_file
from tests.guests.build import guest
from tests.support.edge import Node, node, until

TILL, KIOSK, PROMETHEUS, NODE = "till-token", "kiosk-token", "prometheus-token", "the-nodes-own-token"
FUNCTIONS: dict[str, Any] = {
    "echo": guest("echo"),
    "env": (guest("env"), {"route": {"methods": ["GET"], "path": "/environment/{id}"}}),
    "direct": (guest("direct"), {"abi": "direct"}),
    "plugin": (guest("plugin"), {"abi": "extism", "entry": "config"}),
    "trap": guest("trap"),
}


def entry(name: str, token: str, more: str) -> str:
    digest = callers_file.token_digest(token.encode()).hex()
    return f'[[caller]]\nname = "{name}"\ntoken_sha256 = "{digest}"\n{more}\n'


CALLERS = (
    entry("till", TILL, 'functions = "all"')
    + entry("kiosk", KIOSK, 'functions = ["echo"]\nrate = 0.001\nburst = 3')
    + entry("prometheus", PROMETHEUS, "functions = []\npages = true")
)


def write(path: Path, text: str, mode: int = 0o600) -> None:
    """Put a file into its place, in one step."""
    made = path.with_name("made")
    made.write_text(text)
    made.chmod(mode)
    made.replace(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "callers.toml"
    write(path, CALLERS)
    return path


async def ask(edge: Node, path: str, token: str = "", **headers: str) -> tuple[int, str, Mapping[str, str]]:
    """Status, text (of a refusal its code) and headers."""
    sent = {**headers, **({"authorization": f"Bearer {token}"} if token else {})}
    async with edge.http.get(path, headers=sent) as answer:
        refused = answer.content_type == "application/problem+json"
        text = (await answer.json(content_type=None))["code"] if refused else await answer.text()
        return answer.status, text, answer.headers


async def code(edge: Node, path: str, token: str = "") -> tuple[int, str]:
    status, text, _ = await ask(edge, path, token)
    return status, "" if status == 200 else text


async def test_each_call_is_one_of_the_callers(tmp_path: Path, file: Path) -> None:
    async with node(tmp_path / "state", callers=file) as edge:
        await edge.release(FUNCTIONS)
        assert await code(edge, "/functions/echo") == (401, "caller_unknown")
        assert await code(edge, "/functions/echo", "another") == (401, "caller_unknown")
        assert await code(edge, "/functions/echo", "") == (401, "caller_unknown")
        assert await code(edge, "/functions/none") == (401, "caller_unknown")
        assert await code(edge, "/functions/echo", TILL) == (200, "")
        assert await code(edge, "/functions/none", TILL) == (404, "function_unknown")
        assert await code(edge, "/functions/echo", KIOSK) == (200, "")
        # Also where the function is called by its route.
        assert await code(edge, "/environment/7", TILL) == (200, "")
        assert await code(edge, "/environment/7", KIOSK) == (403, "caller_forbidden")
        # It isn't told which functions there are.
        assert await code(edge, "/functions/none", PROMETHEUS) == (403, "caller_forbidden")
        assert await code(edge, "/functions/env", PROMETHEUS) == (403, "caller_forbidden")
        # The node's own pages.
        assert await code(edge, "/_skerry/healthz") == (200, "")
        assert await code(edge, "/_skerry/status") == (401, "caller_unknown")
        assert await code(edge, "/_skerry/status", TILL) == (403, "caller_forbidden")
        assert await code(edge, "/_skerry/status", PROMETHEUS) == (200, "")
        _, metrics, _ = await ask(edge, "/_skerry/metrics", PROMETHEUS)
        for line in (
            'skerry_edge_caller_calls_total{caller="till",function="echo",outcome="ok"} 1.0',
            'skerry_edge_caller_calls_total{caller="till",function="",outcome="function_unknown"} 1.0',
            'skerry_edge_caller_calls_total{caller="kiosk",function="",outcome="caller_forbidden"} 1.0',
            'skerry_edge_caller_calls_total{caller="",function="",outcome="caller_unknown"} 5.0',
        ):
            assert line in metrics.splitlines()
        for token in ("", TILL):
            with pytest.raises(
                ValueError, match="Here, SKERRY_EDGE_TOKEN must have the node's token, or that of a caller"
            ):
                await asyncio.to_thread(status_command.read_status, f"127.0.0.1:{edge.front.port}", token)


async def test_the_nodes_token_beside_a_file_is_for_its_pages_alone(tmp_path: Path, file: Path) -> None:
    async with node(tmp_path / "state", callers=file, token=NODE) as edge:
        await edge.release(FUNCTIONS)
        assert await code(edge, "/_skerry/status", NODE) == (200, "")
        assert await code(edge, "/functions/echo", NODE) == (401, "caller_unknown")
        assert await code(edge, "/functions/echo", TILL) == (200, "")
        assert await code(edge, "/_skerry/status", TILL) == (403, "caller_forbidden")


async def test_a_function_knows_its_caller_and_no_client_can_say_another(
    tmp_path: Path, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forged = {"Remote-User": "root", "REMOTE_USER": "root", "Auth-Type": "Basic", "X-Remote-User": "root"}
    async with node(tmp_path / "state", callers=file) as edge:
        await edge.release(FUNCTIONS)
        for path in ("/functions/env", "/environment/7"):
            _, text, _ = await ask(edge, path, TILL, **forged)
            told = [line for line in text.splitlines() if line.startswith(("REMOTE_USER=", "AUTH_TYPE="))]
            assert told == ["AUTH_TYPE=Bearer", "REMOTE_USER=till"]
            assert TILL not in text
        assert (await ask(edge, "/functions/direct/env?name=REMOTE_USER", TILL, **forged))[1] == "till"
        assert (await ask(edge, "/functions/direct/env?name=AUTH_TYPE", TILL, **forged))[1] == "Bearer"
        headers = {**forged, "authorization": f"Bearer {TILL}"}
        assert (await edge.call("plugin/config", b"REMOTE_USER", headers=headers))[2] == b"till"
        # Another caller's call with the same request isn't told the first one's name.
        write(file, CALLERS.replace('"till"', '"other"'))
        await until(lambda: edge.front.callers is not None and "other" in edge.front.callers.status()["names"])
        assert (await ask(edge, "/functions/direct/env?name=REMOTE_USER", TILL, **forged))[1] == "other"
        assert (await edge.call("plugin/config", b"REMOTE_USER", headers=headers))[2] == b"other"
        # The lines that its calls write, and those about its calls, name it.
        caplog.set_level(logging.INFO)
        assert await code(edge, "/functions/direct/log", TILL) == (200, "")
        assert await code(edge, "/functions/trap", TILL) == (502, "guest_trap")
        lines = {re.sub(r" \w{8}-\d+:", ":", record.getMessage()): record for record in caplog.records}
        assert lines["direct 1 (other): to stderr"].caller == "other"  # type: ignore[attr-defined]
        assert any(line.startswith("trap 1 (other): ") and line.endswith("[guest_trap]") for line in lines)
    async with node(tmp_path / "other") as edge:
        await edge.release(FUNCTIONS)
        _, text, _ = await ask(edge, "/functions/env", **forged)
        assert {"REMOTE_USER=", "AUTH_TYPE="} < set(text.splitlines())
        assert (await ask(edge, "/functions/direct/env?name=REMOTE_USER", **forged))[0] == 404
        assert (await edge.call("plugin/config", b"REMOTE_USER", headers=forged))[2] == b"none"


async def test_a_caller_over_its_rate_is_told_when_to_ask_again(tmp_path: Path, file: Path) -> None:
    write(file, CALLERS.replace("0.001", "0.5"))
    async with node(tmp_path / "state", callers=file) as edge:
        await edge.release(FUNCTIONS)
        answers = [await ask(edge, "/functions/echo", KIOSK) for _ in range(4)]
        assert [status for status, _, _ in answers][:3] == [200, 200, 200]
        # A busy machine may need two seconds for three calls.
        while answers[-1][0] == 200:
            answers.append(await ask(edge, "/functions/echo", KIOSK))
        status, text, headers = answers[-1]
        assert (status, text) == (429, "rate_exceeded")
        assert headers["retry-after"] in ("1", "2")
        # Others have their own, and what isn't bounded stays so.
        assert [await code(edge, "/functions/echo", TILL) for _ in range(10)] == [(200, "")] * 10
        await asyncio.sleep(int(headers["retry-after"]))
        assert await code(edge, "/functions/echo", KIOSK) == (200, "")


async def test_a_file_that_changes_is_in_force_while_calls_run(tmp_path: Path, file: Path) -> None:
    async with node(tmp_path / "state", callers=file) as edge:
        await edge.release(FUNCTIONS)
        callers = edge.front.callers
        assert callers is not None
        seen: list[tuple[int, str]] = []
        stop = False

        async def client() -> None:
            while not stop:
                seen.append(await code(edge, "/functions/echo", TILL))
                await asyncio.sleep(0.01)

        running = [asyncio.create_task(client()) for _ in range(4)]
        try:
            for _ in range(3):
                assert await code(edge, "/functions/echo", KIOSK) == (200, "")
            assert await code(edge, "/functions/echo", KIOSK) == (429, "rate_exceeded")
            # One is added; what another one has used of its rate isn't given back.
            write(file, CALLERS + entry("new", "new-token", 'functions = ["env"]'))
            await until(lambda: len(list(callers)) == 4)
            assert await code(edge, "/functions/env", "new-token") == (200, "")
            assert await code(edge, "/functions/echo", KIOSK) == (429, "rate_exceeded")
            # Files that can't be used leave it as it is, and are told of.
            for text, mode, said in (
                ("[[caller]]\nname = 7\n", 0o600, "caller 1: name"),
                (CALLERS, 0o644, "chmod 600"),
                ("[[caller", 0o600, "no valid TOML"),
            ):
                write(file, text, mode)
                await until(lambda said=said: said in callers.error)
                _, told, _ = await ask(edge, "/_skerry/status", PROMETHEUS)
                assert said in told
                assert await code(edge, "/functions/env", "new-token") == (200, "")
            file.unlink()
            await until(lambda: "isn't there" in callers.error)
            assert await code(edge, "/functions/env", "new-token") == (200, "")
            write(file, CALLERS)
            await until(lambda: not callers.error)
            assert await code(edge, "/functions/env", "new-token") == (401, "caller_unknown")
            assert set(seen) == {(200, "")}
            write(file, CALLERS.replace(callers_file.token_digest(TILL.encode()).hex(), "0" * 64))
            await until(lambda: seen[-1] == (401, "caller_unknown"))
        finally:
            stop = True
            await asyncio.gather(*running)


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [("[[caller]]", 0o600, "caller 1: name"), ("", 0o640, "chmod 600"), ("", 0, "a symbolic link")],
)
async def test_a_node_doesnt_start_on_a_bad_file(tmp_path: Path, text: str, mode: int, said: str) -> None:
    file = tmp_path / "callers.toml"
    if mode:
        write(file, text, mode)
    else:
        file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ExceptionGroup) as failed:
        async with node(tmp_path / "state", callers=file):
            pass
    (error,) = failed.value.exceptions
    assert isinstance(error, FileUnfit)
    assert said in str(error)
