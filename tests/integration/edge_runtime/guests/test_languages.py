"""Each language's project, as `skerry function new` writes it: built by its compiler, and run through a real edge."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest

from control.cli import main as cli
from control.cli.project.authoring import DEFAULT_TEMPLATE, LANGUAGES, TEMPLATES
from edge_runtime.oneshot.check import check_module
from edge_runtime.release.compile_jobs import CompileJobs
from tests.support import projects
from tests.support.deadlines import scaled
from tests.support.edge import node, until
from tests.support.programs import command
from tests.support.projects import compilers

pytestmark = [pytest.mark.usefixtures("compilers"), pytest.mark.timeout(600)]
__all__ = ["compilers"]

GUESTS = Path(__file__).parents[3] / "guests" / "std"
NOTE = 'mil"k\\\n\té 😀 \x01\x7f'


@pytest.mark.parametrize("language", LANGUAGES)
async def test_the_example_reads_the_request_asks_the_database_and_answers_json(language: str, tmp_path: Path) -> None:
    projects.needs(language)
    project = await projects.made(language, tmp_path / "project")
    # It builds the module too.
    tested = await command("control.cli", "test", tmp_path / "project", limit=projects.COMPILERS)
    assert (tested.status, b"3 passed" in tested.out) == (0, True), tested
    wasm = project.functions[0].module.read_bytes()
    told = check_module(wasm)
    abi = "wagi" if project.functions[0].script is None else "direct"
    assert (project.functions[0].name, told["abi"], told["sql"], told["start"]) == ("notes", abi, True, False)

    async with node(tmp_path / "state", compile_wait=60.0) as edge:
        function = (wasm, project.functions[0].manifest | {"abi": abi})
        await edge.release({"notes": function}, projects.schema(project))
        await until(lambda: edge.front.manager.release.functions[0].aot, scaled(120.0))

        async def call(method: str, query: str, body: bytes = b"") -> tuple[int, object]:
            status, headers, answer = await edge.call(f"notes{query}", body, method)
            assert headers["content-type"] == "application/json", answer
            return status, orjson.loads(answer)

        assert await call("POST", "?author=Ada%20L%2B&x=1", NOTE.encode()) == (201, {"author": "Ada L+", "id": 1})
        assert await call("POST", "?author=Ada+L%2b", b"tea" * 30_000) == (201, {"author": "Ada L+", "id": 2})
        assert await call("POST", "?author=%22%5C%E3%82%A8", b"") == (201, {"author": '"\\エ', "id": 3})
        assert await call("GET", "?x=&author=Ada+L%2B") == (
            200,
            {"author": "Ada L+", "notes": [NOTE, "tea" * 30_000]},
        )
        assert await call("GET", "?author=%22%5C%E3%82%A8") == (200, {"author": '"\\エ', "notes": [""]})
        assert await call("GET", "?author=nobody") == (200, {"author": "nobody", "notes": []})
        assert (await call("GET", ""))[0] == 400
        assert (await call("DELETE", "?author=x"))[0] == 405
        assert (await edge.call("notes?author=x", method="PUT"))[1]["allow"] == "GET, POST"

        # The database refuses what it doesn't understand: that is an answer too, and the reason is in the log.
        without_probe = {**function[1], "probe": None}
        await edge.release(
            {"notes": (function[0], without_probe)}, ["DROP TABLE notes; CREATE TABLE notes (author TEXT);"]
        )
        assert await call("GET", "?author=x") == (500, {"error": "the database refused it"})
        assert await call("POST", "?author=x", b"y") == (500, {"error": "the database refused it"})


@pytest.mark.parametrize("language", LANGUAGES)
async def test_each_other_template_passes_its_own_tests(language: str, tmp_path: Path) -> None:
    """All in one project, which takes a third of the processes."""
    projects.needs(language)
    shop = tmp_path / "shop"
    for template in TEMPLATES.keys() - {DEFAULT_TEMPLATE}:
        new = ["function", "new", f"my-{template}", "--lang", language, "--template", template, "--project", str(shop)]
        assert cli.run(new) == 0
    tested = await command("control.cli", "test", shop, limit=projects.COMPILERS)
    cases = sum(file.read_text().count("[[case]]") for file in shop.glob("*/tests/*.toml"))
    assert cases >= 3 * (len(TEMPLATES) - 1)
    assert (tested.status, f"{cases} passed".encode() in tested.out) == (0, True), tested


async def never(*_: Any) -> Any:
    await asyncio.Event().wait()


YES = {"c": "1", "rust": "true", "go": "true"}
SAME = {
    "c": {"arguments": "1 /functions/std", "number": "1501"},
    "rust": {
        "variable": 'Ok("Hello")',
        "arguments": '["/functions/std"]',
        "threads": "true",
        "connect": "true",
        "number": "1501",
    },
    "go": {"arguments": "/functions/std", "goroutines": "4950", "timer": "context deadline exceeded"},
}


@pytest.mark.parametrize("language", YES)
async def test_its_standard_library_runs_on_the_edge(
    language: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    projects.needs(language)
    source = GUESTS / f"std.{ {'c': 'c', 'rust': 'rs', 'go': 'go'}[language] }"
    project = projects.copy(language, tmp_path / "project", source)
    assert (await projects.built(project.folder)).status == 0
    caplog.set_level("INFO", "skerry.guest")
    if language == "go":
        # Compiling Go takes long; it starts on the interpreter, as any new function would, and stays there.
        monkeypatch.setattr(CompileJobs, "_compile", never)
    async with node(tmp_path / "state", compile_wait=0.01 if language == "go" else 60.0) as edge:
        manifest = {"config": {"GREETING": "Hello"}, "memory_pages": 1024, "time_limit_ms": 60_000}
        await edge.release({"std": (project.functions[0].module.read_bytes(), manifest)})
        randoms = set()
        body = bytes(range(256)) * 400
        for _ in range(2):
            status, _, answer = await edge.call("std", body)
            assert status == 200, answer
            told = dict(line.split(" ", 1) for line in answer.decode().splitlines())
            randoms.add(told.pop("random"))
            for name in ("clock", "sleep", "variables", "read", "write", "list", "http"):
                assert told.pop(name) == YES[language], (name, answer)
            total = told.pop("body").split()[0]
            assert (int(total), int(told.pop("memory"))) == (sum(body), sum(range(1_000_000)))
            assert told == {"variable": "Hello", **SAME[language]}
        assert len(randoms) == 2, "two calls drew the same random numbers"
        assert caplog.text.count("a line in the log") == 2

        assert await edge.problem("std/exit") == (502, "guest_exit")
        status, code = await edge.problem("std/panic")
        assert (status, code) in ((502, "guest_trap"), (502, "guest_exit"))
        assert "on purpose" in caplog.text
        assert (await edge.call("std", b"x"))[0] == 200


async def test_the_module_in_the_tree_is_what_its_source_gives(tmp_path: Path) -> None:
    """With the engine that is in the tree. `just guests` builds both anew."""
    projects.needs("ts")
    example = projects.ROOT / "examples" / "greetings"
    for name in ("function.toml", "main.ts"):
        shutil.copyfile(example / name, tmp_path / name)
    built = await projects.built(tmp_path)
    assert built.status == 0, built.err
    assert (tmp_path / "greetings.wasm").read_bytes() == (example / "greetings.wasm").read_bytes()
