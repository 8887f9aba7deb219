"""`skerry login`, `logout` and `console`: sessions of the command line, and codes to sign in with in a browser."""

import asyncio
import contextlib
import os
import platform
import sys
import webbrowser
from pathlib import Path

import click

from control.cli import operators
from control.cli.support import client as connecting
from control.cli.support import logins, options, output
from control.cli.support.client import Client, ConnectionSettings, Failure, Json, NotConnected, RequestRefused, path
from control.cli.support.logins import Login


@click.command()
@click.argument("url", required=False)
@click.option("--ca", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The file with control's CA.")
@click.option("--no-browser", is_flag=True, help="Don't open a browser, only print the address.")
@options.json_option
@options.asynchronous
async def login(url: str | None, ca: Path | None, no_browser: bool, as_json: bool) -> None:
    """Sign in to control, in a browser on this machine or any other.

    It prints an address and a code to type there, and waits. Without URL it is the control that SKERRY_URL, `skerry up`
    or the last login names. The session is kept in ~/.config/skerry, and ends by itself or by `skerry logout`.
    """
    to = _where(url, ca)
    async with Client(to) as control:
        begun = await control.post(path("logins"), {"machine": _machine()})
        address = to.url + begun["verification_path"]
        output.note(f"open {address} in a browser, and type the code {begun['user_code']} there")
        output.note(f"it is good until {_clock(begun['expires_at'])}; waiting …")
        if not no_browser and _has_screen():
            # It doesn't matter if a browser writes to the terminal or doesn't start: the address is printed.
            with contextlib.suppress(webbrowser.Error, OSError):
                await asyncio.to_thread(webbrowser.open, address)
        taken = await _wait(control, begun)
    kept = Login(to.url, taken["token"], taken["operator"], taken["expires_at"], "" if to.ca is None else str(to.ca))
    try:
        logins.keep(kept)
    except (OSError, ValueError) as error:
        raise Failure(
            f"the login can't be kept: {error}",
            cure=f"{logins.file()} must be a file that you may write, with what `skerry login` wrote, or not there",
        ) from error
    if as_json:
        output.document({"url": kept.url, "operator": kept.operator, "expires_at": kept.ends_at})
    else:
        output.say(f"signed in to {kept.url} as {kept.operator} until {_clock(kept.ends_at)}")


@click.command()
@click.argument("url", required=False)
@options.json_option
@options.asynchronous
async def logout(url: str | None, as_json: bool) -> None:
    """End what `skerry login` began, at control too. Without URL it is the last login."""
    kept = connecting.find_login(url or os.environ.get("SKERRY_URL", ""))
    if kept is None:
        raise NotConnected("there is no login that could be ended", cure="`skerry login` begins one")
    async with Client(ConnectionSettings(kept.url, kept.token, Path(kept.ca) if kept.ca else None)) as control:
        try:
            await control.delete(path("sessions", "self"))
        except RequestRefused as refused:
            # The session had ended already.
            if refused.code not in ("session_ended", "credentials_invalid", "token_expired"):
                raise
    try:
        logins.forget(kept.url)
    except (OSError, ValueError) as error:
        raise Failure(
            f"the login has ended, and can't be forgotten: {error}", cure=f"remove {logins.file()}"
        ) from error
    if as_json:
        output.document({"url": kept.url, "operator": kept.operator, "ended": True})
    else:
        output.say(f"signed out of {kept.url}: the login of {kept.operator} has ended")


@click.command()
@options.json_option
@options.asynchronous
async def whoami(as_json: bool) -> None:
    """Show as which operator, and at which control, commands ask, what it may, and until when."""
    async with options.client() as control:
        found = await control.get(path("sessions", "self"))
        url = control.url
    if as_json:
        output.document({"url": url, **found})
        return
    ends = _clock(found["ends_at"]) if found["ends_at"] else "never"
    by = "a session (`skerry login`)" if found["by_session"] else "its token"
    rows = [("operator", found["operator"]), ("control", url), ("may", operators.granted(found)), ("by", by)]
    output.pairs([*rows, ("ends", ends)])


@click.command()
@options.json_option
@options.asynchronous
async def console(as_json: bool) -> None:
    """Print the console's address, and a code to sign in there with, once, within five minutes."""
    async with options.client() as control:
        made = await control.post(path("sign-in-codes"))
    if as_json:
        output.document({"url": console_url(control.url), **made})
        return
    output.say(console_url(control.url))
    output.say(f"type the code {made['code']} there; it is good once, until {_clock(made['expires_at'])}")


def console_url(url: str) -> str:
    """Return the URL of the console page for signing in with a code."""
    return f"{url}/sign-in?by=code"


def _where(url: str | None, ca: Path | None) -> ConnectionSettings:
    """Return the control to sign in to. Raises: NotConnected, when none is named or the URL isn't https."""
    local = connecting.read_home_file()
    wanted = (url or os.environ.get("SKERRY_URL") or local.get("url", "")).rstrip("/")
    kept = connecting.find_login(wanted)
    if not wanted and kept is None:
        raise NotConnected("no control is named", cure="give its URL: `skerry login https://…`")
    wanted = wanted or (kept.url if kept else "")
    connecting.check_url(wanted)
    file = str(ca.absolute()) if ca else os.environ.get("SKERRY_CA", "")
    if not file and local.get("url") == wanted:
        file = local.get("ca", "")
    if not file and kept is not None:
        file = kept.ca
    return ConnectionSettings(wanted, "", Path(file).absolute() if file else None)


async def _wait(control: Client, begun: Json) -> Json:
    """Poll until the login is approved. Raises: RequestRefused, when it is refused, or not approved in time."""
    while True:
        await asyncio.sleep(begun["interval"])
        try:
            return await control.post(path("logins", "token"), {"device_code": begun["device_code"]})
        except RequestRefused as refused:
            if refused.code != "login_pending":
                raise


def _machine() -> str:
    """Describe this machine to the person who approves the login."""
    return f"skerry on {platform.node() or 'a machine without a name'}"[:100]


def _has_screen() -> bool:
    has_display = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")) or sys.platform == "darwin"
    return has_display and sys.stderr.isatty()


def _clock(time: str) -> str:
    """Return a future time in this machine's time zone, and how far away it is."""
    return f"{output.when(time).astimezone():%Y-%m-%d %H:%M %Z} ({output.ago(time)})"
