"""`skerry-edge run`."""

import contextlib
import dataclasses
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec
from click.core import ParameterSource

from control.protocol import service_manager, settings_in_force
from control.protocol.settings_in_force import Origin, SettingInForce
from control.protocol.settings_table import about_of
from edge_runtime import logs
from edge_runtime.cli.support import told_owner
from edge_runtime.files import FileUnfit
from edge_runtime.settings import LISTEN, EdgeSettings, EdgeSettingsError
from edge_runtime.state import DATA_AWAITED, StateUnfit
from edge_runtime.sync import identity
from edge_runtime.web import socket_activation

if TYPE_CHECKING:
    from edge_runtime.release.compiler import Compiler
    from edge_runtime.release.manager import ReleaseManager

log = logging.getLogger("skerry.front")

NO_FLAGS: Final = ("state", "token", "token_file")
"""Settings without a flag in `run_options`: those that all commands take, and those that other users mustn't see."""


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `run` except the state directory."""
    command = click.option("--debug", is_flag=True, envvar="SKERRY_EDGE_DEBUG", help="Log more.")(command)
    command = click.option(
        "--log", "form", envvar="SKERRY_EDGE_LOG", type=click.Choice(["text", "json"]), default="text"
    )(command)
    for field in reversed(dataclasses.fields(EdgeSettings)):
        if field.name not in NO_FLAGS:
            command = _option(field)(command)
    return command


def _option(field: "dataclasses.Field[Any]") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option for a setting, as defined in the table."""
    many = field.type == tuple[str, ...]
    default = () if many else None if field.default is dataclasses.MISSING else field.default
    return click.option(
        "--" + (field.name.removesuffix("s") if many else field.name).replace("_", "-"),
        field.name,
        envvar=f"SKERRY_EDGE_{field.name.upper()}",
        type=click.Path(path_type=Path)
        if field.type == Path | None
        else field.type
        if field.type in (int, float)
        else str,
        multiple=many,
        default=default,
        show_default=not many and default is not None,
        help=about_of(field).flag_help,
    )


def settings_of(state: Path, given: dict[str, Any]) -> EdgeSettings:
    """Return the settings from the options of `run`, except those of its log. Raises: UsageError, when one is wrong."""
    for name in ("workers", "concurrency"):
        if given[name] is None:
            del given[name]
    try:
        return EdgeSettings(state=state, token=local_token(), token_file=local_token_file(), **given)
    except EdgeSettingsError as error:
        raise click.UsageError(str(error)) from None


def shown_settings(settings: EdgeSettings) -> list[dict[str, str]]:
    """Return the settings of this command, which takes the options of `run`: where each comes from, without secrets."""
    context = click.get_current_context()
    sources: dict[object, Origin] = {
        ParameterSource.COMMANDLINE: "flag",
        ParameterSource.ENVIRONMENT: "environment",
    }
    origins = {name: sources.get(context.get_parameter_source(name), "default") for name in context.params}
    if origins["listen"] == "default" and settings.listen != LISTEN:
        origins["listen"] = "program"  # the socket that systemd handed over
    origins["token_file"] = "default" if settings.token_file is None else "environment"
    origins["token"] = "file" if settings.token_file is not None else "environment" if settings.token else "default"
    found = settings_in_force.in_force(settings, {}, prefix="SKERRY_EDGE_", origins=origins)
    debug = "1" if context.params["debug"] else ""
    found.append(SettingInForce("SKERRY_EDGE_DEBUG", debug, origins["debug"]))
    found.append(SettingInForce("SKERRY_EDGE_LOG", context.params["form"], origins["form"]))
    return [msgspec.structs.asdict(setting) for setting in sorted(found, key=lambda setting: setting.name)]


@click.command()
@click.option(
    "--state",
    envvar="SKERRY_EDGE_STATE",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The node's state directory.",
)
@run_options
def run(state: Path, form: logs.Format, debug: bool, **given: Any) -> None:
    """Serve the node's functions and keep it at its target, until SIGTERM or SIGINT.

    It starts without any network, with the release that it has. Where systemd hands a socket over (a unit
    skerry-edge.socket), it serves on that: then a restart refuses no call.
    """
    logs.set_up(form, debug=debug)
    manager = service_manager.taken(os.environ)
    manager.starting()
    # Until the node reloads files on this signal; without a handler it would kill this process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for line in settings_in_force.unknown():
        log.warning("%s", line)
    try:
        handed = socket_activation.taken(os.environ)
        if handed is not None:
            _listen_on(handed, given)
    except EdgeSettingsError as error:
        raise click.UsageError(str(error)) from None
    settings = settings_of(state, given)
    document = {"settings": shown_settings(settings)}
    with _told():
        with contextlib.suppress(FileNotFoundError):
            if refusal := told_owner(state):
                raise StateUnfit(refusal)
        who = identity.read(state)
        if (state / DATA_AWAITED).exists():
            raise StateUnfit(
                f"the database of {who.name} isn't back from its backup yet: run `skerry-edge join` as before, which "
                "goes on where it was, or with --without-data to begin with an empty database"
            )
        logs.name_node(who.name)
        # Imported here, because they take a while to import, and the other commands need neither.
        from edge_runtime import front
        from edge_runtime.sync import agent

        # Until the front can report it itself: it may be waiting for an earlier run to end.
        manager.starting(settings.start_wait + service_manager.PATIENCE)

        def make_agent(manager: "ReleaseManager", compiler: "Compiler") -> agent.Agent:
            return agent.Agent(state, who, manager, compiler)

        def begin(made: front.Front) -> None:
            made.node_socket.documents["settings"] = lambda: document
            made.handed = handed
            made.service_manager = manager

        front.run(settings, make_agent, begin, who.name)


def _listen_on(handed: socket.socket, given: dict[str, Any]) -> None:
    """Set `listen` to the address of the socket that was handed over. Raises: EdgeSettingsError, when a different one
    was requested."""
    there = socket_activation.address(handed)
    if click.get_current_context().get_parameter_source("listen") is ParameterSource.DEFAULT:
        given["listen"] = there
        return
    host, _, port = given["listen"].rpartition(":")
    if not port.isdigit() or not socket_activation.has(handed, host.removeprefix("[").removesuffix("]"), int(port)):
        raise EdgeSettingsError(
            f"listen is {given['listen']}, but the socket that systemd hands over has the address {there}: leave "
            "SKERRY_EDGE_LISTEN and --listen out, or give both the same"
        )


@click.command()
@click.option("--state", type=click.Path(file_okay=False, path_type=Path), required=True, help="Its state directory.")
@click.option("--listen", required=True, help="HOST:PORT of the local HTTP, on loopback.")
@click.option("--secrets", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="As of `run`.")
@click.option("--fresh", is_flag=True, help="Begin with a new database.")
def dev(state: Path, listen: str, secrets: Path | None, fresh: bool) -> None:
    """Serve what comes on stdin, for `skerry dev`: a person calls that."""
    logs.set_up("text", debug=False)
    logging.getLogger().setLevel(logging.WARNING)
    with _told():
        # Its author's own code runs here: a machine without a complete fence is acceptable.
        settings = EdgeSettings(
            state=state, listen=listen, secrets=secrets, synchronous="NORMAL", workers=2, concurrency=2, fence="partial"
        )
        # Opens libwasmedge too, and says what to install if that is missing.
        from edge_runtime.cli import dev

        dev.run(settings, fresh=fresh)


def local_token_file() -> Path | None:
    """Return the file with the node's token; None if the environment names none."""
    file = os.environ.get("SKERRY_EDGE_TOKEN_FILE")
    return Path(file) if file else None


def local_token() -> str:
    """Read the token, only from the environment: other users can see a command's flags."""
    file = local_token_file()
    if file is None:
        return os.environ.get("SKERRY_EDGE_TOKEN", "")
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise EdgeSettingsError(f"the token can't be read from SKERRY_EDGE_TOKEN_FILE: {error}") from None


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """End the command with a message if the user can act on the error, otherwise with a traceback."""
    try:
        yield
    except* (StateUnfit, EdgeSettingsError, FileUnfit, identity.NotJoined, ImportError) as group:
        raise click.ClickException(str(_first(group))) from None
    except* Exception as group:
        from edge_runtime.ipc.zygote_client import MachineUnfit
        from edge_runtime.release.stored_release import DatabaseUnfit

        known, _ = group.split((MachineUnfit, DatabaseUnfit))
        if known is not None:
            raise click.ClickException(str(_first(known))) from None
        raise


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
