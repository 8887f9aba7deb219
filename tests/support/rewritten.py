"""Test modules as pytest rewrites them, on disk before worker processes of pytest-xdist import them.

In a new clone, or after another version of pytest came, each of five workers would rewrite them all at the same time:
10 s of a processor each.
"""

import sys
from pathlib import Path

import pytest
from _pytest.assertion import rewrite


def keep(config: pytest.Config) -> None:
    """Rewrite the test modules of this run that aren't kept yet, where Python may keep bytecode."""
    if sys.dont_write_bytecode:
        return
    state = config.stash[rewrite.assertstate_key]
    for path in _modules(config):
        kept = rewrite.get_cache_dir(path) / f"{path.stem}{rewrite.PYC_TAIL}"
        # A worker looks closer, and rewrites by itself what is another text all the same.
        if kept.exists() and kept.stat().st_mtime >= path.stat().st_mtime:
            continue
        if rewrite.try_makedirs(kept.parent):
            stat, code = rewrite._rewrite_test(path, config)
            rewrite._write_pyc(state, code, stat, kept)


def _modules(config: pytest.Config) -> set[Path]:
    places = [config.invocation_params.dir / given.partition("::")[0] for given in config.args]
    patterns = ("conftest.py", *config.getini("python_files"))
    inside = {path for place in places for pattern in patterns for path in place.rglob(pattern)}
    return inside | {place for place in places if place.is_file()}
