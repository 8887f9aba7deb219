"""Which files of a project's folder are the author's, so that a change in them builds the project again."""

from pathlib import Path

import pytest

from control.cli.project.followed_files import FollowedFiles


@pytest.mark.parametrize(
    ("name", "followed"),
    [
        ("main.ts", True),
        ("lib/names.d.ts", True),
        ("function.toml", True),
        ("env.d.ts", False),
        ("orders.wasm", False),
        (".build/main.js", False),
        ("node_modules/hono/index.js", False),
    ],
)
async def test_what_a_build_writes_is_no_change(name: str, followed: bool, tmp_path: Path) -> None:
    files = FollowedFiles([tmp_path])
    assert await files.different() == set()
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("new")
    assert await files.different() == ({file} if followed else set())
