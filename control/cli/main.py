"""The command line of `skerry`: its verbs, and the handling of errors.

Exit codes: 0 success, 1 failure, 2 wrong usage, 3 refused by control, 4 control can't be reached, 5 nodes failed or
were late, or a rollout isn't done, 6 nodes weren't waited for because they are offline or revoked, 7 `doctor` has
something to note, 130 interrupted.
"""

import asyncio
import os

import click

from control.cli.support import output
from control.cli.support.client import Failure
from control.protocol import settings_in_force
from control.protocol.command_line import LazyGroup, completion, output_failure, prepare_output, version_option

VERBS = {
    "up": "control.cli.up.up_steps:command",
    "serve": "control.cli.serve:command",
    "migrate": "control.cli.migrate:command",
    "login": "control.cli.signing_in:login",
    "logout": "control.cli.signing_in:logout",
    "whoami": "control.cli.signing_in:whoami",
    "console": "control.cli.signing_in:console",
    "status": "control.cli.status:command",
    "doctor": "control.cli.doctor.fleet_doctor:command",
    "node": "control.cli.nodes:command",
    "function": "control.cli.functions:command",
    "dev": "control.cli.project.dev:command",
    "test": "control.cli.project.run_cases:command",
    "schema": "control.cli.schema:command",
    "release": "control.cli.releases:command",
    "rollout": "control.cli.rollouts:command",
    "rollback": "control.cli.releases:rollback",
    "group": "control.cli.groups:command",
    "data": "control.cli.data:command",
    "operator": "control.cli.operators:command",
    "invoke": "control.cli.invoke:command",
    "webhook": "control.cli.webhooks:command",
    "syncs": "control.cli.syncs:command",
    "audit": "control.cli.audit:command",
    "logs": "control.cli.logs:command",
    "calls": "control.cli.logs:calls",
    "artifacts": "control.cli.artifacts:command",
    "recover": "control.cli.recover:command",
    "settings": "control.cli.settings:command",
    "ca": "control.cli.ca:command",
}
"""The module of each verb and its name there. Modules are imported on use."""


@click.group(
    cls=LazyGroup, places=VERBS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@version_option("skerry")
@click.pass_context
def skerry(context: click.Context) -> None:
    """Functions and data at the edge, brought to their release by a central control plane.

    Control is found by SKERRY_URL, SKERRY_TOKEN and SKERRY_CA, by what `skerry up` left in SKERRY_HOME (.skerry), or by
    what `skerry login` keeps.
    """
    if context.invoked_subcommand not in ("serve", "doctor"):  # which say it themselves
        for line in settings_in_force.unknown():
            output.note(f"Warning: {line}")


skerry.add_command(completion("skerry"))

UNANSWERED = "nothing was changed: nobody answered the question; in a script, give --yes, or what is asked for"


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; errors are printed here."""
    prepare_output()
    failed: OSError | None = None
    try:
        status = _run(arguments)
    except OSError as error:
        failed, status = error, 1
    broken = output_failure(failed)
    if isinstance(broken, BrokenPipeError):
        # The reader of stdout, such as `head`, has closed it.
        return status or 1
    if broken is not None:
        return _failed(Failure(f"the output can't be written: {broken.strerror}"), arguments)
    return status if failed is None else _failed(Failure(_told(failed)), arguments)


def _run(arguments: list[str]) -> int:
    try:
        result = skerry.main(arguments, prog_name="skerry", standalone_mode=False)
    except click.ClickException as error:
        if "--json" in arguments:
            told = Failure(error.format_message(), code="usage")
            told.exit_code = error.exit_code
            return _failed(told, arguments)
        error.show()
        return error.exit_code
    except click.Abort as stopped:
        if isinstance(stopped.__context__, EOFError):
            unanswered = Failure(UNANSWERED, code="usage")
            unanswered.exit_code = 2
            return _failed(unanswered, arguments)
        output.note("interrupted")
        return 130
    except (KeyboardInterrupt, asyncio.CancelledError):
        output.note("interrupted")
        return 130
    except Failure as error:
        return _failed(error, arguments)
    return result if isinstance(result, int) else 0


def _failed(failure: Failure, arguments: list[str]) -> int:
    output.failure(failure, as_json="--json" in arguments)
    return failure.exit_code


def _told(error: OSError) -> str:
    """Describe what the operating system refused to a command."""
    try:
        os.getcwd()
    except OSError:
        return "the current folder isn't there any more, or is closed to this user: change to another one"
    why = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {why}" if error.filename else why
