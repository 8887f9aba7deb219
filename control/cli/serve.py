"""`skerry serve`: control itself, as a supervisor starts it."""

import asyncio
import logging
import os
import sys
import time

import click

from control.cli.client import Failure
from control.migrate import SchemaError
from control.problems import ProblemError
from control.settings import SettingsError, from_environment


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

    Refuses to start on a metadata database with another schema: run `skerry migrate` first. Ends in order on SIGTERM.
    """
    # Here, so that `skerry --help` needn't load the server and all that it uses.
    import uvloop

    from control import server

    _log(log_level)
    try:
        settings = from_environment(os.environ)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(server.serve(settings))
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    except SchemaError as error:
        raise Failure(str(error), code="schema") from error
    except server.StartError as error:
        raise Failure(str(error), code="start") from error
    except ProblemError as error:
        raise Failure(error.detail, code=error.code, cure="does that service run, and is its URL right?") from error


def _log(level: str) -> None:
    """Lines with a time in UTC; the libraries' own only from warnings on, whose requests may have secrets."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("skerry").setLevel(level.upper())
    # While the database is away its pool warns with tracebacks; control's own lines say the same.
    logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)
