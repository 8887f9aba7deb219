"""Makes the `…_h.py` beside each C header of the edge runtime: cffi's declarations, ready to be imported.

Headers that include others are only for C. Parsing the headers at each start would take 40 ms and 3 MB in each process
that uses them.
"""

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cffi

ROOT = Path(__file__).resolve().parents[1]
HEAD = '''\
"""cffi's declarations of {header}, from which `just bindings` makes this module."""

# mypy: ignore-errors
'''


def modules() -> Iterator[tuple[Path, str]]:
    """Yield each module's path and its content."""
    for header in sorted((ROOT / "edge_runtime").rglob("*.h")):
        if "#include" in header.read_text():
            continue
        module = header.with_name(f"{header.stem}_h.py")
        builder = cffi.FFI()
        builder.set_source(".".join(module.relative_to(ROOT).with_suffix("").parts), None)
        builder.cdef(header.read_text())
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder, "made.py")
            with contextlib.redirect_stdout(io.StringIO()):
                builder.emit_python_code(str(made))
            code = made.read_text().removeprefix("# auto-generated file\n")
        yield module, HEAD.format(header=header.name) + code


if __name__ == "__main__":
    for path, text in modules():
        path.write_text(text)
