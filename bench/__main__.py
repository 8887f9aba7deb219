"""``python -m bench [NAME…]``: run the benchmarks named, or all, one after the other, and say which reached their bar.

Each is a module of this folder, run in a process of its own, which ends with `bench.result.write`. The status is 0
when each ran to its end and reached its bar.
"""

import subprocess
import sys
from pathlib import Path

from bench import result

FOLDER = Path(__file__).parent
NO_BENCHMARKS = {"__main__", "__init__", "result"}


def main(names: list[str]) -> int:
    known = sorted({path.stem for path in FOLDER.glob("[a-z]*.py")} - NO_BENCHMARKS)
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    lines = []
    failed = False
    for name in names or known:
        result.path(name).unlink(missing_ok=True)
        status = subprocess.run([sys.executable, "-m", f"bench.{name}"], cwd=FOLDER.parent, check=False).returncode
        found = result.read(name) if status == 0 else None
        failed = failed or found is None or not found["passed"]
        lines.append(f"{name:<12} didn't finish (status {status})" if found is None else result.line(found))
    print("\n" + "\n".join(lines))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
