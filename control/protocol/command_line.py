"""The common parts of both command lines: groups of commands, renamed words, durations, `--version`, `completion`."""

import errno
import functools
import importlib
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import click
from click.exceptions import NoSuchCommand

from control.protocol import version

T = TypeVar("T")

SHELLS = ("bash", "zsh", "fish")
SUMMARY = 400
"""The most characters of a command's summary in its group's help: more than any summary has."""
_NOT_THERE = re.compile(r"'(.+)' does not exist\.$")
"""The end of click's message when it refuses a file or a folder."""
_OUTPUT_ERRORS = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""The message of a failed write that names no file."""
UNITS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
"""Milliseconds of each unit."""
_DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)(ms|s|m|h|d)?")


class CommandGroup(click.Group):
    """A group that shows whole summaries of its commands, and accepts the names they had in the previous version."""

    def __init__(self, *args: Any, renamed: Mapping[str, str] | None = None, **more: Any) -> None:
        """Accept old names of commands: `renamed` maps each old name to the new one."""
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
    """A group that imports a command's module only when the command is used: most need little of what others import."""

    def __init__(self, *args: Any, places: Mapping[str, str], **more: Any) -> None:
        """Take `places`: for each command's name its module and its name there, as in `control.cli.status:command`."""
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
            # Click knows none of the names because the modules aren't imported yet.
            raise NoSuchCommand(error.command_name, possibilities=self.list_commands(ctx), ctx=ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.BadParameter as error:
            if (missing := _NOT_THERE.search(error.message)) and (near := _near(Path(missing[1]))):
                text = f"{error.message} Did you mean '{near}'?"
                raise click.BadParameter(text, error.ctx, error.param, error.param_hint) from None
            raise


def warn(old: str, new: str) -> None:
    """Say on stderr that a word was renamed."""
    click.echo(f"Warning: {old} is {new} now; the old word goes with the next version", err=True)


def old_option(old: str, new: str, **how: Any) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Accept the option `old`, which the command's help doesn't show, as `new`. `how` is as for `click.option`."""
    key, kept = (name.lstrip("-").replace("-", "_") for name in (new, old))

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(function)
        def run(**given: Any) -> T:
            value = given.pop(kept)
            if value is not None:
                warn(old, new)
                given[key] = value
            return function(**given)

        return click.option(old, kept, hidden=True, **how)(run)

    return decorate


class DurationType(click.ParamType[float, Any]):
    """A duration, converted to seconds or, with `of="ms"`, to milliseconds.

    `plain`: a number without a unit, which some options took in the previous version, counts as `of`, with a warning.
    """

    name = "duration"

    def __init__(
        self,
        least: float = 0,
        most: float = float("inf"),
        *,
        of: Literal["s", "ms"] = "s",
        whole: bool = False,
        plain: bool = False,
    ) -> None:
        """Accept durations from `least` to `most`, in seconds; with `whole`, only whole numbers."""
        self._least, self._most = least, most
        self._of, self._whole, self._plain = of, whole, plain

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if not isinstance(value, str):
            return float(value)
        found = _DURATION.fullmatch(value)
        if found is None or not (found[2] or self._plain):
            self.fail(f"{value!r} is no duration: a number with ms, s, m, h or d behind it, such as 90d", param, ctx)
        if not found[2]:
            warn(f"a duration without a unit, {value},", f"written with one, {value}{self._of},")
        milliseconds = float(found[1]) * UNITS[found[2] or self._of]
        if not self._least <= milliseconds / 1000 <= self._most:
            most = "" if self._most == float("inf") else f", and {shown_duration(self._most)} at most"
            self.fail(f"{value!r} is out of range: {shown_duration(self._least)} at least{most}", param, ctx)
        made = milliseconds / UNITS[self._of]
        if self._whole and made != int(made):
            self.fail(f"{value!r} is no whole number of {self._of}", param, ctx)
        return int(made) if self._whole else made


def shown_duration(seconds: float) -> str:
    """Return a duration as a user would type it: in the largest unit of which it is a whole number."""
    milliseconds = round(seconds * 1000)
    unit = next(unit for unit in reversed(UNITS) if milliseconds % UNITS[unit] == 0)
    return f"{milliseconds // UNITS[unit]}{unit}" if milliseconds else "0s"


def prepare_output() -> None:
    """Reopen stdout and stderr where they are closed, and let them take any text, whatever their encoding."""
    for name, unknown in (("stdout", "replace"), ("stderr", "backslashreplace")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=unknown)


def output_failure(failed: OSError | None) -> OSError | None:
    """Flush stdout; return why the output can't be written, for instance because the disk is full or the reader exited.

    The rest of the output is then lost. `failed` is the error with which the command ended, which may be the cause.
    """
    found = failed if failed is not None and failed.filename is None and failed.errno in _OUTPUT_ERRORS else None
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python's flush at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return found


def _near(missing: Path) -> str:
    """Return a hint at an existing file or folder with a name similar to the missing one's; '' for none."""
    from difflib import get_close_matches  # here, since hardly any command needs it

    try:
        near = get_close_matches(missing.name, sorted(os.listdir(missing.parent)), 1, 0.75)
    except OSError:
        return ""
    return str(missing.parent / near[0]) if near else ""


def version_option(program: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option `--version` of the program of this name."""

    def show(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
        if wanted:
            click.echo(f"{program}, version {version.told()}")
            context.exit()

    text = "Show the version, with its commit."
    return click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=show, help=text)


def completion(program: str) -> click.Command:
    """Return the command `completion` of the program of this name."""

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
