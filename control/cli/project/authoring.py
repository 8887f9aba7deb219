"""`skerry function new` and `build`: a function's project, from an empty folder to a module."""

import asyncio
import contextlib
import re
import shutil
import sqlite3
import sys
from pathlib import Path

import click
import orjson

import control
from control.cli.project import project_files, script_modules, toolchains
from control.cli.support import options, output
from control.cli.support.client import Failure, Json
from control.protocol.counts import counted

LANGUAGES = {
    "ts": "esbuild",
    "js": "esbuild",
    "c": "zig",
    "zig": "zig",
    "rust": "rustc",
    "go": "go",
    "assemblyscript": "asc",
}
"""The languages of `--lang`, and the toolchain in the project's build command. The first is offered in a terminal."""
TEMPLATES = {
    "http": "keeps notes by author: POST adds one, GET lists them",
    "crud": "creates, reads, replaces and deletes notes as JSON",
    "cron": "starts by itself, by a schedule",
    "webhook": "keeps signed events, each of them once",
}
"""The templates of `--template`, and what each one's function does. The first is the default, and all of it is in the
language's own folder. A function of another is in that folder's `templates`; what goes with it, in `templates` beside
the languages' folders."""
DEFAULT_TEMPLATE = next(iter(TEMPLATES))
TEMPLATE_FOLDER = "templates"
"""The folder of all templates but the default, in each language's folder and beside them."""
MANIFEST = "manifest.toml"
"""What a template's function may do, to replace the default's from `MANIFEST_BEGIN` on."""
MANIFEST_BEGIN = "# What the function may do"
CALLS = "calls.txt"
"""The calls that the README of a template's function shows, instead of the default's."""
TEMPLATE_NAME = "notes"
"""The name of the function, and of its table, in the templates; both are replaced in a new project."""
NAMED = [f"{word} {TEMPLATE_NAME}" for word in ("TABLE", "INTO", "FROM", "ON", "UPDATE")] + [f"INDEX {TEMPLATE_NAME}_"]
"""The places in the templates' SQL that name the table."""
SCHEMA = "schema"
"""The folder of the schema in the templates."""
BUILD_FILES = ("node_modules", "package-lock.json", "function.wasm", "function.snapshot.wasm")
"""Build files that a template in a checkout may contain; they aren't copied."""
EDITORS_SCHEMA = "function.schema.json"
"""The JSON Schema with which editors check and complete function.toml."""
CHECK_LIMIT = 120.0
"""Seconds that the check of a module may take."""
_CALLS = re.compile(r"(?:    curl .*\n)+")


def examples() -> Path:
    """Return the folder of examples: in the package if installed from a wheel, else beside it in the checkout."""
    package = Path(control.__file__).parent
    packaged = package / "_examples"
    return packaged if packaged.is_dir() else package.parent / "examples"


@click.command()
@click.argument("name", type=options.NAME)
@click.option(
    "--lang",
    type=click.Choice(list(LANGUAGES)),
    help="The language that it is written in; needed where nobody can be asked, as in a script.",
)
@click.option(
    "--template",
    type=click.Choice(list(TEMPLATES)),
    help="What the function does: "
    + "; ".join(f"{name} {does}" for name, does in TEMPLATES.items())
    + f". Without it, {DEFAULT_TEMPLATE}, or your answer where you are asked for the language, too.",
)
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder to write; without it, one with the function's name.",
)
@click.option(
    "--project",
    "several",
    type=click.Path(file_okay=False, path_type=Path),
    help="Make it a function of the project in this folder, which shares its schema; the project is made where there "
    "is none.",
)
def new(name: str, lang: str | None, template: str | None, into: Path | None, several: Path | None) -> None:
    """Write a small project: a function with its table and its tests.

    The project can be built, run, tested and pushed as it is; docs/functions.md says what a function can do. Its table
    is named after it, as all functions of a node share one database. In a terminal, without --lang, it asks for the
    language and the template.
    """
    if into is not None and several is not None:
        raise click.UsageError("--into and --project are one or the other")
    if several is None and into is None and Path(project_files.SEVERAL).is_file():
        several = Path()
    folder = into or (several or Path()) / name
    if folder.exists() and any(folder.iterdir()):
        raise Failure(f"{folder} is there already and has files in it", cure="name another folder with --into")
    if lang is None:
        lang, template = _asked(template)
    number = 1 if several is None else _begin_project(several)
    table = table_of(name)
    template = template or DEFAULT_TEMPLATE
    _copy(lang, template, folder)
    for pattern in ("main.*", "schema/*.sql", f"{project_files.TESTS}/*.toml"):
        for path in folder.glob(pattern):
            _replace(path, *((before, before.replace(TEMPLATE_NAME, table)) for before in NAMED))
            path.rename(path.with_name(path.name.replace(TEMPLATE_NAME, table if path.suffix == ".sql" else name)))
    _replace(folder / project_files.FILE, (f'name = "{TEMPLATE_NAME}"', f'name = "{name}"'))
    _replace(
        folder / "README.md",
        (f"# {TEMPLATE_NAME}\n", f"# {name}\n"),
        (f"/functions/{TEMPLATE_NAME}", f"/functions/{name}"),
        (f"[{TEMPLATE_NAME}]", f"[{name}]"),
    )
    if several is not None:
        _share_schema(folder, several, number)
    _write_editor_files(folder)
    files = ", ".join(sorted(path.name for path in folder.iterdir()))
    output.say(f"{folder} has a function in {lang}, by the template {template}: {files}")
    lacking = toolchains.missing(LANGUAGES[lang], folder)
    if lacking:
        output.say(f"  first, {lacking}", style="yellow")
    output.say(f"  skerry dev {several or folder}   builds it, serves it here and follows your changes")
    output.say(f"  skerry test {several or folder}   runs its tests")


def _asked(template: str | None) -> tuple[str, str]:
    """Return the language and, unless it is given, the template that the person at the terminal chooses.

    Raises: UsageError, when this is no terminal.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise click.UsageError(f"say in which language: --lang {'|'.join(LANGUAGES)}")
    lang = click.prompt("Language", type=click.Choice(list(LANGUAGES)), default=next(iter(LANGUAGES)), err=True)
    if template is None:
        for each, does in TEMPLATES.items():
            output.note(f"  {each:8} {does}")
        template = click.prompt("Template", type=click.Choice(list(TEMPLATES)), default=DEFAULT_TEMPLATE, err=True)
    return lang, template


def _copy(lang: str, template: str, folder: Path) -> None:
    """Copy the files of a template in a language to a project's folder."""
    language, shared = examples() / lang, examples() / TEMPLATE_FOLDER / template
    left = {TEMPLATE_FOLDER, *BUILD_FILES, toolchains.FLAGS, toolchains.RUST_PROJECT, script_modules.TYPES}
    if template == DEFAULT_TEMPLATE:
        _copy_folder(language, folder, left)
        return
    _copy_folder(language, folder, {SCHEMA, project_files.TESTS, *left})
    _copy_folder(shared, folder, {MANIFEST, CALLS})
    _copy_folder(language / TEMPLATE_FOLDER / template, folder, set())
    file, readme = folder / project_files.FILE, folder / "README.md"
    how_built = file.read_text("utf-8").partition(MANIFEST_BEGIN)[0]
    file.write_text(how_built + (shared / MANIFEST).read_text("utf-8"), "utf-8")
    said = readme.read_text("utf-8").replace(TEMPLATES[DEFAULT_TEMPLATE], TEMPLATES[template])
    calls = (shared / CALLS).read_text("utf-8")
    readme.write_text(_CALLS.sub(lambda _: calls, said), "utf-8")


def _copy_folder(source: Path, folder: Path, left: set[str]) -> None:
    shutil.copytree(
        source,
        folder,
        ignore=lambda _, names: [n for n in names if n in left or (n.startswith(".") and n != ".gitignore")],
        copy_function=shutil.copyfile,
        dirs_exist_ok=True,
    )


def _write_editor_files(folder: Path) -> None:
    """Write what editors need for a new project."""
    (folder / EDITORS_SCHEMA).write_bytes(orjson.dumps(project_files.file_schema(), option=orjson.OPT_INDENT_2) + b"\n")
    told = f"#:schema ./{EDITORS_SCHEMA}\n"
    (folder / project_files.FILE).write_text(told + (folder / project_files.FILE).read_text("utf-8"), "utf-8")
    for source in project_files.read(folder).functions:
        toolchains.write_editor_files(folder, source.build)
        if source.script is not None:
            script_modules.write_types(folder, source.manifest)


def table_of(name: str) -> str:
    """Return the name of a function's table: the function's name, if it needs no quotes in SQL."""
    table = name.replace("-", "_")
    try:
        with contextlib.closing(sqlite3.connect(":memory:")) as opened:
            opened.execute(f"CREATE TABLE {table} (x)")
            opened.execute(f"SELECT x FROM {table} WHERE x = 1")  # noqa: S608
    except sqlite3.Error:
        # A keyword such as `order`, or a name that begins with a digit.
        return f"{TEMPLATE_NAME}_{table}"
    return table


def _replace(path: Path, *pairs: tuple[str, str]) -> None:
    text = path.read_text("utf-8")
    for before, after in pairs:
        text = text.replace(before, after)
    path.write_text(text, "utf-8")


def _begin_project(folder: Path) -> int:
    """Make a project of several functions if there is none; return the number of its next schema file.

    Raises: ProjectInvalid, when the existing files aren't such a project.
    """
    file, schema = folder / project_files.SEVERAL, folder / SCHEMA
    if file.exists():
        settings = project_files.read_several(folder)
        schema = folder / (settings.schema or SCHEMA)
    elif (folder / project_files.FILE).exists():
        raise project_files.ProjectInvalid(
            f"{folder} is a project of one function",
            cure=f"move it into a folder in {folder}, write {project_files.SEVERAL} (docs/functions.md), and try again",
        )
    else:
        name = folder.resolve().name
        options.NAME.convert(name, None, None)
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(
            "# A project: each folder in it that has a function.toml is a function; they share the schema.\n"
            f'name = "{name}"\nschema = "{SCHEMA}"\n',
            "utf-8",
        )
    return 1 + max(
        (int(match[1]) for path in _listed(schema) if (match := project_files.SCHEMA.fullmatch(path.name))), default=0
    )


def _listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _share_schema(folder: Path, several: Path, number: int) -> None:
    """Move the new function's schema file to the project, with this number."""
    schema = several / (project_files.read_several(several).schema or SCHEMA)
    schema.mkdir(parents=True, exist_ok=True)
    for path in sorted((folder / SCHEMA).glob("*.sql")):
        rest = path.name.partition("_")[2]
        shutil.move(path, schema / f"{number:04d}_{rest}")
        number += 1
    (folder / SCHEMA).rmdir()
    _replace(folder / project_files.FILE, (f'schema = "{SCHEMA}"\n', ""))
    _replace(folder / "README.md", (f"`{SCHEMA}/` creates", f"`{SCHEMA}/` of the project creates"))


@click.command()
@options.folder_argument
@options.json_option
@options.asynchronous
async def build(folder: Path, as_json: bool) -> None:
    """Build the functions of the project in FOLDER (this one), and check that a node can run what came out.

    The commands are in the functions' function.toml; where a compiler isn't here, you are told what to install.
    """
    done: list[Json] = []
    for source in project_files.read(folder).functions:
        toolchains.write_editor_files(source.folder, source.build)
        seconds = await toolchains.build(source)
        checked = await check(source)
        done.append({"name": source.name, "module": str(source.module), "seconds": round(seconds, 3), **checked})
        if not as_json:
            pages = f"{counted(checked['memory_pages'], 'page')} of memory"
            output.say(
                f"{source.module}: {output.size(checked['size'])}, ABI {checked['abi']}, {pages}, in "
                f"{output.span(seconds)}"
            )
    if as_json:
        output.document(done[0] if len(done) == 1 else done)


@click.command()
def schema() -> None:
    """Print the JSON Schema of function.toml, by which editors check and complete it.

    `skerry function new` writes it to function.schema.json; after an upgrade of Skerry, this does so again:
    `skerry function schema > function.schema.json`.
    """
    output.document(project_files.file_schema())


async def check(source: project_files.FunctionSource) -> Json:
    """Return the result of a node's check of a function's module, which runs in a child process.

    Raises: Failure, when a node can't run the module, or the check fails or takes longer than `CHECK_LIMIT`.
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "edge_runtime.oneshot.check",
        "module",
        str(source.module),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(CHECK_LIMIT):
            out, err = await child.communicate()
    except TimeoutError:
        raise Failure(f"the check of {source.module} took more than {CHECK_LIMIT:.0f} s") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        last = err.decode(errors="replace").strip().rpartition("\n")[2]
        raise Failure(f"the check of {source.module} ended with status {child.returncode}: {last}")
    answer: Json = orjson.loads(out)
    if not answer.pop("ok"):
        raise Failure(f"nodes can't run {source.module}: {answer['message']}", code=answer["code"])
    return answer
