"""Words that commands had in the version before: they go on for one version, with a warning that names the new one."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

T = TypeVar("T")


def warn(old: str, new: str) -> None:
    """Say on stderr that a word is another one now."""
    click.echo(f"Warning: {old} is {new} now; the old word goes with the next version", err=True)


def old_option(old: str, new: str, **how: Any) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Have a command take the option `old`, which its help doesn't show, as `new`. `how`: as of `click.option`."""
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
