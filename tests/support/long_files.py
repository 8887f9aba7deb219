"""Which test files take long: they are begun first, so that no process of pytest-xdist works minutes after the others.

Each whole run measures them, for the next one on the same machine.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
LONG: Final = 15.0
"""Seconds from which a file is begun before others; those that take less stay in their order."""
FIRST_RUN: Final = {
    "tests/integration/edge_runtime/guests/test_languages.py": 190.0,
    "tests/integration/control/storage/test_object_store.py": 145.0,
    "tests/integration/project/test_docs_commands.py": 130.0,
    "tests/integration/control/local/test_embedded.py": 125.0,
    "tests/integration/control/cli/test_schema_and_projects.py": 110.0,
    "tests/integration/edge_runtime/sync/test_ca_change.py": 80.0,
    "tests/security/test_hostile.py": 80.0,
    "tests/integration/edge_runtime/dispatch/test_foreign_lock.py": 70.0,
    "tests/integration/edge_runtime/sync/test_agent.py": 65.0,
    "tests/integration/edge_runtime/cli/test_node_doctor.py": 60.0,
    "tests/integration/project/test_flaked_runs.py": 55.0,
    "tests/integration/edge_runtime/release/test_checkpoint_schedule.py": 55.0,
    "tests/integration/control/storage/test_bucket_owner.py": 55.0,
    "tests/integration/control/storage/test_access_list_files.py": 55.0,
    "tests/integration/edge_runtime/cli/test_backup.py": 55.0,
    "tests/acceptance/test_r6_integrity.py": 55.0,
    "tests/integration/edge_runtime/children/test_many_modules.py": 55.0,
    "tests/integration/control/cli/test_fleet_doctor.py": 50.0,
    "tests/integration/control/cli/test_commands.py": 50.0,
}
"""Seconds by file, about, where no run has measured them yet."""


def file_of(nodeid: str) -> str:
    """The file of a test, from the repository's folder."""
    return nodeid.partition("::")[0]


def kept() -> dict[str, float]:
    """Seconds by file, as the last whole run on this machine measured them."""
    try:
        found = json.loads(_place().read_bytes())
        return {str(file): float(seconds) for file, seconds in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        # There is none yet, or it is damaged.
        return dict(FIRST_RUN)


def keep(seconds: Mapping[str, float]) -> None:
    """Write what a whole run measured."""
    place = _place()
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Another run may end now.
    unfinished = place.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps({file: round(each, 1) for file, each in sorted(seconds.items())}, indent=0))
    unfinished.replace(place)


def sort(items: list[pytest.Item], seconds: Mapping[str, float]) -> None:
    """Have the tests of files that take long come first, the longest at the beginning."""

    def order(item: pytest.Item) -> float:
        known = seconds.get(file_of(item.nodeid), 0.0)
        return -known if known >= LONG else 0.0

    items.sort(key=order)


def _place() -> Path:
    """Of this checkout: others may have other tests."""
    return ROOT / ".skerry" / "test-seconds.json"
