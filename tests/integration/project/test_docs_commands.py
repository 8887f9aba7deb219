"""Every block of a page that is marked `sh` is run here, as its reader would, against a `skerry up`.

One `skerry up` serves all pages. The blocks of a page run one after the other in one shell, in a folder that looks
like a checkout, with `skerry` on the path; what can't run (it serves until Ctrl-C, it has a host or a token of
somebody's) is marked `text`. A block that only calls recipes of the Justfile isn't run, since those install and test
everything: the recipes must exist.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from control.cli.project import script_modules
from control.cli.project.authoring import BUILD_FILES, EDITORS_SCHEMA
from tests.guests.build import CACHE
from tests.support import projects
from tests.support.deadlines import scaled
from tests.support.engines import give_engine
from tests.support.shell_programs import ShellPrograms, shell_programs
from tests.support.up import ROOT, Up, ready_up

EDGE = "127.0.0.1:8087"
"""Where the pages say that the edge is; each test's edge has a port of its own."""
LIMIT = 150.0
"""Seconds for the blocks of a page."""
SET_UP = "sudo apt-get update && sudo apt-get install -y just && "
"""What the README's two commands begin with: they install packages, and are run by `.ci/run`."""
FENCE = re.compile(r"^( *)```(\S*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)

TUTORIAL = ROOT / "docs" / "tutorial.md"
README = ROOT / "README.md"
AGAIN = [README, ROOT / "examples" / "README.md"]
"""Pages that make a table of the pages before them again: it is dropped first, with the functions that use it."""
DROP = """\
skerry release create --rollback-to 1 --wait
echo 'DROP TABLE IF EXISTS visits;' >.drop.sql
skerry schema add .drop.sql --name drop --allow-loss --wait
"""
# The tutorial counts on a `skerry up` on which nothing else was done, so it comes first.
PAGES = [
    TUTORIAL,
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if page != TUTORIAL),
    *sorted(page for page in ROOT.glob("*.md") if page not in AGAIN),
    *AGAIN,
]


@dataclass(frozen=True)
class Block:
    """A fenced block: `language` as it is marked, `line` where it begins, `text` without the indentation."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    return [
        Block(
            str(page.relative_to(ROOT)),
            text.count("\n", 0, match.start()) + 1,
            match[2],
            re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE),
        )
        for match in FENCE.finditer(text)
    ]


def recipes(block: Block) -> list[str]:
    """The recipes that a block calls, where it does nothing else; else none."""
    lines = [line.removeprefix(SET_UP).partition("#")[0].split() for line in block.text.splitlines()]
    words = [line for line in lines if line]
    return [line[1] for line in words] if all(line[0] == "just" and len(line) > 1 for line in words) else []


def runnable(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language == "sh" and not recipes(block)]


def checkout(folder: Path, programs: ShellPrograms) -> Path:
    """A folder with links to what commands use of a checkout, into which the commands of a page may write. Our programs
    in it are started by this process."""
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name in ("docs", "examples", "lock", "sql"):
        (folder / name).symlink_to(ROOT / name)
    for each in Path(sys.prefix).iterdir():
        if each.name != "bin":
            (folder / ".venv" / each.name).symlink_to(each)
    for each in Path(sys.prefix, "bin").iterdir():
        own = programs.folder / each.name
        (binaries / each.name).symlink_to(own if own.exists() else each)
    activate = binaries / "activate"
    activate.unlink()
    activate.write_text(Path(sys.prefix, "bin", "activate").read_text().replace(sys.prefix, str(folder / ".venv")))
    return folder


def run(page: Path, up: Up, programs: ShellPrograms, folder: Path) -> None:
    """Run the blocks of `page` that are marked `sh` in one shell. Raises: as `run_blocks` does."""
    first = [Block("before the page", 0, "sh", DROP)] if page in AGAIN else []
    run_blocks([*first, *runnable(page)], up, programs, folder)


def run_blocks(told: list[Block], up: Up, programs: ShellPrograms, folder: Path) -> None:
    """Run blocks in one shell. Raises: pytest's failure, with the block's place and its output."""
    edge = json.loads((up.home / "cli.json").read_text("utf-8"))["edge"].removeprefix("http://")
    script = folder / ".blocks.sh"
    current = folder / ".block"
    # The page before may have left a release on its way.
    settled = "for try in {1..60}; do skerry status --check >/dev/null 2>&1 && break; sleep 0.5; done"
    lines = ["set -e -o pipefail", settled]
    for block in told:
        lines += [f"printf '%s' '{block}' >.block", block.text.replace(EDGE, edge)]
    script.write_text("\n".join(lines))
    environment = {
        **up.environment,
        "PATH": f"{folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "SKERRY_EDGE_LISTEN": edge,
        "ZIG_GLOBAL_CACHE_DIR": str(CACHE / "zig"),
        "ZIG_LOCAL_CACHE_DIR": str(CACHE / "zig-local"),
    }
    log = folder / ".log"
    with log.open("wb") as output:
        shell = psutil.Popen(
            ["bash", script.name],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            status: int | str = programs.run(shell, scaled(LIMIT))
        except TimeoutError as error:
            for process in (*shell.children(recursive=True), shell):
                process.kill()
            status = str(error)
    if status:
        at = current.read_text("utf-8") if current.exists() else "before the first block"
        said = log.read_text("utf-8", "replace")[-4000:]
        pytest.fail(f"{at}: the shell ended with {status}\n{said}", pytrace=False)


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    for running in ready_up():
        asyncio.run(give_engine(running.home / "edge"))
        yield running


@pytest.fixture(scope="module")
def programs() -> Iterator[ShellPrograms]:
    with shell_programs() as made:
        yield made


@pytest.mark.timeout(LIMIT + 60 + projects.COMPILERS)
@pytest.mark.parametrize(
    "page", [page for page in PAGES if runnable(page)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_the_commands_of_a_page_work(up: Up, programs: ShellPrograms, tmp_path: Path, page: Path) -> None:
    if page == TUTORIAL:
        projects.needs("ts")
    folder = checkout(tmp_path / "skerry", programs)
    run(page, up, programs, folder)
    if page == TUTORIAL:
        (failed,) = [block.text for block in blocks(page) if block.text.startswith("FAIL")]
        assert "at order (orders.ts:" in failed
        assert failed in (folder / ".log").read_text("utf-8")
        # What `skerry function new` and builds write for editors is in no example, and the README is the example's own.
        named = f"#:schema ./{EDITORS_SCHEMA}\n"
        texts = {name: text.removeprefix(named) for name, text in files(folder / "shop").items()}
        left = {EDITORS_SCHEMA, script_modules.TYPES, "README.md"}
        example = files(ROOT / "examples" / "shop")
        assert {name: texts[name] for name in texts.keys() - left} == {
            name: example[name] for name in example.keys() - left
        }
    if page == README:
        texts = {block.language: block.text.strip() for block in blocks(page)}
        for language in ("ts", "c"):
            assert texts[language] in (ROOT / "examples" / language / f"main.{language}").read_text("utf-8")
        # After the rows of the pages before.
        answer = re.sub(r"\d+", r"\\d+", re.escape(texts["json"]))
        assert len(re.findall(answer, (folder / ".log").read_text("utf-8"))) == 1


def files(folder: Path) -> dict[str, str]:
    """The files of a project that its author writes, by their paths in it."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    written = {str(name): path for name, path in found.items() if not {*BUILD_FILES, ".build"} & {*name.parts}}
    return {name: path.read_text("utf-8") for name, path in written.items()}


def test_the_scripts_of_the_python_api_work(up: Up, programs: ShellPrograms, tmp_path: Path) -> None:
    """The first one talks to control; the second one tests a function, so it runs in the function's folder."""
    page = ROOT / "docs" / "reference" / "python-api.md"
    scripts = [block for block in blocks(page) if block.language == "python"]
    assert len(scripts) == 2
    folder = checkout(tmp_path / "skerry", programs)
    project = replace(scripts[1], text="skerry function new notes --lang c && cd notes && skerry function build .")
    told = [replace(block, text=f"python - <<'END'\n{block.text}END") for block in scripts]
    run_blocks([told[0], project, told[1]], up, programs, folder)
    assert "edge-1 online" in (folder / ".log").read_text("utf-8")


def test_every_recipe_that_a_page_calls_exists() -> None:
    known = set(re.findall(r"^([a-z][a-z-]*)\b[^\n]*:", (ROOT / "Justfile").read_text("utf-8"), re.MULTILINE))
    called = {
        (str(block), recipe)
        for page in PAGES
        for block in blocks(page)
        if block.language == "sh"
        for recipe in recipes(block)
    }
    assert called
    assert {(at, recipe) for at, recipe in called if recipe not in known} == set()


def test_the_readme_has_both_commands_that_set_it_up() -> None:
    texts = {block.text.strip() for block in blocks(README) if block.language == "sh"}
    assert {f"{SET_UP}just up", f"{SET_UP}just test"} <= texts


def test_every_block_says_what_it_is() -> None:
    unmarked = [str(block) for page in PAGES for block in blocks(page) if not block.language]
    assert unmarked == []


def test_a_block_that_fails_is_named(up: Up, programs: ShellPrograms, tmp_path: Path) -> None:
    folder = checkout(tmp_path / "skerry", programs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "ROOT", tmp_path)
        page = tmp_path / "page.md"
        page.write_text("# A page\n\n```sh\ntrue\n```\n\n```sh\necho said\nfalse\necho never\n```\n")
        with pytest.raises(pytest.fail.Exception) as failed:
            run(page, up, programs, folder)
    assert str(failed.value) == "page.md:7: the shell ended with 1\nsaid\n"
