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

from control.protocol.command_line import DurationType
from control.protocol.manifest import Manifest, completed, unfit
from edge_runtime.aot_cache import users_folder
from edge_runtime.cli.support import JSON, fail, show
from edge_runtime.errors import CodedError
from edge_runtime.files import FileUnfit
from edge_runtime.guests.invocation import Request, SingleCallResult
from edge_runtime.ipc import log_lines, progress_page
from edge_runtime.ipc.log_lines import shown
from edge_runtime.ipc.request_head import RequestUnfit
from edge_runtime.oneshot.call_messages import SingleCallRequest, by_route, made_request
from edge_runtime.oneshot.scratch_database import MEMORY, tidy
from edge_runtime.redaction import redact
from edge_runtime.release import secrets

START_LIMIT: Final = 300.0
"""Seconds that the check and the compiler may take together."""
AGAIN: Final = 20.0
"""Seconds for a call that trapped when it is made again on the interpreter, which is slower."""
REFUSED: Final = 22
"""Exit status if `--fail` is given and the answer is an error: the same as curl's."""
PHRASES: Final = {status.value: status.phrase for status in http.HTTPStatus}


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
@click.option("--path", default="", help="Below the function's name: /orders/7. It may end with a query: /7?x=1.")
@click.option(
    "--route",
    default="",
    help="In place of --path: a path of the node, /orders/7, that its route takes, or a URL, http://HOST/orders/7.",
)
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
    help="A libsql (or SQLite) file that the function's SQL goes to, or :memory:; without a manifest it may write, "
    "not with GET.",
)
@click.option(
    "--config", multiple=True, callback=_pairs("="), metavar="NAME=VALUE", help="A variable; may be repeated."
)
@click.option(
    "--secret", "secrets", multiple=True, callback=_pairs("="), metavar="NAME=VALUE", help="Likewise a secret."
)
@click.option(
    "--secrets",
    "secrets_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file with the values of its secrets, as a node has one; --secret wins over it.",
)
@click.option(
    "--time-limit", type=DurationType(of="ms", whole=True, plain=True), help="How long the call may take: 500ms, 5s."
)
@click.option(
    "--fence",
    envvar="SKERRY_EDGE_FENCE",
    type=click.Choice(["required", "partial"]),
    default="required",
    help="Whether it may run where this machine lacks a piece of the workers' fence.",
)
@click.option("--interpret", is_flag=True, help="Run it on the interpreter: nothing is compiled.")
@click.option(
    "--fail",
    "fail_fast",
    is_flag=True,
    help=f"Exit with {REFUSED} where it answers 400 or above, and don't print the answer, as curl does.",
)
@JSON
def call(
    file: Path,
    method: str | None,
    path: str,
    route: str,
    query: str,
    headers: list[tuple[str, str]],
    body: str | None,
    body_file: Any,
    manifest_file: Path | None,
    database: Path | None,
    config: list[tuple[str, str]],
    secrets: list[tuple[str, str]],
    secrets_file: Path | None,
    time_limit: int | None,
    fence: str,
    interpret: bool,
    fail_fast: bool,
    as_json: bool,
) -> None:
    """Run one call of the WASM module FILE as a node would, without a node.

    Prints status, headers and body; what the function logged goes to stderr, and so do errors of its SQL and HTTP.
    Exits 0 where it answered, whatever the status (see --fail), and 1 where it failed: the error is on stderr then,
    with its code. The compiled module is kept in the user's cache.
    """
    content = _body(body, body_file)
    name, manifest = _read_manifest(
        manifest_file, database is not None, dict(config), [name for name, _ in secrets], time_limit
    )
    name = name or file.stem
    if database is not None and database != MEMORY and not database.exists():
        raise click.BadParameter(
            f"there is no file {database}. Name one that has the function's tables, or :memory: for an empty database",
            param_hint="--sql",
        )
    method = (method or ("GET" if content is None else "POST")).upper()
    if path and route:
        raise click.UsageError("--path and --route are one or the other")
    request = _request(method, route or path, query, headers, content or b"", routed=bool(route))
    try:
        request = by_route(request, manifest) if route else request
    except RequestUnfit as unfit:
        raise click.BadParameter(str(unfit), param_hint="--route") from None
    try:
        values = _secret_values(name, manifest, secrets_file, dict(secrets))
    except CodedError as lacking:
        raise fail(lacking.code, lacking.message, as_json) from None
    single_call = SingleCallRequest(
        str(file),
        manifest,
        request,
        "" if interpret else str(users_folder()),
        database=str(database) if database is not None and manifest.sql != "none" else "",
        secrets=values,
        parent=os.getpid(),
        places=interpret,
        fence=fence,
        name=name,
        manifest_given=manifest_file is not None,
    )
    redact.know({"": values})
    limit = manifest.time_limit_ms / 1000
    try:
        result = _ask(single_call, limit, as_json)
        if result.code == "guest_trap" and not interpret and not result.snapshot:
            # Compiled code doesn't say where it trapped. The call has changed nothing, so it can be repeated.
            once_more = msgspec.structs.replace(single_call, cache="", places=True)
            result.place = _ask(once_more, max(limit, AGAIN), as_json).place
    finally:
        if database is not None:
            tidy(database)
    if result.place:
        result.message += f" It was in {result.place} of the module."
    result.message = redact(result.message)
    result.notes = [redact(note) for note in result.notes]
    log, told = log_lines.without_loss(result.log)
    result.log = redact(log.decode(errors="replace"), cut=bool(result.code or told)).encode() + told
    refused = fail_fast and not result.code and result.status >= 400
    _show(result, as_json, refused=refused)
    if result.code or refused:
        sys.exit(1 if result.code else REFUSED)


def _body(text: str | None, file: Any) -> bytes | None:
    if text is not None and file is not None:
        raise click.UsageError("--body and --body-file are one or the other")
    if file is not None:
        content: bytes = file.read()
        return content
    return None if text is None else text.encode()


def _request(
    method: str, path: str, query: str, headers: list[tuple[str, str]], body: bytes, *, routed: bool
) -> Request:
    """Return the request as a node would make it from an HTTP request. Raises: click's, when no client could send
    it."""
    path, mark, behind = path.partition("?")
    if routed and not path.startswith(("/", "http://", "https://")):
        told = f"{path!r} is no path, /orders/7, and no URL, http://HOST/orders/7"
        raise click.BadParameter(told, param_hint="--route")
    if path and not routed and not path.startswith("/"):
        raise click.BadParameter(f"{path!r} doesn't begin with a slash", param_hint="--path")
    if mark and query:
        raise click.UsageError("the query is in the path already: give it there, or as --query")
    if query.startswith("?"):
        raise click.BadParameter(f"{query!r} begins with a question mark: leave that out", param_hint="--query")
    try:
        return made_request(method, path, query or behind, headers, body)
    except RequestUnfit as unfit:
        raise click.UsageError(str(unfit)) from None


def _ask(single_call: SingleCallRequest, limit: float, as_json: bool) -> SingleCallResult:
    """Have a child make the call, and return its result. Raises: click's."""
    page = progress_page.create()
    os.set_inheritable(page, True)
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "edge_runtime.oneshot.single_call"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=(page,),
        # Ctrl-C is for this process, which kills that one.
        start_new_session=True,
    )
    single_call = msgspec.structs.replace(single_call, log=page)
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
    except BaseException:
        child.kill()
        raise
    finally:
        timer.cancel()
        child.stdout.close()
        status = child.wait()
        log = progress_page.log(progress_page.open_page(page), 0)
        os.close(page)
    if line:
        return msgspec.json.decode(line, type=SingleCallResult)
    name = Path(single_call.file).name
    if status == -signal.SIGKILL:
        if began:
            text = (
                f"{name} ran longer than {limit * 1000:g} ms: its manifest's time_limit_ms, or --time-limit, says so."
            )
            return SingleCallResult(504, log=log, code="time_limit", message=text)
        raise fail("compile_timeout", f"{name} wasn't compiled after {START_LIMIT:g} s; try --interpret", as_json)
    ended = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    if not began:
        raise fail("check_crashed", f"the process that loaded {name} {ended}", as_json)
    why = " Mostly its stack has overflowed." if status == -signal.SIGSEGV else ""
    return SingleCallResult(502, log=log, code="worker_crashed", message=f"The process that ran {name} {ended}.{why}")


def _show(result: SingleCallResult, as_json: bool, *, refused: bool) -> None:
    """Print the result; `refused`: without the answer, since its status is an error."""
    if as_json:
        error = {"error": {"code": result.code, "message": result.message}} if result.code else {}
        log = shown(result.log.decode(errors="replace"))
        answer = {} if result.code else {"headers": result.headers, "body": _text(result.body)}
        notes = {"notes": result.notes} if result.notes else {}
        show({"status": result.status, **answer, **error, "log": log, **notes, "seconds": round(result.seconds, 6)})
        return
    sys.stderr.write(shown(result.log.decode(errors="replace")))
    if (result.code or result.notes or refused) and result.log and not result.log.endswith(b"\n"):
        sys.stderr.write("\n")
    for note in result.notes:
        click.echo(f"Note: {shown(note)}", err=True)
    status = f"{result.status} {PHRASES.get(result.status, '')}".strip()
    if result.code:
        click.echo(f"Error: {result.message} [{result.code}]", err=True)
        return
    if refused:
        click.echo(f"Error: the function answered {status}", err=True)
        return
    click.echo(status)
    for name, value in result.headers:
        click.echo(f"{name}: {value}")
    click.echo()
    sys.stdout.flush()
    sys.stdout.buffer.write(result.body)
    sys.stdout.buffer.flush()


def _text(body: bytes) -> Any:
    """Return a body in the form of `skerry.http`: text, or `{"$blob": base64}` if it isn't text."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = "\0"
    return text if "\0" not in text else {"$blob": msgspec.to_builtins(body)}


def _read_manifest(
    file: Path | None, with_sql: bool, config: dict[str, str], names: list[str], time_limit: int | None
) -> tuple[str, Manifest]:
    """Return the function's name, empty if no file gives one, and its manifest: the file's, plus what the options add.
    `with_sql`: whether the call has a database; without a file, the function may write to it. `names` are the given
    secrets.

    Raises: click's, when the file can't be read or the manifest isn't valid.
    """
    name, fields = _content(file)
    if file is None and with_sql:
        fields["sql"] = "write"
    # Wrong types are reported below.
    if config and isinstance(there := fields.get("config", {}), dict):
        fields["config"] = {**there, **config}
    if names and isinstance(listed := fields.get("secrets", []), list):
        fields["secrets"] = [*listed, *(each for each in names if each not in listed)]
    if time_limit is not None:
        fields["time_limit_ms"] = time_limit
    try:
        return name, completed(msgspec.convert(fields, Manifest))
    except msgspec.ValidationError as error:
        where = f" in {file}" if file is not None else ""
        raise click.UsageError(f"the manifest{where} isn't valid: {unfit(error, Manifest)}") from None


def _content(file: Path | None) -> tuple[str, dict[str, Any]]:
    if file is None:
        return "", {}
    try:
        content = file.read_bytes()
        fields = orjson.loads(content) if file.suffix == ".json" else tomllib.loads(content.decode())
    except (OSError, ValueError) as error:
        raise click.UsageError(f"the manifest {file} can't be read: {error}") from None
    if not isinstance(fields, dict):
        raise click.UsageError(f"the manifest {file} is no table of names and values")
    if "module" not in fields:
        return "", fields
    # In a project's function.toml it is a table.
    manifest = fields.get("manifest", {})
    if not isinstance(manifest, dict):
        raise click.UsageError(f"manifest in {file} is no table of names and values")
    return str(fields.get("name", "")), manifest


def _secret_values(name: str, manifest: Manifest, file: Path | None, given: dict[str, str]) -> dict[str, str]:
    """Return the values of the secrets that the manifest names: those given, else those in the function's table of the
    file.

    Raises: CodedError secrets_unfit, when the file can't be used; secret_missing, when one has no value.
    """
    try:
        there = {} if file is None else secrets.read(file).get(name, {})
    except FileUnfit as error:
        raise CodedError("secrets_unfit", f"The file of secrets can't be used: {error}.") from None
    values = {**there, **given}
    missing = [each for each in manifest.secrets if each not in values]
    if missing:
        listed = ", ".join(missing)
        cure = f"give --secret {missing[0]}=VALUE, or --secrets FILE"
        if file is not None:
            cure = f"put it into {file}, in the table [{name}], or give --secret {missing[0]}=VALUE"
        raise CodedError("secret_missing", f"The function needs the secret {listed}, which the call hasn't: {cure}.")
    return {each: values[each] for each in manifest.secrets}
