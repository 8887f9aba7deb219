"""The system user that PostgreSQL runs as where we are root: several processes that need it at once make one user."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from control.local import postgres
from tests.support.deadlines import scaled

PROCESSES = 6

CHILD = textwrap.dedent("""
    import sys
    from control.local import postgres
    print("ready", flush=True)
    sys.stdin.readline()
    print(postgres._system_user()[0], flush=True)
    """)


def own_etc(folder: Path) -> list[str]:
    """The beginning of a command that runs in a mount namespace whose /etc is a copy without the user."""
    etc, state = folder / "etc", folder / "state"
    state.mkdir()
    etc.mkdir()
    for name in ("passwd", "shadow", "group", "gshadow", "login.defs", "nsswitch.conf", "pam.d", "default"):
        path = Path("/etc", name)
        if path.is_dir():
            shutil.copytree(path, etc / name, symlinks=True)
        elif path.exists():
            shutil.copy(path, etc / name)
    for name in ("passwd", "shadow", "group", "gshadow"):
        lines = (etc / name).read_text().splitlines(keepends=True)
        (etc / name).write_text("".join(line for line in lines if not line.startswith(f"{postgres.USER}:")))
    script = 'mkdir -p "$2" && mount --bind "$0" /etc && mount --bind "$1" "$2" && shift 2 && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, str(etc), str(state), str(postgres.ROOT_FOLDER)]


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's PostgreSQL runs as that user")
def test_processes_that_need_the_user_at_once_make_one(tmp_path: Path) -> None:
    inside = own_etc(tmp_path)
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine lets nobody make a mount namespace")
    # One namespace for all: the first process of it starts the others.
    start = textwrap.dedent(f"""
        import subprocess, sys
        pipe = subprocess.PIPE
        made = [
            subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=pipe, stdout=pipe, text=True)
            for _ in range({PROCESSES})
        ]
        for one in made:
            assert one.stdout.readline() == "ready\\n"
        for one in made:
            one.stdin.write("\\n")
            one.stdin.flush()
        print(*(one.stdout.read().strip() or "failed" for one in made))
        assert all(one.wait() == 0 for one in made)
    """)
    done = subprocess.run(
        [*inside, sys.executable, "-c", start, CHILD], capture_output=True, text=True, timeout=scaled(60)
    )
    assert done.returncode == 0, done.stderr
    given = done.stdout.split()
    entries = [line.split(":") for line in (tmp_path / "etc" / "passwd").read_text().splitlines()]
    assert given == [uid for name, _, uid, *_ in entries if name == postgres.USER] * PROCESSES
