"""The command line of `skerry`: its verbs, and what becomes of errors.

Exit codes: 0 success, 1 failure, 2 wrong usage, 3 refused by control, 4 control can't be reached, 5 nodes failed or
were late, 6 nodes weren't waited for because they are offline or revoked, 7 `doctor` has something to note, 130
interrupted.
"""

import asyncio
import os
import sys

import click
from click.exceptions import NoSuchCommand

from control import settings_in_force
from control.cli.support import output
from control.cli.support.client import Failure

# Each verb's module, and what it is called there, where that isn't `command`.
VERBS = {
    "up": "control.cli.up",
    "serve": "control.cli.serve",
    "migrate": "control.cli.migrate",
    "login": "control.cli.signing_in:login",
    "logout": "control.cli.signing_in:logout",
    "console": "control.cli.signing_in:console",
    "status": "control.cli.status",
    "doctor": "control.cli.doctor.fleet_doctor",
    "node": "control.cli.nodes",
    "function": "control.cli.functions",
    "dev": "control.cli.dev",
    "test": "control.cli.testing.run_cases",
    "schema": "control.cli.schema",
    "release": "control.cli.releases",
    "rollback": "control.cli.releases:rollback",
    "group": "control.cli.groups",
    "operator": "control.cli.operators",
    "invoke": "control.cli.invoke",
    "webhook": "control.cli.webhooks",
    "syncs": "control.cli.syncs",
    "audit": "control.cli.audit",
    "logs": "control.cli.live.logs",
    "calls": "control.cli.live.logs:calls",
    "artifacts": "control.cli.artifacts",
    "recover": "control.cli.recovery.recover",
    "settings": "control.cli.settings",
    "ca": "control.cli.trust.ca",
    "completion": "control.cli.support.completion",
}


class Verbs(click.Group):
    """The group of verbs. It imports a verb's module when the verb is used: most don't need the server's modules."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name].partition(":")
        found = getattr(__import__(module, fromlist=["command"]), name or "command")
        assert isinstance(found, click.Command)  # noqa: S101
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except NoSuchCommand as error:
            # Click knows none of the names, as the modules aren't imported yet.
            raise NoSuchCommand(error.command_name, possibilities=VERBS, ctx=ctx) from None


def _show_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from control import version

        click.echo(f"skerry, version {version.told()}")
        context.exit()


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version, with its commit.",
)
@click.pass_context
def skerry(context: click.Context) -> None:
    """Functions and data at the edge, brought to their release by a central control plane.

    Control is found by SKERRY_URL, SKERRY_TOKEN and SKERRY_CA, by what `skerry up` left in SKERRY_HOME (.skerry), or by
    what `skerry login` keeps.
    """
    if context.invoked_subcommand not in ("serve", "doctor"):  # which say it themselves
        for line in settings_in_force.unknown():
            output.note(f"Warning: {line}")


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; errors are printed here."""
    try:
        result = skerry.main(arguments, prog_name="skerry", standalone_mode=False)
    except click.ClickException as error:
        if "--json" in arguments:
            told = Failure(error.format_message(), code="usage")
            told.exit_code = error.exit_code
            output.failure(told, as_json=True)
        else:
            error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt, asyncio.CancelledError):
        output.note("interrupted")
        return 130
    except BrokenPipeError:
        # The reader of stdout, such as `head`, has ended; Python's own flush at exit would fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Failure as error:
        output.failure(error, as_json="--json" in arguments)
        return error.exit_code
    return result if isinstance(result, int) else 0
