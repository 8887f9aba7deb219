"""The building blocks of commands: shared options, types of their values, the client, and how they run and end."""

import asyncio
import functools
import signal
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import click

from control.cli.support import output
from control.cli.support.client import Client, Json, connection_settings
from control.protocol import wire
from control.protocol.command_line import DurationType

P = ParamSpec("P")
T = TypeVar("T")
UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
F = TypeVar("F", bound=Callable[..., Any])


def client() -> Client:
    """Return a client of the control that the environment or `skerry up` names.

    Raises: NotConnected, when neither names one.
    """
    return Client(connection_settings())


class NameType(click.ParamType[str, str]):
    """A name of a node, group, function or operator; what control would refuse is a usage error."""

    name = "name"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not wire.NAME.fullmatch(value):
            name, _, version = value.partition("@")
            if version.isdecimal() and wire.NAME.fullmatch(name):
                self.fail(f"{value!r} is one version: this takes the function's name alone, {name}", param, ctx)
            self.fail(f"{value!r} is no name: lower case letters, digits and hyphens, 63 at most", param, ctx)
        return value


class VersionedType(click.ParamType[tuple[str, int | None], Any]):
    """A function's name, alone or with a version, NAME@VERSION, as it is printed."""

    name = "name[@version]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int | None]:
        if isinstance(value, tuple):
            return value[0], value[1]
        name, at, number = value.partition("@")
        name = NAME.convert(name, param, ctx)
        if at and not (number.isdecimal() and number.isascii() and int(number)):
            self.fail(f"{value!r} has no number of a version behind the @, as in {name}@2", param, ctx)
        return name, int(number) if at else None


class TimeType(click.ParamType[datetime, str]):
    """A date or a time of ISO 8601 (without an offset: this machine's), or how long ago it was, such as 2d or 30m."""

    name = "time"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            if value[-1:] in UNITS and value[:-1].isdecimal():
                return datetime.now(UTC) - timedelta(**{UNITS[value[-1]]: int(value[:-1])})
            return datetime.fromisoformat(value).astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is no time: 2026-11-27, 2026-11-27T18:00, or a time ago such as 2d, 3h, 30m", param, ctx
            )


class PairType(click.ParamType[tuple[str, str], Any]):
    """A key and a value, written KEY=VALUE."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value[0], value[1]
        key, equals, rest = value.partition("=")
        if not equals or not key:
            self.fail(f"{value!r} isn't KEY=VALUE", param, ctx)
        return key, rest


NAME = NameType()
TIME = TimeType()
VERSIONED = VersionedType()
PAIR = PairType()


def one_version(named: tuple[str, int | None], version: int | None) -> tuple[str, int | None]:
    """Return the name and version in `NAME@VERSION` or `NAME VERSION`.

    Raises: UsageError, when the two say different versions.
    """
    if None not in (named[1], version) and named[1] != version:
        raise click.UsageError(f"{named[0]}@{named[1]} and version {version} are two versions: name one")
    return named[0], named[1] if version is None else version


def asynchronous(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Make a coroutine function callable for click: each call runs its own event loop."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return asyncio.run(function(*args, **kwargs))

    return run


class EndOnce:
    """Ends a command cleanly at the first signal; prints a line at the second one, and ignores later ones."""

    def __init__(self, running: asyncio.Task[Any]) -> None:
        self._running = running
        self._times = 0

    def asked(self) -> None:
        self._times += 1
        if self._times == 1:
            self._running.cancel()
        elif self._times == 2:
            output.note("everything is ending already: what takes longer than some seconds is killed")


def end_once() -> None:
    """Have the running command end cleanly at the first SIGINT (Ctrl-C), SIGTERM or SIGHUP.

    The handlers are those of the process, not the loop: a closing loop gives SIGINT back to Python, and a late Ctrl-C
    would then report a command that has ended cleanly as interrupted.
    """
    running = asyncio.current_task()
    assert running is not None  # noqa: S101
    loop, end = asyncio.get_running_loop(), EndOnce(running)

    def handle(number: int, frame: object) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(end.asked)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handle)


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document, for scripts.")(function)


def yes_option(function: F) -> F:
    return click.option("--yes", is_flag=True, help="Don't ask.")(function)


def confirm(question: str, yes: bool) -> None:
    """Ask for confirmation before an irreversible action, unless `yes`. Raises: Abort, when the answer isn't yes."""
    if not yes:
        click.confirm(question, abort=True, err=True)


def folder_argument(function: F) -> F:
    kind = click.Path(exists=True, file_okay=False, path_type=Path)
    return click.argument("folder", type=kind, default=".", metavar="[FOLDER]")(function)


def limit_option(function: F) -> F:
    return click.option(
        "--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="The newest so many."
    )(function)


def schema_option(function: F) -> F:
    text = "The schema floor; without it the newest change, or the one to which the group's floor was lowered."
    return click.option("--schema", type=click.IntRange(min=0), metavar="N", help=text)(function)


def group_option(function: F) -> F:
    return click.option(
        "--group", type=NAME, default="default", show_default=True, help="The group whose release it concerns."
    )(function)


def plan_option(function: F) -> F:
    return click.option("--plan", is_flag=True, help="Only show what it would change.")(function)


class ReleaseWait(NamedTuple):
    """How to wait for the nodes of a release."""

    within: float
    """Maximum seconds."""
    offline_too: bool
    """Whether to wait also for offline nodes."""


ALLOWED = {
    "allow_unfit": "Also where nodes can't run it: they refuse it and serve their old release.",
    "allow_loss": "Also where schema changes can lose rows that nodes have.",
    "allow_stall": "Also where schema changes hold writers of nodes up for long.",
}
"""Fields of a request and their options, which allow what is otherwise refused."""


def change_options(function: Callable[..., T]) -> Callable[..., T]:
    """Add the options of a command that changes what nodes run.

    The command is called with `plan`, and with `allowed`: the fields of `ALLOWED` that were given, each True, for the
    body of its request. The others are left out, since an older control refuses a field that it doesn't know.
    """

    @functools.wraps(function)
    def run(**given: Any) -> T:
        return function(allowed={name: True for name in ALLOWED if given.pop(name)}, **given)

    for name, text in reversed(ALLOWED.items()):
        run = click.option(f"--{name.replace('_', '-')}", is_flag=True, help=text)(run)
    return plan_option(run)


def release_options(function: Callable[..., T]) -> Callable[..., T]:
    """Add the options of a command that makes a release.

    Besides those of `change_options` and `rollout_options`, the command gets `reason` and `waited`: how to wait for the
    release, None to not wait. With --plan, or the command's own --no-release, there is no release to wait for.
    """

    @functools.wraps(function)
    def run(wait: bool, within: float, offline_too: bool, **given: Any) -> T:
        waited = ReleaseWait(within, offline_too) if wait or offline_too else None
        if waited and given["plan"]:
            raise click.UsageError("--plan makes no release, so there is nothing to --wait for")
        if waited and given.get("no_release"):
            raise click.UsageError("--wait follows a release, and --no-release makes none")
        return function(waited=waited, **given)

    for option in (
        click.option(
            "--timeout",
            "within",
            type=DurationType(0.1, plain=True),
            default="5m",
            show_default=True,
            help="How long to --wait.",
        ),
        click.option(
            "--wait-for-offline", "offline_too", is_flag=True, help="--wait, and for nodes that are offline, too."
        ),
        click.option(
            "--wait",
            is_flag=True,
            help="Show the nodes as they arrive; exit with 5 if one failed or was late, or the rollout pauses, with 6 "
            "if one is offline.",
        ),
    ):
        run = option(run)
    return change_options(rollout_options(reason_option(run)))


def reason_option(function: F) -> F:
    text = "Why, for the ones who read the list of releases later."
    return click.option("--reason", default="", help=text)(function)


def rollout_options(function: Callable[..., T]) -> Callable[..., T]:
    """Add the options that say how a release goes out.

    The command is called with `rollout`: the fields for the body of its request, `rollout` or `now`; empty without the
    options, since an older control refuses a field that it doesn't know.
    """

    @functools.wraps(function)
    def run(now: bool, policy: Json, **given: Any) -> T:
        if now and policy:
            raise click.UsageError("--now leaves steps out, and --policy says which: give one of them")
        if (now or policy) and given.get("no_release"):
            raise click.UsageError("--policy and --now are about a release, and --no-release makes none")
        return function(rollout={"now": True} if now else policy, **given)

    text = "To all nodes at once, without a rehearsal and steps; the audit log says so."
    return policy_option(click.option("--now", is_flag=True, help=text)(run))


def policy_option(function: Callable[..., T]) -> Callable[..., T]:
    """Add --policy. The command is called with `policy`: the field `rollout` for its body, or nothing without it."""

    @functools.wraps(function)
    def run(policy_file: Path | None, **given: Any) -> T:
        from control.cli.support import rollout_policy  # here, since few commands are given one

        return function(policy={} if policy_file is None else {"rollout": rollout_policy.read(policy_file)}, **given)

    return click.option(
        "--policy",
        "policy_file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="How it goes out: a TOML file with a table [rollout], in place of the group's policy.",
    )(run)
