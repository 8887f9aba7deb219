"""`skerry-edge`: a node's commands. Their exit codes: 0 done and well, 1 not done or not well, 2 wrong call, 3 not running."""

import click

from .commands import check, join, status


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="skerry")
def main() -> None:
    """A node: it serves functions over local HTTP on its libsql database, and syncs with control."""


main.add_command(join)
main.add_command(status)
main.add_command(check)

if __name__ == "__main__":
    main(prog_name="skerry-edge")
