"""What an operator may, as rules: more grants never allow less, and nobody gives more than it has."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.access import rights
from control.access.rights import ROLES, Grant, Rights, Role

GROUPS = st.sampled_from([None, "north", "south"])
FUNCTIONS = st.frozensets(st.sampled_from(["a", "b", "c"]))
NEEDED = st.none() | FUNCTIONS
ROLE = st.sampled_from(list(ROLES))


@st.composite
def grants(draw: Any) -> Grant:
    role: Role = draw(ROLE)
    functions = draw(st.none() | FUNCTIONS.filter(bool)) if role == "push" else None
    return Grant(role, draw(GROUPS), functions)


RIGHTS = st.lists(grants(), max_size=4).map(lambda found: Rights(tuple(found)))


def test_a_grant_that_is_asked_for_no_function_names_none() -> None:
    assert str(Grant("push", "north", frozenset())) == "push@north"
    assert str(Grant("push", "north", frozenset({"a", "b"}))) == "push@north (a, b)"


@pytest.mark.parametrize(
    ("held", "role", "group", "functions", "allowed"),
    [
        (Grant("deploy", "north"), "deploy", "north", None, True),
        (Grant("deploy", "north"), "deploy", "south", None, False),
        (Grant("deploy", "north"), "deploy", None, None, False),
        (Grant("deploy"), "deploy", "north", None, True),
        (Grant("deploy"), "admin", "north", None, False),
        (Grant("push", "north", frozenset("a")), "push", "north", {"a"}, True),
        (Grant("push", "north", frozenset("a")), "push", "north", {"a", "b"}, False),
        (Grant("push", "north", frozenset("a")), "push", "north", None, False),
        (Grant("push", "north", frozenset("a")), "read", "north", None, True),
        (Grant("push", "north", frozenset("a")), "read", "south", None, False),
        (Grant("push", "north"), "push", "north", {"b"}, True),
    ],
)
def test_what_one_grant_allows(held: Grant, role: Role, group: str | None, functions: Any, allowed: bool) -> None:
    assert Rights((held,)).allows(role, group, functions) is allowed


@given(RIGHTS, grants(), ROLE, GROUPS, NEEDED)
def test_another_grant_takes_nothing_away(held: Rights, more: Grant, role: Role, group: Any, functions: Any) -> None:
    if held.allows(role, group, functions):
        assert Rights((*held.grants, more)).allows(role, group, functions)
        assert Rights((more, *held.grants)).allows(role, group, functions)


@given(RIGHTS, ROLE, GROUPS, NEEDED, FUNCTIONS)
def test_what_is_allowed_implies_what_is_less(held: Rights, role: Role, group: Any, functions: Any, some: Any) -> None:
    if not held.allows(role, group, functions):
        return
    for lower in ROLES:
        if ROLES[lower] <= ROLES[role]:
            assert held.allows(lower, group, functions)
    if group is None:
        assert held.allows(role, "anything", functions)
    if functions is None:
        assert held.allows(role, group, some)
    assert held.allows_somewhere(role, functions or ())
    listed = held.groups(role)
    assert listed is None or group in listed


@given(RIGHTS, ROLE)
def test_the_groups_are_those_that_are_allowed(held: Rights, role: Role) -> None:
    listed = held.groups(role)
    for group in ("north", "south", "other"):
        assert held.allows(role, group, ()) is (listed is None or group in listed)


@given(RIGHTS, ROLE, FUNCTIONS)
def test_somewhere_is_one_of_the_groups(held: Rights, role: Role, functions: Any) -> None:
    allowed = [held.allows(role, group, functions) for group in (None, "north", "south")]
    assert held.allows_somewhere(role, functions) is any(allowed)


@given(RIGHTS, RIGHTS, ROLE, GROUPS, NEEDED)
def test_nobody_gives_more_than_it_has(giver: Rights, gift: Rights, role: Role, group: Any, functions: Any) -> None:
    if giver.may_give(gift.grants) and gift.allows(role, group, functions):
        assert giver.allows(role, group, functions)


def test_only_an_admin_of_a_group_gives_rights_in_it() -> None:
    """Whoever may deploy to a group lets nobody else do so."""
    assert not Rights((Grant("admin", "north"), Grant("deploy", "south"))).may_give([Grant("read", "south")])


def test_who_has_no_grant_is_for_an_admin_of_all_groups() -> None:
    assert [Rights((held,)).may_give([]) for held in (Grant("admin", "north"), Grant("admin"))] == [False, True]


@given(RIGHTS)
def test_rights_are_kept_as_they_are(held: Rights) -> None:
    assert rights.of_row(rights.old_role(held), rights.to_rows(held)) == held


@given(RIGHTS)
def test_control_of_the_version_before_gives_nobody_a_higher_role(held: Rights) -> None:
    """But for `read`, which it has no role below. It doesn't know `push`."""
    old = rights.old_role(held)
    assert old in ("read", "deploy", "admin")
    assert old == "read" or held.allows(old, None)
    assert (old == "admin") is held.allows("admin", None)


def test_an_operator_of_an_earlier_version_has_its_role_everywhere() -> None:
    assert rights.of_row("deploy", None) == Rights((Grant("deploy"),))
    assert Rights((Grant("deploy"),)).everywhere() == "deploy"
    assert Rights((Grant("deploy", "north"),)).everywhere() is None


def test_rights_as_texts() -> None:
    held = Rights((Grant("read"), Grant("push", "north", frozenset(("b", "a")))))
    assert str(held) == "read, push@north (a, b)"
    assert str(Rights(())) == "no role"
    assert str(Grant("push", "north", frozenset())) == "push@north"
