"""`skerry function new` and `build`: a function's project, from nothing to a module."""

import asyncio
import shutil
import sys
from pathlib import Path

import click
import orjson

import control
from control.cli.support import options, output, project, toolchains
from control.cli.support.client import Failure, Json

LANGUAGES = {"rust": "rustc", "c": "zig", "zig": "zig", "assemblyscript": "asc", "go": "go"}
"""The languages of `--lang`, and the toolchain that the project's build command names."""
TEMPLATE_NAME = "notes"
"""The function's name in the templates, replaced in a new project."""
BUILD_FILES = ("node_modules", "package-lock.json", "function.wasm")
"""Files of a build that a checkout's template may have in it; they aren't copied."""
CHECK_LIMIT = 120.0
"""Seconds that the check of a module may take."""


def examples() -> Path:
    """Return the folder of examples: in the package where a wheel was installed, else beside it in the checkout."""
    package = Path(control.__file__).parent
    packaged = package / "_examples"
    return packaged if packaged.is_dir() else package.parent / "examples"


@click.command()
@click.argument("name", type=options.NAME)
@click.option("--lang", type=click.Choice(list(LANGUAGES)), required=True, help="The language that it is written in.")
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder to write; without it, one with the function's name.",
)
def new(name: str, lang: str, into: Path | None) -> None:
    """Write a small project: a function that reads the request, asks the database and answers JSON.

    The project can be built, run and pushed as it is; docs/functions.md says what a function can do.
    """
    folder = into or Path(name)
    if folder.exists() and any(folder.iterdir()):
        raise Failure(f"{folder} is there already and has files in it", cure="name another folder with --into")
    shutil.copytree(
        examples() / lang,
        folder,
        ignore=lambda _, names: [n for n in names if n in BUILD_FILES or (n.startswith(".") and n != ".gitignore")],
        copy_function=shutil.copyfile,
        dirs_exist_ok=True,
    )
    for file, before, after in (
        (project.FILE, f'name = "{TEMPLATE_NAME}"', f'name = "{name}"'),
        ("README.md", f"# {TEMPLATE_NAME}\n", f"# {name}\n"),
        ("README.md", f"/functions/{TEMPLATE_NAME}?", f"/functions/{name}?"),
    ):
        path = folder / file
        path.write_text(path.read_text("utf-8").replace(before, after), "utf-8")
    output.say(f"{folder} has a function in {lang}: {', '.join(sorted(p.name for p in folder.iterdir()))}")
    lacking = toolchains.missing(LANGUAGES[lang], folder)
    if lacking:
        output.say(f"  first, {lacking}", style="yellow")
    output.say(f"  skerry dev {folder}   builds it, serves it here and follows your changes")


@click.command()
@click.argument(
    "folder", type=click.Path(exists=True, file_okay=False, path_type=Path), default=".", metavar="[FOLDER]"
)
@options.json_option
@options.asynchronous
async def build(folder: Path, as_json: bool) -> None:
    """Build the function's project in FOLDER (this one), and check that a node can run what came out.

    The command is in the project's function.toml; where its compiler isn't here, you are told what to install.
    """
    found = project.read(folder)
    seconds = await toolchains.build(found)
    checked = await check(found)
    if as_json:
        output.document({"name": found.name, "module": str(found.module), "seconds": round(seconds, 3), **checked})
        return
    pages = f"{checked['memory_pages']} pages of memory"
    output.say(
        f"{found.module}: {output.size(checked['size'])}, ABI {checked['abi']}, {pages}, in {output.span(seconds)}"
    )


async def check(found: project.Project) -> Json:
    """Return what a node's check says of the project's module; it runs in a child process.

    Raises: Failure, when a node can't run the module, or the check fails or takes longer than `CHECK_LIMIT`.
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "edge_runtime.oneshot.check",
        "module",
        str(found.module),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(CHECK_LIMIT):
            out, err = await child.communicate()
    except TimeoutError:
        raise Failure(f"the check of {found.module} took more than {CHECK_LIMIT:.0f} s") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        last = err.decode(errors="replace").strip().rpartition("\n")[2]
        raise Failure(f"the check of {found.module} ended with status {child.returncode}: {last}")
    answer: Json = orjson.loads(out)
    if not answer.pop("ok"):
        raise Failure(f"nodes can't run {found.module}: {answer['message']}", code=answer["code"])
    return answer
