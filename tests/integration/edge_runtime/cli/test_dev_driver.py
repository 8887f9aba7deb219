"""What `skerry-edge dev` serves of a project."""

import asyncio
import logging
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from edge_runtime import front
from edge_runtime.cli import dev
from edge_runtime.cli.dev import Driver, WantedFunction
from edge_runtime.settings import EdgeSettings
from tests.guests.build import guest
from tests.support.deadlines import deadline
from tests.support.edge import BACKGROUND
from tests.support.environment import without_settings
from tests.support.snapshots import snapshot


@pytest.mark.parametrize(
    ("said", "methods"),
    [({"sql": "write"}, ("GET", "HEAD")), ({"sql": "write", "read_only_methods": []}, None), ({"sql": "read"}, None)],
)
def test_get_and_head_only_read_as_after_a_push(tmp_path: Path, said: dict[str, Any], methods: Any) -> None:
    (tmp_path / "artifacts").mkdir()
    module = tmp_path / "f.wasm"
    module.write_bytes(guest("echo"))
    driver = Driver(tmp_path, None, None)  # type: ignore[arg-type]
    served, _ = driver._function(WantedFunction("f", str(module), said), 1)
    assert served.manifest.read_only_methods == methods


def test_what_functions_log_and_where_they_trapped_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    logs = [logging.getLogger(name) for name in ("skerry.guest", "skerry.traps")]
    before = [(log.handlers[:], log.level, log.propagate) for log in logs]

    def front_run(*_: object) -> None:
        logs[0].info("f 1: hello")
        logs[1].warning("f 1: it trapped in function 2 (run) of its module")

    monkeypatch.setattr(front, "run", front_run)
    try:
        dev.run(EdgeSettings(state=tmp_path), fresh=False)
    finally:
        for log, (handlers, level, propagate) in zip(logs, before, strict=True):
            log.handlers[:], log.propagate = handlers, propagate
            log.setLevel(level)
        logging.getLogger("skerry.calls").setLevel(logging.NOTSET)
    told = [orjson.loads(line)["text"] for line in capfdbinary.readouterr().out.splitlines()]
    assert told == ["f 1: hello", "warning: f 1: it trapped in function 2 (run) of its module"]


async def test_an_engine_is_compiled_for_the_first_edge_alone(tmp_path: Path) -> None:
    module = tmp_path / "f.wasm"
    module.write_bytes(snapshot(guest("snapshot_sum"), 9, [(5000, bytes(range(256)) * 1200)]))
    wanted = orjson.dumps({"functions": [{"name": "f", "module": str(module)}]}) + b"\n"
    told = []
    for run in ("first", "second"):
        edge = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "edge_runtime.cli.main"),
            *("dev", "--state", str(tmp_path / run), "--listen", "127.0.0.1:0"),
            env={**without_settings(), "XDG_CACHE_HOME": str(tmp_path / "cache")},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        async with deadline(BACKGROUND):
            out, _ = await edge.communicate(wanted)
        told.append([orjson.loads(line)["event"] for line in out.splitlines()])
    assert told == [["ready", "compiling", "serving"], ["ready", "serving"]]
