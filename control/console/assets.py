"""The console's static files: styles, scripts, icon. Their URLs include a digest, so browsers cache them forever."""

import gzip
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from control.api.operations import Reply
from control.problems import ProblemError

FOLDER = Path(__file__).parent / "static"
TYPES = {
    "console.css": b"text/css; charset=utf-8",
    "console.js": b"text/javascript; charset=utf-8",
    "htmx.min.js": b"text/javascript; charset=utf-8",
    "icon.svg": b"image/svg+xml",
}
"""The files that are served, and their media types."""
FOR_GOOD = b"public, max-age=31536000, immutable"


@dataclass(frozen=True)
class Asset:
    """A static file of the console."""

    address: str
    type: bytes
    body: bytes
    zipped: bytes


@cache
def assets() -> dict[str, Asset]:
    """Return all files, by name. They are read once: a replica serves what it was started with."""
    return {name: _asset(name, type) for name, type in TYPES.items()}


def address(name: str) -> str:
    """Return the URL of a file."""
    return assets()[name].address


def answer(digest: str, name: str, *, takes_gzip: bool) -> Reply:
    """Return the file at a URL. Raises: ProblemError no_such_path, when there is none, or its digest differs."""
    found = assets().get(name)
    if found is None or found.address != _address(digest, name):
        raise ProblemError("no_such_path", f"the console has no file {name} with this digest")
    body = found.zipped if takes_gzip else found.body
    headers = [
        (b"content-type", found.type),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", FOR_GOOD),
        (b"vary", b"accept-encoding"),
    ]
    if takes_gzip:
        headers.append((b"content-encoding", b"gzip"))
    return Reply(200, body, tuple(headers))


def _asset(name: str, type: bytes) -> Asset:
    body = (FOLDER / name).read_bytes()
    return Asset(_address(sha256(body).hexdigest()[:16], name), type, body, gzip.compress(body, mtime=0))


def _address(digest: str, name: str) -> str:
    return f"/static/{digest}/{name}"
