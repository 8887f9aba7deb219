"""Keys of backups' objects: each is read as it was made, and nothing else is one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.backups import objects
from control.backups.objects import BackupFile, BackupObject

NODE = "01234567-89ab-4def-8123-456789abcdef"
LINEAGE = "0123456789abcdef" * 2
KEY = f"backups/{NODE}/{LINEAGE}/ltx/0/0000000000000002-0000000000000003.ltx"


@st.composite
def files(draw: st.DrawFn) -> BackupFile:
    level = draw(st.sampled_from(objects.LEVELS))
    first = 1 if level == objects.SNAPSHOT else draw(st.integers(1, 2**63 - 1))
    return BackupFile(level, first, draw(st.integers(first, 2**63 - 1)), draw(st.integers(0, 2**40)))


@given(st.uuids(), st.uuids(), files())
def test_a_key_is_read_as_it_was_made(node: object, lineage: object, file: BackupFile) -> None:
    made = objects.key(str(node), str(lineage).replace("-", ""), file)
    assert objects.parse(made, file.size) == BackupObject(str(node), str(lineage).replace("-", ""), file)
    assert objects.parse_name(file.name, file.size) == file


@given(st.text(max_size=3), st.integers(0, len(KEY)), st.integers(0, 3))
def test_a_key_that_is_almost_one_is_read_as_itself_or_not_at_all(text: str, at: int, dropped: int) -> None:
    key = KEY[:at] + text + KEY[at + dropped :]
    found = objects.parse(key)
    assert found is None or objects.key(found.node, found.lineage, found.file) == key


@pytest.mark.parametrize(
    "key",
    [
        "",
        KEY + "\n",
        KEY.replace("backups", "backup"),
        KEY.replace("/0/", "/3/"),
        KEY.replace("/0/", "/00/"),
        KEY.replace("/0/", "//"),
        KEY.replace("/0/", "/9/"),
        KEY.replace("/0/", "/../0/"),
        KEY.replace(LINEAGE, LINEAGE.upper()),
        KEY.replace(LINEAGE, ".."),
        KEY.replace(NODE, NODE + "/x"),
        KEY.replace(NODE, "\N{ARABIC-INDIC DIGIT ONE}" + NODE[1:]),
        KEY.replace("3.ltx", "1.ltx"),
        KEY.replace("/0/", "/\N{SUPERSCRIPT TWO}/"),
    ],
)
def test_hostile_keys_name_nothing(key: str) -> None:
    assert objects.parse(key) is None


@pytest.mark.parametrize(("node", "lineage"), [("..", ""), (NODE, ".."), (NODE, LINEAGE + "/"), (NODE + "\n", "")])
def test_no_prefix_is_made_of_what_is_none(node: str, lineage: str) -> None:
    with pytest.raises(ValueError, match="no backup"):
        objects.prefix(node, lineage)


def test_only_a_lineages_own_files_are_its_files() -> None:
    listed = [(KEY, 5), (KEY.replace(LINEAGE, "f" * 32), 5), (KEY.replace(NODE, "f" + NODE[1:]), 5), (KEY + "x", 5)]
    assert objects.files_of(listed, NODE, LINEAGE) == [BackupFile(0, 2, 3, 5)]
