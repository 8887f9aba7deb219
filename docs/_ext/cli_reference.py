"""Markdown of every command of `skerry` and `skerry-edge`, from the structure that their own `--help` is made of."""

import re
from collections.abc import Iterator

import click

from control.cli import main as cli
from edge_runtime.cli.main import main as edge


def markdown() -> str:
    lines: list[str] = []
    for name, command in (("skerry", cli.skerry), ("skerry-edge", edge)):
        context = click.Context(command, info_name=name)
        lines += [f"## {name}", "", *_described(context), ""]
        for inner in _commands(context):
            lines += [f"### {inner.command_path}", "", *_described(inner), ""]
    return "\n".join(lines)


def text(plain: str) -> str:
    """Plain text of the program's as Markdown: what is between backticks is code, and nothing else means anything."""
    parts = re.split(r"(``[^`]+``|`[^`]+`)", plain)
    return "".join(
        part if index % 2 else re.sub(r"([\\*_{}\[\]<>|#~$])", r"\\\1", part) for index, part in enumerate(parts)
    )


def _commands(context: click.Context) -> Iterator[click.Context]:
    """Each command below a group, in the order of its help, those of inner groups behind the group itself."""
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            if command is not None and not command.hidden:
                inner = click.Context(command, parent=context, info_name=name)
                yield inner
                yield from _commands(inner)


def _described(context: click.Context) -> Iterator[str]:
    command = context.command
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield from ("```text", usage, "```", "")
    for paragraph in re.split(r"\n\s*\n", (command.help or "").replace("\f", "").strip()):
        if paragraph.startswith("\b"):
            yield from ("```text", *paragraph.splitlines()[1:], "```", "")
        else:
            yield from (text(" ".join(paragraph.split())), "")
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and "--help" not in parameter.opts:
            meaning = text(" ".join(record[1].split()))
            yield f"- `{record[0]}`" + (f": {meaning}" if meaning else "")
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None and not inner.hidden:
                anchor = f"{context.command_path} {name}".replace(" ", "-")
                yield f"- [`{name}`](#{anchor}): {text(inner.get_short_help_str(200))}"
