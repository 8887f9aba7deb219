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
"""The toolchain that each language's project names."""
NAME = "notes"
"""What the templates are named."""
LEFT = ("node_modules", "package-lock.json", "function.wasm")
"""What a build may have left in a template of a checkout."""
CHECK_LIMIT = 120.0


def templates() -> Path:
    """The examples: inside the package where it was installed from a wheel, else beside it in the checkout."""
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

    It is a program that can be built, run and pushed as it is; docs/functions.md says what a function can do.
    """
    folder = into or Path(name)
    if folder.exists() and any(folder.iterdir()):
        raise Failure(f"{folder} is there already and has files in it", cure="name another folder with --into")
    shutil.copytree(
        templates() / lang,
        folder,
        ignore=lambda _, names: [n for n in names if n in LEFT or (n.startswith(".") and n != ".gitignore")],
        copy_function=shutil.copyfile,
        dirs_exist_ok=True,
    )
    for file, before, after in (
        (project.FILE, f'name = "{NAME}"', f'name = "{name}"'),
        ("README.md", f"# {NAME}\n", f"# {name}\n"),
        ("README.md", f"/functions/{NAME}?", f"/functions/{name}?"),
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
    """What a node needs to know of the project's module; it is looked at in a child. Error: Failure."""
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
