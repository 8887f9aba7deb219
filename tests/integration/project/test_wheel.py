"""What is installed from a wheel has its SQL with it, and needs the packages of its extra alone."""

import contextlib
import importlib.metadata
import os
import re
import sqlite3
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

from control.cli.project import project_files
from control.cli.project.authoring import LANGUAGES, TEMPLATES
from control.protocol import version
from tests.support.deadlines import scaled

ROOT = Path(__file__).parents[3]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]

PLACES = {
    "schema": "control/_sql/schema",
    "cockroachdb": "control/_sql/cockroachdb",
    "queries": "control/_sql/queries",
    "edge": "edge_runtime/_sql",
}

USE = """
from control.storage import queries
from edge_runtime.sql import queries as statements
for path in sorted(queries.folder().rglob("*.sql")):
    if path.parent.name == "queries":
        assert queries.load(path.stem), path
print(queries.folder())
print(len(statements.load("tables")))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Somebody may have committed since this process read it: it is that of the wheel from here on.
    version.running.cache_clear()
    version.running()
    build = [*PIP, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", folder, ROOT]
    subprocess.run(build, check=True, timeout=scaled(100))
    (made,) = folder.glob("*.whl")
    return made


def test_the_wheel_has_the_sql_and_finds_it_there(wheel, tmp_path):
    with ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    for folder, place in PLACES.items():
        ours = {p.name: p.read_bytes() for p in (ROOT / "sql" / folder).glob("*.sql")}
        assert ours
        assert {p.name: p.read_bytes() for p in (tmp_path / "site" / place).glob("*.sql")} == ours

    for folder in ("templates", "static"):
        ours = {p.name: p.read_bytes() for p in (ROOT / "control/console" / folder).iterdir()}
        assert {p.name: p.read_bytes() for p in (tmp_path / "site/control/console" / folder).iterdir()} == ours

    for name in ("kernel.wat", "kernel.wasm"):
        here, there = (folder / "edge_runtime" / "guests" / "abi" / name for folder in (ROOT, tmp_path / "site"))
        assert there.read_bytes() == here.read_bytes()

    # Without the checkout, which an editable install has on the path: the wheel's folder comes first.
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}){USE}"]
    done = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True, timeout=scaled(60))
    folder, size = done.stdout.split()
    assert folder == str(tmp_path / "site" / "control" / "_sql")
    assert int(size) > 100

    # So do the projects of `skerry function new`, without what a build may have left in the checkout.
    use = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\nfrom control.cli import main\n"
    new = [
        ["function", "new", "orders", "--lang", language, "--template", template, "--into", f"{language}-{template}"]
        for language in LANGUAGES
        for template in TEMPLATES
    ]
    made = f"{use}sys.exit(any([main.run(each) for each in {new}]))"
    subprocess.run([sys.executable, "-c", made], check=True, cwd=tmp_path, timeout=scaled(60))
    for *_, folder in new:
        found = project_files.read(tmp_path / folder)
        assert found.name == "orders"
        assert len(found.changes()) == 1
        assert not found.functions[0].module.exists()
        assert (found.folder / ".gitignore").exists()


def test_a_wheel_with_machine_code_says_which_machine_it_is_for(wheel):
    with ZipFile(wheel) as archive:
        code = [name for name in archive.namelist() if name.endswith(".so")]
    assert wheel.name.endswith("-none-any.whl") == (code == [])


def install(wheel: Path, folder: Path, packages: set[str]) -> Path:
    """A virtual environment with the wheel and, as symbolic links to our own copies, `packages`; its programs."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=scaled(60))
    programs = folder / "bin"
    there = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    for distribution in importlib.metadata.distributions(path=[sysconfig.get_path("purelib")]):
        if re.sub(r"[-_.]+", "-", distribution.name).lower() in packages:
            tops = {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}
            for top in tops:
                Path(there, top).symlink_to(distribution.locate_file(top))
    command = [*PIP, "--python", programs / "python", "install", "--no-deps", "--no-index", wheel]
    subprocess.run(command, check=True, timeout=scaled(60))
    return programs


def test_an_edge_runs_without_controls_packages(wheel, tmp_path):
    locked = re.findall(r"^([a-z0-9.-]+)==", (ROOT / "lock" / "edge.lock").read_text(), re.MULTILINE)
    assert {"cffi", "msgspec"} <= set(locked)
    programs = install(wheel, tmp_path / "edge", set(locked))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SKERRY_", "PYTHON"))}

    def run(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [programs / program, *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=scaled(60), check=False
        )

    done = run("skerry-edge", "--version")
    text = version.running().text if version.running().date else version.told()
    assert done.stdout == f"skerry-edge, version {text}\n", done.stderr
    done = run("skerry-edge", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    example = ROOT / "examples" / "visits"
    call = ("call", example / "visits.wasm", "--manifest", example / "manifest.json", "--sql", tmp_path / "data.db")
    call = (*call, "--path", "/ada", "--method", "POST")
    with contextlib.closing(sqlite3.connect(tmp_path / "data.db")) as database:
        database.executescript((example / "schema.sql").read_text())
    called = run("skerry-edge", *call)
    assert called.returncode == 0, called.stderr
    print(called.stdout)
    assert called.stdout.startswith("200 OK")
    assert called.stdout.rstrip().endswith('{"name":"ada","count":1}')

    refused = run("skerry", "status")
    assert (refused.returncode, refused.stdout) == (2, "")
    (line,) = refused.stderr.splitlines()
    assert "pip install 'skerry[control]'" in line

    for found in Path(tmp_path, "edge").rglob("libsql_experimental"):
        found.unlink()
    refused = run("skerry-edge", *call)
    assert (refused.returncode, refused.stdout) == (2, "")
    (line,) = refused.stderr.splitlines()
    assert "pip install 'skerry[edge]'" in line
