"""``python -m bench [NAME…]``: run the named benchmarks, or all, one by one, and report which reached their bar.

Each is a module in this folder, run in a separate process, which ends with `bench.result.write`. The status is 0 if all
of them completed and reached their bar. A number after a name is passed to that benchmark: ``soak 10``. Built parts run
as built, and a line says which parts aren't.
"""

import subprocess
import sys
import time
from pathlib import Path

from bench import result
from edge_runtime.built import parts

FOLDER = Path(__file__).parent
NO_BENCHMARKS = {"__main__", "__init__", "result"}
ONLY_NAMED = {"soak"}
"""Benchmarks that run only when named, because they take long."""


def main(arguments: list[str]) -> int:
    given: dict[str, list[str]] = {}
    for argument in arguments:
        if argument.isdigit() and given:
            given[list(given)[-1]].append(argument)
        else:
            given[argument] = []
    names = list(given)
    known = sorted({path.stem for path in FOLDER.glob("[a-z]*.py")} - NO_BENCHMARKS)
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    missing = [parts.told(name, part) for name, part in parts.document().items() if not part["compiled"]]
    if missing:
        print(f"bench: {'; '.join(missing)}", flush=True)
    lines = []
    failed = False
    for name in names or [name for name in known if name not in ONLY_NAMED]:
        result.path(name).unlink(missing_ok=True)
        command = [sys.executable, "-m", f"bench.{name}", *given.get(name, [])]
        began = time.monotonic()
        status = subprocess.run(command, cwd=FOLDER.parent, check=False).returncode
        took = f"  {time.monotonic() - began:.0f} s"
        found = result.read(name) if status == 0 else None
        failed = failed or found is None or not found["passed"]
        lines.append((f"{name:<12} didn't finish (status {status})" if found is None else result.line(found)) + took)
    print("\n" + "\n".join(lines))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
