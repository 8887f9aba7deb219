"""`skerry-edge`: a node's commands. They exit with 0: well, 1: not, 2: wrong call, 3: the node does not run."""

import click

from edge_runtime.cli.backup import backup
from edge_runtime.cli.call import call
from edge_runtime.cli.caller import caller
from edge_runtime.cli.check_database import check_database
from edge_runtime.cli.node import check, join_command, status
from edge_runtime.cli.restore import restore
from edge_runtime.cli.run import dev, run
from edge_runtime.cli.sql import sql


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="skerry")
def main() -> None:
    """A node: it serves functions over local HTTP on its libsql database, and syncs with control."""


main.add_command(join_command)
main.add_command(run)
main.add_command(dev)
main.add_command(status)
main.add_command(check)
main.add_command(call)
main.add_command(backup)
main.add_command(restore)
main.add_command(sql)
main.add_command(check_database)
main.add_command(caller)

if __name__ == "__main__":
    main(prog_name="skerry-edge")
