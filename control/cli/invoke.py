"""`skerry invoke`: call a function on an edge's local HTTP."""

import os
import sys
from pathlib import Path
from urllib.parse import quote, urlsplit

import aiohttp
import click

from control.cli.support import options, output
from control.cli.support.client import Failure, NotConnected, Unreachable, read_home_file
from control.protocol.bounded_http_client import BoundedConnector
from control.settings import is_loopback


@click.command()
@click.argument("name", type=options.NAME)
@click.argument("path", default="")
@click.option("--method", "-X", help="The HTTP method; GET, or POST with --data.")
@click.option("--data", "-d", help="The body; @FILE reads a file, @- stdin.")
@click.option("--header", "-H", "headers", multiple=True, metavar="NAME:VALUE", help="A request header.")
@click.option("--edge", help="The edge's local URL; SKERRY_EDGE_URL, or the one of `skerry up`, without it.")
@options.json_option
@options.asynchronous
async def command(
    name: str,
    path: str,
    method: str | None,
    data: str | None,
    headers: tuple[str, ...],
    edge: str | None,
    as_json: bool,
) -> None:
    """Call function NAME (with PATH after it, and a query if you like) on an edge and print what it answers."""
    base = edge or os.environ.get("SKERRY_EDGE_URL") or read_home_file().get("edge", "")
    if not base:
        raise NotConnected("no edge to call", cure="give --edge http://127.0.0.1:8087, or start one with `skerry up`")
    body = _body(data)
    url = f"{base.rstrip('/')}/functions/{quote(name)}" + (f"/{path.lstrip('/')}" if path else "")
    verb = method or ("GET" if body is None else "POST")
    status, answered, content = await _call(verb, url, dict(map(_header, headers)), body)
    if as_json:
        text = content.decode("utf-8", "replace")
        output.document({"status": status, "headers": answered, "body": text})
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        if sys.stdout.isatty() and not content.endswith(b"\n"):
            sys.stdout.write("\n")
        sys.stdout.flush()
    if status >= 400:
        raise Failure(f"{name} answered {status}", code=str(status))


def _body(data: str | None) -> bytes | None:
    if data is None:
        return None
    if data == "@-":
        return sys.stdin.buffer.read()
    if data.startswith("@"):
        try:
            return Path(data[1:]).read_bytes()
        except OSError as error:
            raise click.UsageError(f"--data {data}: {error.strerror}") from error
    return data.encode()


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise click.UsageError(f"--header {text!r} isn't NAME:VALUE")
    return name.strip(), value.strip()


async def _call(
    method: str, url: str, headers: dict[str, str], body: bytes | None
) -> tuple[int, dict[str, str], bytes]:
    token = os.environ.get("SKERRY_EDGE_TOKEN")
    if token and not any(name.lower() == "authorization" for name in headers):
        headers["authorization"] = f"Bearer {token}"
    proxies = not is_loopback(urlsplit(url).hostname or "")
    try:
        async with (
            aiohttp.ClientSession(connector=BoundedConnector(), trust_env=proxies) as session,
            session.request(method, url, headers=headers, data=body, allow_redirects=False) as response,
        ):
            return response.status, {k.lower(): v for k, v in response.headers.items()}, await response.read()
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise Unreachable(
            f"{url} can't be reached: {error or type(error).__name__}", code="unreachable", cure="is the edge running?"
        ) from error
