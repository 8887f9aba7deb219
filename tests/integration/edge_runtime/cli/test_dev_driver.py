"""What `skerry-edge dev` serves of a project."""

from pathlib import Path
from typing import Any

import pytest

from edge_runtime.cli.dev import Driver, Wanted
from tests.guests.build import guest


@pytest.mark.parametrize(
    ("said", "methods"),
    [({"sql": "write"}, ("GET", "HEAD")), ({"sql": "write", "read_only_methods": []}, None), ({"sql": "read"}, None)],
)
def test_get_and_head_only_read_as_after_a_push(tmp_path: Path, said: dict[str, Any], methods: Any) -> None:
    (tmp_path / "artifacts").mkdir()
    module = tmp_path / "f.wasm"
    module.write_bytes(guest("echo"))
    driver = Driver(tmp_path, None, None)  # type: ignore[arg-type]
    served, _ = driver._function(Wanted("f", str(module), said, []))
    assert served.manifest.read_only_methods == methods
