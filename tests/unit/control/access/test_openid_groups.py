"""The file that says what the groups of an OpenID provider may."""

from pathlib import Path

import pytest

from control.access import openid_groups
from control.access.openid_groups import GrantsError

GOOD = """
[groups]
platform = ["admin"]
"/shops/north" = ["read", "deploy@shops-north"]
orders-team = ["push@staging (orders, stock)", "read"]
"""


def read(folder: Path, text: str) -> openid_groups.GroupGrants:
    path = folder / "grants.toml"
    path.write_text(text)
    return openid_groups.read(path)


@pytest.mark.parametrize(
    ("groups", "may"),
    [
        ([], "no role"),
        (["others"], "no role"),
        (["Platform", "platform "], "no role"),
        (["platform"], "admin"),
        (["/shops/north", "x"], "read, deploy@shops-north"),
        (["orders-team", "/shops/north"], "read, deploy@shops-north, push@staging (orders, stock)"),
        (["platform", "platform"], "admin"),
    ],
)
def test_what_somebody_in_these_groups_may(tmp_path: Path, groups: list[str], may: str) -> None:
    assert str(openid_groups.rights(read(tmp_path, GOOD), groups)) == may


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("", "one table"),
        ("groups = 1", "one table"),
        ("[groups]", "one table"),
        ("[groups]\na = ['read']\n[other]", "one table"),
        ("[groups]\na = 'read'", "list of roles"),
        ("[groups]\na = []", "list of roles"),
        ("[groups]\na = [1]", "list of roles"),
        ("[groups]\na = ['boss']", "no role"),
        ("[groups]\na = ['read@']", "no role"),
        ("[groups]\na = ['read, admin']", "no role"),
        ("[groups]\na = ['read@North']", "no name"),
        ("[groups]\na = ['push (Orders)']", "no name"),
        ("[groups]\na = ['deploy (orders)']", "push alone"),
        ("[groups", "can't be read"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, about: str) -> None:
    with pytest.raises(GrantsError, match=about):
        read(tmp_path, text)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(GrantsError, match="can't be read"):
        openid_groups.read(tmp_path / "none.toml")
