"""A program's group of commands, its `--version` and its `completion`."""

import errno
import importlib
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from click.exceptions import NoSuchCommand

from control.protocol import version
from control.protocol.renamed_options import warn

SHELLS = ("bash", "zsh", "fish")
SUMMARY = 400
"""Characters of a command's summary in the help of its group, at most: more than any has."""
_NOT_THERE = re.compile(r"'(.+)' does not exist\.$")
"""How click ends its refusal of a file or a folder."""
_OUTPUT_ERRORS = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""How a write fails that names no file."""


class CommandGroup(click.Group):
    """A group that shows whole summaries of its commands, and knows words that they had in the version before."""

    def __init__(self, *args: Any, renamed: Mapping[str, str] | None = None, **more: Any) -> None:
        """`renamed` has the new word by the old one."""
        super().__init__(*args, **more)
        self._renamed = renamed or {}

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in self._renamed:
            new = self._renamed[args[0]]
            warn(f"{ctx.command_path} {args[0]}", f"{ctx.command_path} {new}")
            args = [new, *args[1:]]
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                # Click would cut what doesn't fit on one line.
                rows.append((name, command.get_short_help_str(SUMMARY)))
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


class LazyGroup(CommandGroup):
    """A group that imports a command's module when the command is used: most need little of what others import."""

    def __init__(self, *args: Any, places: Mapping[str, str], **more: Any) -> None:
        """`places` has, by the name of each command, its module and its name there, as `control.cli.status:command`."""
        super().__init__(*args, **more)
        self._places = places

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self._places, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._places:
            return super().get_command(ctx, cmd_name)
        module, _, name = self._places[cmd_name].partition(":")
        found = getattr(importlib.import_module(module), name)
        assert isinstance(found, click.Command)  # noqa: S101
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except NoSuchCommand as error:
            # Click knows none of the names, as the modules aren't imported yet.
            raise NoSuchCommand(error.command_name, possibilities=self.list_commands(ctx), ctx=ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.BadParameter as error:
            if (missing := _NOT_THERE.search(error.message)) and (near := _near(Path(missing[1]))):
                text = f"{error.message} Did you mean '{near}'?"
                raise click.BadParameter(text, error.ctx, error.param, error.param_hint) from None
            raise


def prepare_output() -> None:
    """Have stdout and stderr be there, where they are closed, and take any text, whatever encoding they have."""
    for name, unknown in (("stdout", "replace"), ("stderr", "backslashreplace")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=unknown)


def output_failure(failed: OSError | None) -> OSError | None:
    """Write what waits for stdout; return why the output can't be written, as where the disk is full or the reader has
    ended. What is left of it is lost then. `failed`: what the command has ended with, which may be that.
    """
    found = failed if failed is not None and failed.filename is None and failed.errno in _OUTPUT_ERRORS else None
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python's own flush at exit would fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return found


def _near(missing: Path) -> str:
    """Return what is there in the place of a file or folder that isn't, under a name like it; '' for nothing."""
    from difflib import get_close_matches  # here, since hardly any command needs it

    try:
        near = get_close_matches(missing.name, sorted(os.listdir(missing.parent)), 1, 0.75)
    except OSError:
        return ""
    return str(missing.parent / near[0]) if near else ""


def version_option(program: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option `--version` of the program of this name."""

    def show(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
        if wanted:
            click.echo(f"{program}, version {version.told()}")
            context.exit()

    text = "Show the version, with its commit."
    return click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=show, help=text)


def completion(program: str) -> click.Command:
    """The command `completion` of the program of this name."""

    def show(shell: str | None) -> None:
        from click.shell_completion import get_completion_class

        name = shell or Path(os.environ.get("SHELL", "")).name
        kind = get_completion_class(name) if name in SHELLS else None
        if kind is None:
            raise click.UsageError(f"$SHELL is no shell that this knows: name one, {', '.join(SHELLS)}")
        root = click.get_current_context().find_root().command
        click.echo(kind(root, {}, program, f"_{program.upper().replace('-', '_')}_COMPLETE").source())

    text = f"""
    Print what has a shell complete commands, options and values; without SHELL, for the one that $SHELL names.

    \b
    bash, in ~/.bashrc:                    eval "$({program} completion bash)"
    zsh, in ~/.zshrc (behind compinit):    eval "$({program} completion zsh)"
    fish, in ~/.config/fish/config.fish:   {program} completion fish | source
    """
    argument = click.Argument(["shell"], type=click.Choice(SHELLS), required=False)
    return click.Command("completion", params=[argument], callback=show, help=inspect.cleandoc(text))
