"""`check probes`: functions of others run at control, so they run behind the fence of a worker."""

import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

from tests.guests.version import version

ROOT = Path(__file__).parents[4]
LOOPS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


def filters(pid: int) -> set[str]:
    """How the children of a process have their system calls filtered: `2` by a list."""
    found = set()
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        status = Path(f"/proc/{child}/status").read_text()
        found.add(status.partition("\nSeccomp:")[2].split(maxsplit=1)[0])
    return found


@pytest.mark.usefixtures("programs_by_exec")
def test_a_probe_runs_behind_the_fence(tmp_path: Path) -> None:
    file = tmp_path / "loops.wasm"
    file.write_bytes(version(1, LOOPS))
    manifest = {"probe": {"path": "/"}, "sql": "read"}
    probed = {"name": "loops", "version": 1, "manifest": manifest, "file": str(file)}
    asked = orjson.dumps({"change": {"sql": "CREATE TABLE t (x)"}, "probes": [probed]})
    with subprocess.Popen(
        [sys.executable, "-m", "edge_runtime.oneshot.check", "probes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        assert process.stdin is not None
        process.stdin.write(asked)
        process.stdin.close()
        seen = set[str]()
        while process.poll() is None and "2" not in seen:
            try:
                seen |= filters(process.pid)
            except (FileNotFoundError, ProcessLookupError):
                # It has just ended, before its file was opened or read.
                continue
            time.sleep(0.01)
        process.kill()
    assert "2" in seen
