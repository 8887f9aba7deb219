"""Where the commands find a control: the session tokens that `skerry login` stores for each control in the user's
folder, readable only by this user; and the folder of `skerry up`."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson


@dataclass(frozen=True)
class Login:
    """A session at a control."""

    url: str
    token: str
    operator: str
    ends_at: str
    """When it ends at the latest, in RFC 3339 format."""
    ca: str
    """The file of control's CA; '' for the system's CAs."""


def file() -> Path:
    """Return the file of logins, in XDG_CONFIG_HOME or .config in the home folder (/ for a user without one)."""
    try:
        home = Path.home()
    except RuntimeError:
        home = Path("/")
    return Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "skerry" / "logins.json"


def read() -> list[Login]:
    """Return all logins, the newest last.

    Raises: OSError, when the file can't be read; ValueError, when it isn't a file of logins.
    """
    try:
        kept = orjson.loads(file().read_bytes())
    except FileNotFoundError:
        return []
    try:
        return [Login(**one) for one in kept]
    except TypeError as error:
        raise ValueError(f"{file()} isn't what `skerry login` writes") from error


def find(url: str = "") -> Login | None:
    """Return the login at a control, or the newest one; None if there is none. Raises: what `read` raises."""
    found = [one for one in read() if url in ("", one.url)]
    return found[-1] if found else None


def keep(login: Login) -> None:
    """Store a login, replacing one at the same control. Raises: what `read` raises; OSError, when writing fails."""
    with _alone():
        _write([*(one for one in read() if one.url != login.url), login])


def forget(url: str) -> None:
    """Delete the login at a control. Raises: what `read` raises; OSError, when the file can't be written."""
    with _alone():
        _write([one for one in read() if one.url != url])


def local_home(file: str) -> Path:
    """Return the folder in which `skerry up` left `file` for the commands.

    That is SKERRY_HOME, or the nearest .skerry that has the file, from the current folder upward; without one, .skerry
    in the current folder. A parent folder may belong to anybody, and its file would name the control that gets code and
    a token, so only a file that this user owns counts there.
    """
    if named := os.environ.get("SKERRY_HOME"):
        return Path(named).absolute()
    here = Path.cwd()
    for folder in (here, *here.parents):
        home = folder / ".skerry"
        with contextlib.suppress(OSError):
            if (home / file).stat().st_uid == os.geteuid() or folder == here:
                return home
    return here / ".skerry"


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep other commands from changing the file until the block ends: they would write back outdated content."""
    file().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with file().with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(logins: list[Login]) -> None:
    # Imported here: most commands only read.
    from control.local.process import write_private

    write_private(file(), orjson.dumps([asdict(one) for one in logins], option=orjson.OPT_INDENT_2).decode())
