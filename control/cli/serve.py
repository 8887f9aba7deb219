"""`skerry serve`: control itself, as a supervisor starts it."""

import os

import click

from control import server
from control.cli.client import Failure
from control.migrate import SchemaError
from control.problems import ProblemError
from control.settings import SettingsError, from_environment


@click.command()
def command() -> None:
    """Serve control, as the environment says (SKERRY_METADATA_URL, SKERRY_ARTIFACTS_URL, SKERRY_TLS_CERT …).

    Refuses to start on a metadata database with another schema: run `skerry migrate` first. Ends in order on SIGTERM.
    """
    try:
        settings = from_environment(os.environ)
        server.run(settings)
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    except SchemaError as error:
        raise Failure(str(error), code="schema") from error
    except ProblemError as error:
        raise Failure(error.detail, code=error.code) from error
