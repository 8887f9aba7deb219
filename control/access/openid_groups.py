"""What members of an OpenID provider's groups may do: a TOML file names the grants of each. Pure but for reading it.

[groups]
platform = ["admin"]
"/shops/north" = ["read", "deploy@shops-north"]
orders-team = ["push@staging (orders, stock)"]
"""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import get_args

from control.access.rights import WRITTEN_GRANT, Grant, Rights, Role
from control.protocol import wire

GroupGrants = Mapping[str, tuple[Grant, ...]]
"""The grants of each of the provider's groups."""


class GrantsError(Exception):
    """The file of grants can't be read, or has a mistake; the message says where."""


def read(path: Path) -> GroupGrants:
    """Read the grants of a file. Raises: GrantsError."""
    try:
        kept = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise GrantsError(f"{path} can't be read: {error}") from error
    groups = kept.pop("groups", None)
    if kept or not isinstance(groups, dict) or not groups:
        raise GrantsError(f"{path} must have one table, [groups], with a list of roles for each group of the provider")
    made = {}
    for name, texts in groups.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise GrantsError(f'{path}: the group {name!r} must have a list of roles, as ["read", "deploy@shops"]')
        made[name] = tuple(_grant(path, name, text) for text in texts)
    return made


def rights(granted: GroupGrants, groups: Iterable[str]) -> Rights:
    """Return what somebody in these groups may do; groups that the file doesn't name give nothing."""
    found = dict.fromkeys(grant for name in sorted(set(groups)) for grant in granted.get(name, ()))
    return Rights(tuple(found))


def _grant(path: Path, name: str, text: str) -> Grant:
    match = WRITTEN_GRANT.fullmatch(text)
    if match is None or match["role"] not in get_args(Role):
        raise GrantsError(
            f"{path}: {text!r} of the group {name!r} is no role: {', '.join(get_args(Role))}, each perhaps with "
            "@GROUP, and push with functions in parentheses behind it"
        )
    role: Role = next(role for role in get_args(Role) if role == match["role"])
    functions = None if match["functions"] is None else frozenset(f.strip() for f in match["functions"].split(","))
    for wanted in (*([match["group"]] if match["group"] else ()), *(functions or ())):
        if not wire.NAME.fullmatch(wanted):
            raise GrantsError(f"{path}: {wanted!r} of the group {name!r} is no name of a group or function of Skerry's")
    if functions is not None and role != "push":
        raise GrantsError(f"{path}: {text!r} of the group {name!r}: push alone is given for some functions")
    return Grant(role, match["group"], functions)
