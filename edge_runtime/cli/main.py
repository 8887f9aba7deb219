"""`skerry-edge`: a node's commands. They exit with 0: well, 1: not, 2: wrong call, 3: the node does not run.

`doctor` exits with 4 where there is something to note."""

import gc

import click

from control.protocol.command_line import LazyGroup, completion, version_option

COMMANDS = {
    "join": "edge_runtime.cli.join:join_command",
    "run": "edge_runtime.cli.run:run",
    "dev": "edge_runtime.cli.run:dev",
    "status": "edge_runtime.cli.status:status",
    "doctor": "edge_runtime.cli.doctor.node_doctor:doctor",
    "settings": "edge_runtime.cli.settings:settings",
    "logs": "edge_runtime.cli.logs:logs",
    "calls": "edge_runtime.cli.calls:calls",
    "check": "edge_runtime.cli.check:check",
    "call": "edge_runtime.cli.call:call",
    "backup": "edge_runtime.cli.backup:backup",
    "restore": "edge_runtime.cli.restore:restore",
    "sql": "edge_runtime.cli.sql:sql",
    "check-database": "edge_runtime.cli.check_database:check_database",
    "caller": "edge_runtime.cli.caller:caller",
    "trust": "edge_runtime.cli.trust:trust",
}
"""The module of each command, and its name there. They are imported on use: the process that serves functions must not
load the database's library, which some other commands need."""


@click.group(
    cls=LazyGroup, places=COMMANDS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@version_option("skerry-edge")
@click.pass_context
def main(context: click.Context) -> None:
    """A node: it serves functions over local HTTP on its libsql database, and syncs with control."""
    if context.invoked_subcommand not in ("run", "dev", "doctor"):  # these report it, or have reported it
        from control.protocol import settings_in_force

        for line in settings_in_force.unknown():
            click.echo(f"Warning: {line}", err=True)


main.add_command(completion("skerry-edge"))

if __name__ == "__main__":
    # As in `__main__`.
    gc.set_threshold(50_000)
    main(prog_name="skerry-edge")
