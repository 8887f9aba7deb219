"""`skerry completion`: the script by which a shell completes the words of `skerry`."""

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS), required=False)
@click.pass_context
def command(context: click.Context, shell: str | None) -> None:
    """Print what has a shell complete commands, options and values; without SHELL, for the one that $SHELL names.

    \b
    bash, in ~/.bashrc:                    eval "$(skerry completion bash)"
    zsh, in ~/.zshrc (behind compinit):    eval "$(skerry completion zsh)"
    fish, in ~/.config/fish/config.fish:   skerry completion fish | source
    """
    name = shell or Path(os.environ.get("SHELL", "")).name
    kind = get_completion_class(name) if name in SHELLS else None
    if kind is None:
        raise click.UsageError(f"$SHELL is no shell that this knows: name one, {', '.join(SHELLS)}")
    click.echo(kind(context.find_root().command, {}, "skerry", "_SKERRY_COMPLETE").source())
