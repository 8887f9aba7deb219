"""Packages of npm run unmodified in functions on a real node, and a stack trace names the lines of TypeScript."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from control.cli.project import project_files, toolchains
from tests.guests.build import ROOT
from tests.support import projects
from tests.support.edge import node
from tests.support.programs import command

pytestmark = pytest.mark.timeout(600)

SOURCE = ROOT / "tests" / "guests" / "libraries.ts"
TABLES = "CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT NOT NULL, price REAL);"


async def test_packages_of_npm_run_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    projects.needs("ts")
    project = projects.copy("ts", tmp_path / "project", SOURCE)
    (project.folder / "node_modules").symlink_to(projects.NPM.parent)
    file = project.folder / project_files.FILE
    file.write_text(file.read_text().replace("{esbuild} main.ts", "{esbuild} main.ts --preserve-symlinks"))
    done = await projects.built(project.folder)
    assert done.status == 0, done.err
    wasm = project.functions[0].module.read_bytes()
    async with node(tmp_path / "state") as edge:
        manifest = {"abi": "direct", "sql": "write", "read_only_methods": []}
        await edge.release({"f": (wasm, manifest)}, [TABLES])

        async def call(path: str, body: Any = None, method: str = "", **headers: str) -> tuple[int, Any, Any]:
            sent = body if isinstance(body, bytes) else b"" if body is None else orjson.dumps(body)
            method = method or ("GET" if body is None else "POST")
            status, got, answer = await edge.call(f"f/{path}", sent, method, headers=headers)
            is_json = got.get("content-type", "").startswith("application/json")
            return status, orjson.loads(answer) if is_json else answer.decode(), got

        status, found, got = await call("hono/open/7?q=a&q=b")
        assert (status, found) == (200, {"id": 7, "all": ["a", "b"]})
        assert (await call("hono/open/x"))[:2] == (404, {"error": "no such page"})
        status, _, got = await call("hono/closed/x")
        assert (status, got["www-authenticate"]) == (401, 'Basic realm="Secure Area"')
        assert (await call("hono/closed/x", Authorization="Basic YWRhOnRlYQ=="))[:2] == (200, "in")
        status, found, got = await call("hono/items", {"name": "oil", "price": "2.5"})
        assert (status, found) == (201, {"name": "oil", "price": 2.5, "tags": ["new"]})
        assert got["set-cookie"] == "last=oil; Path=/; HttpOnly"
        wrong = {"name": "o", "price": -1, "tags": ["old"], "at": "2026-02-30"}
        assert (await call("hono/items", wrong))[:2] == (
            422,
            [["name", "too_small"], ["price", "too_small"], ["tags.0", "invalid_value"], ["at", "invalid_format"]],
        )
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        assert (await call("hono/form", b"a=1&b=%C3%A9", **form))[1] == {"a": "1", "b": "é"}
        assert (await call("hono/cookie", Cookie="x=y; last=oil"))[1] == "oil"
        assert (await call("hono/stream"))[:2] == (200, "abc")
        assert (await call("hono/token"))[1] == ["ada", "JwtTokenSignatureMismatched"]
        assert (await call("hono/throws"))[:2] == (418, "short and stout")
        caplog.clear()
        assert (await call("hono/fails"))[:2] == (500, "Internal Server Error")
        assert (await call("itty/items/7?a=1&a=2"))[:2] == (200, {"id": "7", "query": {"a": ["1", "2"]}})
        assert (await call("itty/items", {"x": 1}))[:2] == (201, {"got": {"x": 1}})
        assert (await call("itty/throws"))[:2] == (409, {"status": 409, "error": "taken"})
        assert (await call("itty/none"))[0] == 404
        status, found, _ = await call("drizzle", b"")
        assert status == 200, caplog.text
        refused = found.pop("refused")
        assert "BEGIN isn't there, since a call is one transaction" in refused
        made = {"id": 1, "name": "oil", "price": 2.5}
        assert found == {
            "made": made,
            "all": [{"id": 3, "name": "milk", "price": 2}, made, {"id": 2, "name": "tea", "price": None}],
            "n": 3,
            "one": {"name": "oil"},
        }

    lines = SOURCE.read_text().splitlines()
    thrown = 1 + next(n for n, line in enumerate(lines) if "on purpose" in line)
    called = 1 + next(n for n, line in enumerate(lines) if '"/hono/fails"' in line)
    assert f"at fails (main.ts:{thrown})" in caplog.text
    assert f"(main.ts:{called})" in caplog.text
    assert "node_modules/hono/" in caplog.text


async def test_a_module_of_node_is_missed_with_what_to_do_instead(tmp_path: Path) -> None:
    projects.needs("ts")
    source = tmp_path / "main.ts"
    source.write_text('import fs from "node:fs"; export default { fetch: () => new Response(fs) };')
    folder = projects.copy("ts", tmp_path / "project", source).folder
    done = await command("control.cli", "function", "build", folder, limit=projects.COMPILERS)
    assert done.status == 1
    assert 'Could not resolve "node:fs"' in done.err
    assert toolchains.NO_MODULES in " ".join(done.err.split())
