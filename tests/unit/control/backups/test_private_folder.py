"""The folder in the spool that a replica makes databases in, and those that killed replicas have left."""

import os
from pathlib import Path

from control.backups import builder
from control.backups.builder import private_folder


def old(folder: Path) -> None:
    """Make a folder look older than one that may not be locked yet."""
    long_ago = folder.stat().st_mtime - 2 * builder.YOUNG
    os.utime(folder, (long_ago, long_ago))


def test_a_replica_has_a_folder_of_its_own_until_it_ends(tmp_path: Path) -> None:
    with private_folder(tmp_path) as folder:
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "file").write_text("rows")
    assert list(tmp_path.iterdir()) == []


def test_what_killed_replicas_have_left_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    left, young, others, elsewhere = (
        tmp_path / f"{builder.PRIVATE}left",
        tmp_path / f"{builder.PRIVATE}young",
        tmp_path / "others",
        tmp_path / "elsewhere",
    )
    for folder in (left, young, others, elsewhere):
        folder.mkdir()
        (folder / "file").write_text("rows")
    link = tmp_path / f"{builder.PRIVATE}link"
    link.symlink_to(elsewhere)
    os.utime(link, (0, 0), follow_symlinks=False)
    with private_folder(tmp_path) as alive:
        for folder in (left, others, elsewhere, alive):
            old(folder)
        with private_folder(tmp_path) as mine:
            assert set(tmp_path.iterdir()) == {young, others, elsewhere, link, alive, mine}
            assert (elsewhere / "file").exists()


def test_without_room_it_is_the_spool_itself(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with private_folder(missing) as folder:
        assert folder == missing
