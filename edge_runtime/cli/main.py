"""`skerry-edge`: a node's commands. They exit with 0: well, 1: not, 2: wrong call, 3: the node does not run.

`doctor` exits with 4 where there is something to note."""

import gc
import importlib

import click
from click.exceptions import NoSuchCommand

COMMANDS = {
    "join": "node:join_command",
    "run": "run:run",
    "dev": "run:dev",
    "status": "node:status",
    "doctor": "doctor.node_doctor:doctor",
    "settings": "settings:settings",
    "logs": "logs:logs",
    "calls": "calls:calls",
    "check": "node:check",
    "call": "call:call",
    "backup": "backup:backup",
    "restore": "restore:restore",
    "sql": "sql:sql",
    "check-database": "check_database:check_database",
    "caller": "caller:caller",
    "trust": "trust:trust",
    "completion": "completion:completion",
}
"""The module of this folder that has the command, and its name there."""


class Commands(click.Group):
    """The group of commands. It imports a command's module when the command is used: what serves functions must not
    have the database's library, which some others need."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        found = getattr(importlib.import_module(f"edge_runtime.cli.{module}"), name)
        assert isinstance(found, click.Command)  # noqa: S101
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except NoSuchCommand as error:
            # Click knows none of the names, as the modules aren't imported yet.
            raise NoSuchCommand(error.command_name, possibilities=COMMANDS, ctx=ctx) from None


def _show_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from control import version

        click.echo(f"skerry-edge, version {version.told()}")
        context.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version, with its commit.",
)
@click.pass_context
def main(context: click.Context) -> None:
    """A node: it serves functions over local HTTP on its libsql database, and syncs with control."""
    if context.invoked_subcommand not in ("run", "dev", "doctor"):  # these say it themselves, or have been told
        from control import settings_in_force

        for line in settings_in_force.unknown():
            click.echo(f"Warning: {line}", err=True)


if __name__ == "__main__":
    # As in `__main__`.
    gc.set_threshold(50_000)
    main(prog_name="skerry-edge")
