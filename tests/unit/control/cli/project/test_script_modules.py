"""The engine of JavaScript in the tree is what its sources give, and what a build tells it and editors is exact."""

import hashlib
import json
from pathlib import Path

import pytest

from control.cli.project import project_files, script_modules
from edge_runtime.guests.abi import detect
from scripts import javascript_engine

TOML = 'name = "f"\nmodule = "f.wasm"\nscript = "main.js"\n'


def test_the_engine_is_built_from_the_sources_that_are_here() -> None:
    """`just guests` builds it anew."""
    text = (javascript_engine.HERE / "engine.sha256").read_text()
    recorded = {name: digest for digest, name in (line.split("  ") for line in text.splitlines())}
    built = script_modules.ENGINE.read_bytes()
    assert recorded == {
        "engine.wasm": hashlib.sha256(built).hexdigest(),
        "sources": javascript_engine.digest_of_sources(),
    }
    assert detect.detect(built).abi == "direct"
    assert all(path.is_file() for path in javascript_engine.sources())
    assert {path.stem for path in (javascript_engine.HERE / "runtime").glob("*.js")} == set(javascript_engine.MODULES)


def test_types_have_the_names_of_the_manifest_and_are_written_once(tmp_path: Path) -> None:
    manifest = {"config": {"GREETING": "Hello", "a.b": "x"}, "secrets": ["API_KEY"]}
    script_modules.write_types(tmp_path, manifest)
    file = tmp_path / script_modules.TYPES
    text = file.read_text()
    assert 'config: {\n    readonly "GREETING": string;\n    readonly "a.b": string;\n  };' in text
    assert 'secrets: {\n    readonly "API_KEY": string;\n  };' in text
    # A build that wrote it each time would be seen as a change by `skerry dev`, and be followed by another.
    written = file.stat().st_mtime_ns
    script_modules.write_types(tmp_path, manifest)
    assert file.stat().st_mtime_ns == written
    script_modules.write_types(tmp_path, {})
    assert "GREETING" not in file.read_text()


@pytest.mark.parametrize("map_text", ["", "{", "[]", '{"sources": 1, "mappings": ""}'])
async def test_a_script_or_map_that_cannot_be_read_is_named(map_text: str, tmp_path: Path) -> None:
    script = tmp_path / "main.js"
    if map_text:
        script.write_text("export default {}")
        (tmp_path / "main.js.map").write_text(map_text)
    with pytest.raises(script_modules.ScriptInvalid, match="source map" if map_text else "main.js can't be read"):
        await script_modules.make(script, tmp_path / "f.wasm", {}, project=tmp_path)


def test_sources_are_named_from_the_projects_folder(tmp_path: Path) -> None:
    script = tmp_path / ".build" / "main.js"
    script.parent.mkdir()
    sources = ["../main.ts", "../node_modules/hono/x.js", "../../../home/ada/node_modules/zod/z.js"]
    script.with_name("main.js.map").write_text(json.dumps({"sources": sources, "mappings": "AAAA", "names": ["x"]}))
    told = script_modules._source_map(script, tmp_path)
    assert told == {
        "sources": ["main.ts", "node_modules/hono/x.js", "node_modules/zod/z.js"],
        "mappings": "AAAA",
    }


def test_of_a_scripts_snapshot_only_what_is_allowed_can_be_said(tmp_path: Path) -> None:
    (tmp_path / project_files.FILE).write_text(TOML + 'snapshot = { allow = ["USER"] }\n')
    source = project_files.read(tmp_path).functions[0]
    assert (source.script, source.module, source.snapshot) == (tmp_path / "main.js", tmp_path / "f.wasm", None)
    assert source.allow == ("USER",)
    for other in ('init = "x"', 'renew = "x"'):
        (tmp_path / project_files.FILE).write_text(f"{TOML}snapshot = {{ {other} }}\n")
        with pytest.raises(project_files.ProjectInvalid, match="only `allow` can be said"):
            project_files.read(tmp_path)
