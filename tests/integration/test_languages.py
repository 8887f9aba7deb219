"""Each language's project, as `skerry function new` writes it: built by its compiler, and run through a real edge."""

from pathlib import Path

import orjson
import pytest

from control.cli.authoring import LANGUAGES
from tests.support import projects
from tests.support.edge import node, until
from tests.support.projects import compilers

pytestmark = [pytest.mark.usefixtures("compilers"), pytest.mark.timeout(240)]
__all__ = ["compilers"]

NOTE = 'mil"k\\\n\té 😀 \x01\x7f'


@pytest.mark.parametrize("language", LANGUAGES)
async def test_the_example_reads_the_request_asks_the_database_and_answers_json(language: str, tmp_path: Path) -> None:
    projects.needs(language)
    project = await projects.made(language, tmp_path / "project")
    told = (await projects.built(tmp_path / "project")).json()
    assert (told["name"], told["abi"], told["sql"], told["start"]) == ("notes", "wagi", True, False)

    async with node(tmp_path / "state", compile_wait=60.0) as edge:
        function = (project.module.read_bytes(), project.manifest)
        await edge.release({"notes": function}, projects.schema(project))
        await until(lambda: edge.front.runtime.release.functions[0].aot, 120.0)

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
        without_probe = {**project.manifest, "probe": None}
        await edge.release(
            {"notes": (function[0], without_probe)}, ["DROP TABLE notes; CREATE TABLE notes (author TEXT);"]
        )
        assert await call("GET", "?author=x") == (500, {"error": "the database refused it"})
        assert await call("POST", "?author=x", b"y") == (500, {"error": "the database refused it"})
