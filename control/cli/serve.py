"""`skerry serve`: control itself, to be started by a supervisor."""

import asyncio
import logging
import os
import signal
import time

import click

from control.cli.support.client import Failure
from control.cli.support.startup_errors import startup_errors
from control.protocol import service_manager, settings_in_force
from control.protocol.log_writer import LogHandler
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
    # Until the server handles it by rereading files; without a handler it would kill this process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    manager = service_manager.taken(os.environ)
    manager.starting()
    # Imported here, so that `skerry --help` doesn't load the server and its dependencies.
    import uvloop

    from control.web import server

    set_up_log(log_level)
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


def line_format() -> logging.Formatter:
    """Return the formatter of control's log lines, with times in UTC."""
    form = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    form.converter = time.gmtime
    return form


def set_up_log(level: str) -> None:
    """Set up logging to stderr for the whole process: lines of `level` and above.

    From libraries, only warnings and above are logged: their requests may have secrets.
    """
    handler = LogHandler()
    handler.setFormatter(line_format())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("skerry").setLevel(level.upper())
    # While the database is down, its pool warns with tracebacks; control's own lines say the same.
    logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)
