"""What a test has left behind is told from what others had open before it."""

from pathlib import Path

from tests.support.returned import descriptors


def test_a_file_that_goes_while_it_is_open_is_no_new_one(tmp_path: Path) -> None:
    path = tmp_path / "skerry.db-shm"
    none = descriptors()
    with path.open("w"):
        before = descriptors()
        path.unlink()
        assert descriptors() == before != none
