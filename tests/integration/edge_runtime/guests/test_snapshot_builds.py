"""A function of each language begins from a snapshot that its own build has made: each call finds what the initialiser
left, nothing of another call, and random numbers of its own."""

from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from edge_runtime.guests.invocation import Request
from edge_runtime.oneshot.check import check_module
from tests.guests.build import CACHE
from tests.support import projects
from tests.support.functions import function
from tests.support.projects import compilers

pytestmark = [pytest.mark.usefixtures("compilers"), pytest.mark.timeout(600)]
__all__ = ["compilers"]

SOURCES = Path(__file__).parents[3] / "guests" / "snapshots"
CODE = CACHE / "code"


@dataclass(frozen=True)
class Language:
    """How a language's example becomes a function that begins from a snapshot."""

    snapshot: str
    options: tuple[tuple[str, str], ...] = ()
    """What is replaced in its function.toml."""
    abi: str = "wagi"


WARM = '{ init = "warm" }'
LANGUAGES = {
    "c": Language(WARM),
    "zig": Language(WARM, (("main.zig ", "main.zig --export=warm "),)),
    "rust": Language(WARM),
    "assemblyscript": Language(
        WARM, (("_start", "_initialize"), ("skerry/abort", "main/abort --use seed=main/seed")), "direct"
    ),
    "go": Language(
        '{ init = "skerry_init", renew = "skerry_renew" }',
        (("-ldflags=-s", "-ldflags=-s -tags snapshot -buildmode=c-shared"),),
        "direct",
    ),
}


def written(language: str, folder: Path, snapshot: str = "") -> Path:
    """The language's project, with the test's program in it; return its file."""
    projects.needs(language)
    source = next(SOURCES.glob(f"main.{ {'rust': 'rs', 'assemblyscript': 'ts'}.get(language, language) }"))
    projects.copy(language, folder, source)
    file = folder / "function.toml"
    text = file.read_text()
    for before, after in LANGUAGES[language].options:
        assert before in text
        text = text.replace(before, after)
    file.write_text(
        text.replace("\n[manifest]", f"\nsnapshot = {snapshot or LANGUAGES[language].snapshot}\n\n[manifest]")
    )
    return file


@pytest.mark.parametrize("language", LANGUAGES)
async def test_each_call_begins_as_the_initialiser_has_left_it(language: str, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    written(language, folder)
    done = await projects.built(folder)
    assert done.status == 0, done.err
    told = orjson.loads(done.out)
    assert (told["module"], told["abi"]) == (str(folder / "function.snapshot.wasm"), LANGUAGES[language].abi)
    wasm = (folder / "function.snapshot.wasm").read_bytes()
    assert check_module(wasm)["start"] is (language == "go")
    assert (await projects.built(folder)).status == 0
    assert (folder / "function.snapshot.wasm").read_bytes() == wasm, "another build made something else"

    CODE.mkdir(mode=0o700, parents=True, exist_ok=True)
    loaded = function(wasm, CODE, config={"WORD": "direct"}, abi=LANGUAGES[language].abi)
    answers = []
    for _ in range(2):
        answer = loaded.call(Request(method="GET", path="/", body=b"milk"))
        assert answer.status == 200, answer
        answers.append(dict(line.split(" ", 1) for line in answer.body.decode().splitlines()))
    randoms = [answer.pop("random") for answer in answers]
    assert randoms[0] != randoms[1], "two instances drew the same"
    if language == "go":
        assert {answer.pop("begun") for answer in answers} == {"1970-01-01 00:00:00 +0000 UTC"}
        assert {answer.pop("body") for answer in answers} == {"milk"}
        order = [answer.pop("order") for answer in answers]
        assert {*"".join(order)} == {*"123456789"}
    assert answers == [{"left": "99999", "calls": "1", "variable": "direct"}] * 2


@pytest.mark.parametrize(
    ("language", "snapshot", "why"),
    [
        (
            "rust",
            '{ init = "seeded" }',
            "Its seeded drew random numbers (random_get), and every call would have the same",
        ),
        ("assemblyscript", '{ init = "seeded" }', "Its seeded drew random numbers (random_get)"),
        ("go", '{ init = "skerry_init" }', "Its skerry_init drew random numbers (random_get)"),
    ],
)
async def test_what_would_repeat_is_refused(language: str, snapshot: str, why: str, tmp_path: Path) -> None:
    file = written(language, tmp_path / "project", snapshot)
    done = await projects.built(file.parent)
    assert done.status == 1
    assert why in done.err
    assert not (file.parent / "function.snapshot.wasm").exists()
