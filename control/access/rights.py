"""What an operator may do: pure rules.

An operator has grants: each is a role, for one group or for all of them. A grant of `push` may name the functions that
it covers. What concerns every group, such as an operator for all of them or the deletion of a function, needs a grant
for all groups.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

Role = Literal["read", "push", "deploy", "admin"]
ROLES: dict[Role, int] = {"read": 1, "push": 2, "deploy": 3, "admin": 4}
"""A role includes the rights of roles with a lower number."""
WRITTEN_GRANT = re.compile(r"(?P<role>[a-z]+)(?:@(?P<group>[^\s@()]+))?(?:\s*\((?P<functions>[^()]+)\))?")
"""A grant as people write it and as it is shown: admin, deploy@shops, push@shops (orders, stock)."""


@dataclass(frozen=True)
class Grant:
    """A role for a group and functions; None: for all."""

    role: Role
    group: str | None = None
    functions: frozenset[str] | None = None
    """Only with the role `push`."""

    def __str__(self) -> str:
        group = "" if self.group is None else f"@{self.group}"
        return f"{self.role}{group}" + (f" ({', '.join(sorted(self.functions))})" if self.functions else "")


@dataclass(frozen=True)
class Rights:
    """The grants of one operator."""

    grants: tuple[Grant, ...]

    def allows(self, role: Role, group: str | None, functions: Collection[str] | None = None) -> bool:
        """Return whether the operator has `role` for a group, and for these functions of it; None: for all.

        The role `read` shows all of a group, whatever the functions.
        """
        found = [g for g in self.grants if ROLES[g.role] >= ROLES[role] and g.group in (None, group)]
        if role == "read" or any(g.functions is None for g in found):
            return bool(found)
        named = frozenset[str]().union(*(g.functions or () for g in found))
        return bool(found) and functions is not None and named.issuperset(functions)

    def allows_somewhere(self, role: Role, functions: Collection[str] = ()) -> bool:
        """Return whether the operator has `role` for at least one group, and for these functions of it."""
        return any(self.allows(role, g.group, functions) for g in self.grants)

    def groups(self, role: Role) -> list[str] | None:
        """Return the groups for which the operator has `role`; None: for all."""
        if self.allows(role, None, ()):
            return None
        return sorted({g.group for g in self.grants if g.group is not None and self.allows(role, g.group, ())})

    def may_give(self, grants: Iterable[Grant]) -> bool:
        """Return whether the operator may give these grants to others, or take them away: an admin of their groups may.

        An operator without grants, as one of a provider may be, belongs to no group: only an admin of all groups may.
        """
        groups = {g.group for g in grants} or {None}
        return all(self.allows("admin", group) for group in groups)

    def everywhere(self) -> Role | None:
        """Return the highest role that the operator has for all groups and functions, or None."""
        held = [role for role in ROLES if self.allows(role, None)]
        return held[-1] if held else None

    def __str__(self) -> str:
        return ", ".join(str(g) for g in self.grants) or "no role"


def of_row(role: str, grants: Iterable[Mapping[str, Any]] | None) -> Rights:
    """Return the rights in a row of operators. A row without grants, of an earlier version, has its role everywhere."""
    if grants is None:
        return Rights((Grant(cast(Role, role)),))
    return Rights(
        tuple(
            Grant(g["role"], g["group"], None if g["functions"] is None else frozenset(g["functions"])) for g in grants
        )
    )


def to_rows(rights: Rights) -> list[dict[str, Any]]:
    """Return the column `grants` of a row of operators."""
    return [
        {"role": g.role, "group": g.group, "functions": None if g.functions is None else sorted(g.functions)}
        for g in rights.grants
    ]


def old_role(rights: Rights) -> Role:
    """Return the column `role`, which the previous version of control goes by: it knows neither `push` nor groups."""
    role = rights.everywhere()
    return "read" if role is None or role == "push" else role
