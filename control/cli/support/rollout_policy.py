"""Policies of rollouts: read from a TOML file, shown as TOML, and in one line as what a release does."""

import re
from pathlib import Path
from typing import Any

import click
import msgspec
import orjson

from control.cli.support.client import Json
from control.problems import ProblemError
from control.protocol.manifest import unfit
from control.protocol.wire import Body
from control.rollouts.policy import Policy, rules_of


class PolicyFile(Body, frozen=True):
    """The content of a file with a policy."""

    rollout: Policy


def read(file: Path) -> Json:
    """Return the policy in a file's table `[rollout]`, for the body of a request.

    Raises: UsageError, when the file can't be read, or control would refuse the policy; it names the file and the
    field.
    """
    try:
        found = msgspec.toml.decode(file.read_bytes(), type=PolicyFile)
        rules_of(found.rollout)
    except msgspec.ValidationError as error:
        text = unfit(error, PolicyFile).replace("`$.", "`").replace("Object", "The file")
        if re.search(r"`str.*got `(int|float)`", text):
            text += "; write it in quotes, with its unit if it has one"
        raise click.UsageError(f"the policy {file} isn't valid: {text}") from error
    except (OSError, ValueError, msgspec.DecodeError) as error:
        raise click.UsageError(f"the policy {file} can't be read: {error}") from error
    except ProblemError as error:
        raise click.UsageError(f"the policy {file} isn't valid: rollout.{error.field}: {error.detail}") from error
    made: Json = msgspec.to_builtins(found.rollout)
    return made


def as_toml(policy: Json) -> str:
    """Return a policy, as control has it, as the text of a file."""
    plain = {name: value for name, value in policy.items() if name != "gate" and value is not None}
    lines = ["[rollout]", *_assignments(plain)]
    for gate in policy.get("gate") or []:
        lines += ["", "[[rollout.gate]]", *_assignments(gate)]
    return "\n".join(lines) + "\n"


def _assignments(table: Json) -> list[str]:
    return [f"{name} = {_value(value)}" for name, value in table.items() if value is not None]


def _value(value: Any) -> str:
    """Return a value as TOML, whose strings are written as those of JSON, but for one character."""
    if isinstance(value, dict):
        return f"{{ {', '.join(_assignments(value))} }}"
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    return orjson.dumps(value).decode().replace("\x7f", "\\u007f")
