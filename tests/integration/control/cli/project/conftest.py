"""What the tests of `skerry test` share: a project, and where its compiled modules are kept."""

from pathlib import Path

import pytest

from tests.guests.build import guest
from tests.support.cases_project import Folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where compiled modules are kept, for all of these tests: each is compiled once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def project(tmp_path: Path, cache: Path) -> Folder:
    """A project of one function, which runs the SQL that it is sent."""
    made = Folder(tmp_path / "notes", cache)
    made.function("notes", guest("sql"), top='schema = "schema"')
    made.schema()
    return made
