"""Errors of commands that open the metadata database or the artifact store themselves."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from control.cli.support.client import Failure
from control.problems import ProblemError
from control.settings import ControlSettingsError
from control.storage import sqlstates
from control.storage.migrations import SchemaError


@contextmanager
def startup_errors(cure: str) -> Iterator[None]:
    """Turn errors of settings, of the metadata's schema and of both services into those of the command line.

    Raises: UsageError, when a setting is wrong; Failure, when the schema isn't compatible with this version, or, with
    `cure`, when a service fails.
    """
    try:
        yield
    except ControlSettingsError as error:
        raise click.UsageError(str(error)) from error
    except SchemaError as error:
        raise Failure(str(error), code="schema") from error
    except ProblemError as error:
        if sqlstates.is_forbidden(error.__cause__):
            cure = "have the URL's user own the database: ALTER DATABASE … OWNER TO … (docs/how-to/set-up-control.md)"
        raise Failure(error.detail, code=error.code, cure=cure) from error
