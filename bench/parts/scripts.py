"""Modules of functions in JavaScript, for benchmarks."""

import tempfile
from pathlib import Path

from control.cli.project import script_modules


async def module(script: str) -> bytes:
    """Return the module of a script that is one ES module."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, made = folder / "main.js", folder / "function.wasm"
        source.write_text(script)
        await script_modules.make(source, made, {"sql": "read"}, project=folder)
        return made.read_bytes()
