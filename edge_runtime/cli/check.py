"""`skerry-edge check`: whether a node could run a module."""

import json
import subprocess
import sys
from pathlib import Path

import click

from edge_runtime.cli.support import JSON, fail, show

CHECK_TIMEOUT = 120.0


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@JSON
def check(file: Path, as_json: bool) -> None:
    """Say whether a node could run this WASM module, and by which ABI; or why not.

    Exits 0 if it could, 1 if not. Control asks the same question at each upload.
    """
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-P", "-m", "edge_runtime.oneshot.check", "module", str(file)],
        capture_output=True,
        timeout=CHECK_TIMEOUT,
        check=False,
    )
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
        raise fail("check_crashed", f"the check of {file} ended with status {done.returncode}: {last[0]}", as_json)
    answer = json.loads(done.stdout)
    if not answer.pop("ok"):
        raise fail(answer["code"], answer["message"], as_json)
    if as_json:
        show({"ok": True, **answer})
    else:
        click.echo(f"{file}: a node can run it")
        for key, value in answer.items():
            told = {"None": "none", "True": "yes", "False": "no"}.get(str(value), value)
            click.echo(f"  {key.replace('_', ' ')}: {told}")
