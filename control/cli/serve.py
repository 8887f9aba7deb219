"""`skerry serve`: control itself, as a supervisor starts it."""

import asyncio
import logging
import os
import signal

import click

from control.cli.support import server_log
from control.cli.support.client import Failure
from control.cli.support.startup_errors import startup_errors
from control.protocol import service_manager, settings_in_force
from control.settings import from_environment

log = logging.getLogger("skerry.control")


@click.command()
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    envvar="SKERRY_LOG_LEVEL",
    show_envvar=True,
    help="What is logged, to stderr.",
)
def command(log_level: str) -> None:
    """Serve control, as the environment says (SKERRY_METADATA_URL, SKERRY_ARTIFACTS_URL, SKERRY_TLS_CERT, …).

    Refuses to start on a metadata database that lacks a part of this version's schema (run `skerry migrate` first), or
    that a newer version has made unfit for this one. Ends in order on SIGTERM.
    """
    # Until the server reads files again at it; without a handler it would end this process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    manager = service_manager.taken(os.environ)
    manager.starting()
    # Imported here, so that `skerry --help` doesn't load the server and all that it uses.
    import uvloop

    from control.web import server

    server_log.set_up(log_level)
    for line in settings_in_force.unknown():
        log.warning("%s", line)
    try:
        with (
            startup_errors("does that service run, and is its URL right?"),
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            runner.run(server.serve(from_environment(os.environ), manager=manager))
    except server.StartError as error:
        raise Failure(str(error), code="start") from error
