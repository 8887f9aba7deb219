"""`skerry-edge caller`: the callers in a node's file, which the running node reloads on its own."""

import contextlib
import fcntl
import hashlib
import os
import secrets
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from control.protocol import wire
from control.protocol.command_line import CommandGroup
from edge_runtime import files
from edge_runtime.cli.support import JSON, fail, show
from edge_runtime.files import FileUnfit
from edge_runtime.web import callers_file
from edge_runtime.web.callers_file import CallerEntry

PREFIX: Final = "skc_"
"""The prefix of tokens made here, so that a leaked one is recognizable."""

NAMED: Final = 20
"""The most callers that are listed if the given one isn't in the file."""

FILE = click.option(
    "--file",
    "path",
    envvar="SKERRY_EDGE_CALLERS",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    show_envvar=True,
    help="The node's file of callers.",
)


@click.group(cls=CommandGroup, renamed={"remove": "delete"})
def caller() -> None:
    """The applications that may call this node, in the file that SKERRY_EDGE_CALLERS names."""


@caller.command()
@click.argument("name")
@FILE
@click.option("--function", "functions", multiple=True, metavar="NAME", help="That it may call; may be repeated.")
@click.option("--all-functions", is_flag=True, help="It may call every function of the node, later ones too.")
@click.option("--rate", type=float, default=0.0, help="Calls a second that it may make (default: not bounded).")
@click.option("--burst", type=int, help="Calls that it may make at once after a pause (default: as many as its rate).")
@click.option("--pages", is_flag=True, help="It may read /_skerry/status and /_skerry/metrics.")
@click.option(
    "--certificate",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="PEM file of its certificate, by which it is known in the place of a token.",
)
@JSON
def add(
    name: str,
    path: Path,
    functions: tuple[str, ...],
    all_functions: bool,
    rate: float,
    burst: int | None,
    pages: bool,
    certificate: Path | None,
    as_json: bool,
) -> None:
    """Add the caller NAME, and print its token, once: the file has its sha256 alone.

    The file is made, if it isn't there. A running node goes by it within seconds.
    """
    if functions and all_functions:
        raise click.UsageError("give --function or --all-functions")
    if not (functions or all_functions or pages):
        raise click.UsageError("say what it may: --function NAME, --all-functions, --pages")
    for word in (name, *functions):
        if not wire.NAME.fullmatch(word):
            raise click.UsageError(f"{word!r} is no name: lower case letters, digits and hyphens, 63 at most")
    # It may be NaN or infinite.
    if not 0 <= rate <= callers_file.MOST_RATE:
        raise click.UsageError(f"--rate is calls a second, {callers_file.MOST_RATE} at most")
    if burst is not None and not rate:
        raise click.UsageError("--burst needs a --rate")
    token = "" if certificate else PREFIX + secrets.token_urlsafe(32)
    try:
        shown = _fingerprint(certificate) if certificate else b""
        entry = CallerEntry(
            name,
            (callers_file.token_digest(token.encode()),) if token else (),
            (shown,) if shown else (),
            None if all_functions else frozenset(functions),
            rate,
            max(1, round(rate)) if burst is None else burst,
            pages,
        )
        with _changing(path) as text:
            entries = _parsed(text, path)
            if any(there.name == name for there in entries):
                message = f"{path} has a caller {name} already: `skerry-edge caller delete {name}` first"
                raise fail("callers_unfit", message, as_json)
            _write(path, callers_file.added(text, entry), [*entries, entry])
    except (FileUnfit, OSError) as error:
        raise fail("callers_unfit", str(error), as_json) from None
    if as_json:
        show({"name": name, "file": str(path), **({"token": token} if token else {"certificate_sha256": shown.hex()})})
    elif token:
        click.echo(f"The token of {name}, which is shown this once:", err=True)
        click.echo(token)
    else:
        click.echo(f"{name} is known by its certificate, sha256 {shown.hex()}.")


@caller.command("list")
@FILE
@JSON
def list_command(path: Path, as_json: bool) -> None:
    """List the callers of the file."""
    try:
        entries = callers_file.parse(files.read_private(path, callers_file.SIZE_LIMIT), str(path))
    except (FileUnfit, FileNotFoundError) as error:
        raise fail("callers_unfit", str(error), as_json) from None
    if as_json:
        show({"file": str(path), "callers": [_document(entry) for entry in entries]})
        return
    for entry in entries:
        by = [*["token"] * bool(entry.tokens), *["certificate"] * bool(entry.certificates)]
        may = "all functions" if entry.functions is None else ", ".join(sorted(entry.functions)) or "no function"
        rate = (
            f", {entry.rate:g} call{'' if entry.rate == 1 else 's'} a second, {entry.burst} at once"
            if entry.rate
            else ""
        )
        pages = ", the node's pages" if entry.pages else ""
        click.echo(f"{entry.name} (by {' or '.join(by)}): {may}{pages}{rate}")


@caller.command()
@click.argument("name")
@FILE
@JSON
def delete(name: str, path: Path, as_json: bool) -> None:
    """Delete the caller NAME: a running node refuses its calls within seconds."""
    try:
        with _changing(path) as text:
            entries = _parsed(text, path)
            at = next((at for at, entry in enumerate(entries) if entry.name == name), None)
            if at is None:
                there = ", ".join(entry.name for entry in entries[:NAMED]) or "none"
                more = f" and {len(entries) - NAMED} more" if len(entries) > NAMED else ""
                raise fail("caller_missing", f"{path} has no caller {name[:63]}; it has {there}{more}", as_json)
            _write(path, callers_file.without(text, at), entries[:at] + entries[at + 1 :])
    except (FileUnfit, OSError) as error:
        raise fail("callers_unfit", str(error), as_json) from None
    if as_json:
        show({"name": name, "file": str(path)})
    else:
        click.echo(f"{name} is no caller any more.")


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[str]:
    """Yield the file's text, empty if the file doesn't exist, while no other of these commands may change it.

    Raises: FileUnfit; OSError, when the folder can't be opened.
    """
    folder = os.open(path.absolute().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        text = ""
        with contextlib.suppress(FileNotFoundError):
            text = files.read_private(path, callers_file.SIZE_LIMIT).decode(errors="replace")
        yield text
    finally:
        os.close(folder)


def _parsed(text: str, path: Path) -> list[CallerEntry]:
    return callers_file.parse(text.encode(), str(path))


def _write(path: Path, text: str, wanted: list[CallerEntry]) -> None:
    """Write the file, if it parses as `wanted`. Raises: FileUnfit, when it doesn't, or when `wanted` isn't valid."""
    if _parsed(text, path) != wanted:
        raise FileUnfit(f"{path} has another form than `[[caller]]` tables, so change it by hand")
    files.write(path, text.encode())


def _fingerprint(certificate: Path) -> bytes:
    """Return the sha256 of a certificate. Raises: FileUnfit, when the file has none."""
    text = certificate.read_text(errors="replace")
    start, end = text.find(ssl.PEM_HEADER), text.find(ssl.PEM_FOOTER)
    try:
        der = ssl.PEM_cert_to_DER_cert(text[start : end + len(ssl.PEM_FOOTER)])
    except ValueError:
        raise FileUnfit(f"{certificate} has no certificate in PEM") from None
    return hashlib.sha256(der).digest()


def _document(entry: CallerEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "token": bool(entry.tokens),
        "certificate_sha256": [digest.hex() for digest in entry.certificates],
        "functions": callers_file.ALL if entry.functions is None else sorted(entry.functions),
        "rate": entry.rate or None,
        "burst": entry.burst if entry.rate else None,
        "pages": entry.pages,
    }
