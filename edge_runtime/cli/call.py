"""`skerry-edge call`: runs one call of a module, without a server."""

import http
import json
import os
import signal
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import orjson

from control.manifest_fields import Manifest, completed, unfit
from edge_runtime.cli.node import JSON, fail, show
from edge_runtime.guests.invocation import Request, SingleCallResult
from edge_runtime.ipc import progress_page
from edge_runtime.ipc.log_levels import shown
from edge_runtime.oneshot.scratch_database import tidy
from edge_runtime.redaction import redact

START_LIMIT: Final = 300.0
"""Seconds that the check and the compiler may take together."""
AGAIN: Final = 20.0
"""Seconds that a call which trapped has when it is made again on the interpreter, which is slower."""
GRACE: Final = 1.0
"""Seconds beyond the call's own time limit until the process is killed."""


def _pairs(separator: str) -> Any:
    def read(_: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, str]]:
        found = []
        for value in values:
            name, there, text = value.partition(separator)
            if not there or not name:
                raise click.BadParameter(f"{value!r} isn't NAME{separator}VALUE", param=parameter)
            found.append((name, text.strip() if separator == ":" else text))
        return found

    return read


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--method", default=None, help="GET, or POST where there is a body.")
@click.option("--path", default="", help="Below the function's name: /orders/7.")
@click.option("--query", default="", help="Percent-encoded, without the question mark.")
@click.option("--header", "headers", multiple=True, callback=_pairs(":"), metavar="NAME:VALUE", help="May be repeated.")
@click.option("--body", default=None, help="The request's body, as text.")
@click.option("--body-file", type=click.File("rb"), help="The file with the request's body; - is stdin.")
@click.option(
    "--manifest",
    "manifest_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The manifest, TOML or JSON, or a project's function.toml; the options win over it.",
)
@click.option(
    "--sql",
    "database",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A libsql (or SQLite) file that the function's SQL goes to; without a manifest it may write, not with GET.",
)
@click.option(
    "--config", multiple=True, callback=_pairs("="), metavar="NAME=VALUE", help="A variable; may be repeated."
)
@click.option(
    "--secret", "secrets", multiple=True, callback=_pairs("="), metavar="NAME=VALUE", help="Likewise a secret."
)
@click.option("--time-limit", type=int, metavar="MS", help="Milliseconds that the call may take.")
@click.option(
    "--fence",
    envvar="SKERRY_EDGE_FENCE",
    type=click.Choice(["required", "partial"]),
    default="required",
    help="Whether it may run where this machine lacks a piece of the workers' fence.",
)
@click.option("--interpret", is_flag=True, help="Run it on the interpreter: nothing is compiled.")
@JSON
def call(
    file: Path,
    method: str | None,
    path: str,
    query: str,
    headers: list[tuple[str, str]],
    body: str | None,
    body_file: Any,
    manifest_file: Path | None,
    database: Path | None,
    config: list[tuple[str, str]],
    secrets: list[tuple[str, str]],
    time_limit: int | None,
    fence: str,
    interpret: bool,
    as_json: bool,
) -> None:
    """Run one call of the WASM module FILE as a node would, without a node.

    Prints status, headers and body; what the function logged goes to stderr. Exits 0 where it answered, 1 where it
    failed: the error is on stderr then, with its code. The compiled module is kept in the user's cache.
    """
    if body is not None and body_file is not None:
        raise click.UsageError("--body and --body-file are one or the other")
    manifest = _manifest(manifest_file, database, dict(config), [name for name, _ in secrets], time_limit)
    content = body_file.read() if body_file is not None else (body or "").encode()
    method = method or ("GET" if body is None and body_file is None else "POST")
    if path and not path.startswith("/"):
        raise click.BadParameter(f"{path!r} doesn't begin with a slash", param_hint="--path")
    sent = [("host", "localhost"), *((name.lower(), value) for name, value in headers)]
    if content:
        sent.append(("content-length", str(len(content))))
    try:
        request = Request(method, _ascii(path), _ascii(query), sent, content)
    except UnicodeEncodeError:
        raise click.UsageError("the path and the query must be percent-encoded") from None
    single_call = {
        "parent": os.getpid(),
        "file": str(file),
        "manifest": manifest,
        "request": request,
        "cache": "" if interpret else str(cache()),
        "database": str(database) if database is not None and manifest.sql != "none" else "",
        "secrets": dict(secrets),
        "fence": fence,
    }
    redact.know({"": dict(secrets)})
    single_call["places"] = interpret
    limit = manifest.time_limit_ms / 1000
    try:
        result = _ask(single_call, limit, as_json)
        if result.code == "guest_trap" and not interpret:
            # Compiled code doesn't say where it trapped. The call has changed nothing, so it can be made once more.
            again = _ask({**single_call, "cache": "", "places": True}, max(limit, AGAIN), as_json)
            result.place = again.place
    finally:
        if database is not None:
            tidy(database)
    if result.place:
        result.message += f" It was in {result.place} of the module."
    result.message = redact(result.message)
    result.log = redact(result.log.decode(errors="replace"), cut=bool(result.code)).encode()
    _show(result, as_json)
    if result.code:
        sys.exit(1)


def cache() -> Path:
    """The folder of compiled modules, the user's own."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "skerry" / "aot"


def _ascii(text: str) -> str:
    text.encode("ascii")
    return text


def _manifest(
    file: Path | None, database: Path | None, config: dict[str, str], secrets: list[str], time_limit: int | None
) -> Manifest:
    fields: dict[str, Any] = {}
    if file is not None:
        try:
            content = file.read_bytes()
            fields = orjson.loads(content) if file.suffix == ".json" else tomllib.loads(content.decode())
        except (OSError, ValueError) as error:
            raise click.UsageError(f"the manifest {file} can't be read: {error}") from None
        # A project's function.toml has it as a table.
        fields = fields.get("manifest", {}) if "module" in fields else fields
    elif database is not None:
        fields["sql"] = "write"
    fields["config"] = {**fields.get("config", {}), **config}
    fields["secrets"] = [
        *fields.get("secrets", []),
        *(name for name in secrets if name not in fields.get("secrets", [])),
    ]
    if time_limit is not None:
        fields["time_limit_ms"] = time_limit
    try:
        return completed(msgspec.convert(fields, Manifest))
    except msgspec.ValidationError as error:
        raise click.UsageError(f"the manifest isn't valid: {unfit(error)}") from None


def _ask(single_call: dict[str, Any], limit: float, as_json: bool) -> SingleCallResult:
    """The call's end, made by a child. Raises: click's."""
    page = progress_page.create()
    os.set_inheritable(page, True)
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "edge_runtime.oneshot.single_call"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=(page,),
    )
    single_call = {**single_call, "log": page}
    assert child.stdin is not None and child.stdout is not None  # noqa: S101, PT018
    timer = threading.Timer(START_LIMIT, child.kill)
    timer.start()
    began = False
    try:
        child.stdin.write(msgspec.json.encode(single_call))
        child.stdin.close()
        line = child.stdout.readline()
        if json.loads(line or b"{}").get("running"):
            began = True
            timer.cancel()
            timer = threading.Timer(limit, child.kill)
            timer.start()
            line = child.stdout.readline()
    finally:
        timer.cancel()
        child.stdout.close()
        status = child.wait()
        log = progress_page.log(progress_page.open_page(page), 0)
        os.close(page)
    if line:
        return msgspec.json.decode(line, type=SingleCallResult)
    name = Path(single_call["file"]).name
    if status == -signal.SIGKILL:
        if began:
            return SingleCallResult(
                504, log=log, code="time_limit", message=f"{name} ran longer than {limit * 1000:g} ms (--time-limit)."
            )
        raise fail("compile_timeout", f"{name} wasn't compiled after {START_LIMIT:g} s; try --interpret", as_json)
    ended = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    if not began:
        raise fail("check_crashed", f"the process that loaded {name} {ended}", as_json)
    return SingleCallResult(502, log=log, code="worker_crashed", message=f"The process that ran {name} {ended}.")


def _show(result: SingleCallResult, as_json: bool) -> None:
    headers = [line.split(": ", 1) for line in result.head.decode("latin-1").split("\r\n") if line]
    if as_json:
        error = {"error": {"code": result.code, "message": result.message}} if result.code else {}
        log = shown(result.log.decode(errors="replace"))
        answer = {} if result.code else {"headers": headers, "body": _text(result.body)}
        show({"status": result.status, **answer, **error, "log": log, "seconds": round(result.seconds, 6)})
        return
    sys.stderr.write(shown(result.log.decode(errors="replace")))
    if result.code and result.log and not result.log.endswith(b"\n"):
        sys.stderr.write("\n")
    if result.code:
        click.echo(f"Error: {result.message} ({result.code})", err=True)
        return
    known = {status.value: status.phrase for status in http.HTTPStatus}
    click.echo(f"{result.status} {known.get(result.status, '')}".strip())
    for name, value in headers:
        click.echo(f"{name}: {value}")
    click.echo()
    sys.stdout.flush()
    sys.stdout.buffer.write(result.body)
    sys.stdout.buffer.flush()


def _text(body: bytes) -> Any:
    """As `skerry.http` tells a body: text, or where it is none `{"$blob": base64}`."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = "\0"
    return text if "\0" not in text else {"$blob": msgspec.to_builtins(body)}
