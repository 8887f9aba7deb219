"""What is installed from a wheel has its SQL, its licence and the mark of its types with it."""

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

from control.cli.support import project
from control.cli.support.authoring import LANGUAGES

ROOT = Path(__file__).parents[3]

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


def test_the_wheel_has_all_that_it_needs_and_finds_it_there(tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", tmp_path, ROOT]
    subprocess.run(build, check=True, timeout=100)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    for folder, place in PLACES.items():
        ours = {p.name: p.read_bytes() for p in (ROOT / "sql" / folder).glob("*.sql")}
        assert ours
        assert {p.name: p.read_bytes() for p in (tmp_path / "site" / place).glob("*.sql")} == ours

    for name in ("kernel.wat", "kernel.wasm"):
        here, there = (folder / "edge_runtime" / "guests" / "abi" / name for folder in (ROOT, tmp_path / "site"))
        assert there.read_bytes() == here.read_bytes()

    # Who may use it, and that its types can be checked where it is imported.
    (info,) = (tmp_path / "site").glob("*.dist-info")
    for name in ("LICENSE", "NOTICE"):
        assert (info / "licenses" / name).read_bytes() == (ROOT / name).read_bytes()
    assert "\nLicense-Expression: Apache-2.0\n" in (info / "METADATA").read_text("utf-8")
    for package in ("control", "edge_runtime"):
        assert (tmp_path / "site" / package / "py.typed").is_file()

    # Without the checkout, which an editable install has on the path: the wheel's folder comes first.
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}){USE}"]
    done = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    folder, size = done.stdout.split()
    assert folder == str(tmp_path / "site" / "control" / "_sql")
    assert int(size) > 100

    # So do the projects of `skerry function new`, without what a build may have left in the checkout.
    use = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\nfrom control import cli\n"
    for language in LANGUAGES:
        new = ["function", "new", "orders", "--lang", language, "--into", language]
        subprocess.run([sys.executable, "-c", f"{use}sys.exit(cli.run({new}))"], check=True, cwd=tmp_path, timeout=60)
        found = project.read(tmp_path / language)
        assert found.name == "orders"
        assert len(found.changes()) == 1
        assert not found.module.exists()
        assert (found.folder / ".gitignore").exists()
