"""The lists of `skerry`, each declared with its path at control, the columns of its table, and its filters."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import click

from control.cli.support import options, output
from control.cli.support.client import path

Option = Callable[[Callable[..., Any]], Callable[..., Any]]


def list_command(
    where: str,
    text: str,
    columns: output.Columns,
    empty: str,
    *filters: Option,
    name: str = "list",
    newest: bool = False,
) -> click.Command:
    """Return a command that lists what control has below a path, with `--json`.

    `text` is its help, and `empty` the line for an empty list. Each of `filters` is an option that becomes a query
    parameter of the same name. With `newest`, the command lists the newest 20 items, or as many as `--limit` says.
    """

    @options.asynchronous
    async def run(as_json: bool, limit: int | None = None, **query: Any) -> None:
        given = {name: output.rfc3339(v) if isinstance(v, datetime) else v for name, v in query.items()}
        async with options.client() as control:
            found = await control.items(path(where), most=limit, **given)
        output.listed(found, columns, empty, as_json=as_json)

    command: Callable[..., Any] = run
    for option in reversed([*filters, *([options.limit_option] if newest else []), options.json_option]):
        command = option(command)
    return click.command(name, help=text)(command)


def ago(field: str) -> Callable[[dict[str, Any]], str]:
    """Return a column that shows how long ago the time in a field was, or how far away it is."""
    return lambda item: output.ago(item.get(field))
