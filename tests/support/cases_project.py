"""A project with test cases, whose modules are built already, and `skerry test` of it."""

from pathlib import Path

import orjson

from tests.support.programs import Done, command

SCHEMA = (
    "CREATE TABLE notes (id INTEGER PRIMARY KEY, author TEXT, text TEXT);\nINSERT INTO notes VALUES (1, 'x', NULL);"
)


class Folder:
    """A project of modules that are built already."""

    def __init__(self, path: Path, cache: Path) -> None:
        self.path = path
        self._cache = cache

    def function(
        self, name: str, wasm: bytes, manifest: str = 'sql = "write"', folder: str = ".", top: str = ""
    ) -> None:
        at = self.path / folder
        at.mkdir(parents=True, exist_ok=True)
        (at / "function.wasm").write_bytes(wasm)
        (at / "function.toml").write_text(f'name = "{name}"\nmodule = "function.wasm"\n{top}\n[manifest]\n{manifest}\n')

    def schema(self, sql: str = SCHEMA) -> None:
        (self.path / "schema").mkdir(exist_ok=True)
        (self.path / "schema" / "0001_notes.sql").write_text(sql)

    def cases(self, text: str, name: str = "notes", folder: str = ".") -> None:
        at = self.path / folder / "tests"
        at.mkdir(parents=True, exist_ok=True)
        (at / f"{name}.toml").write_text(text)

    async def test(self, *arguments: str | Path) -> Done:
        return await command("control.cli", "test", self.path, *arguments, XDG_CACHE_HOME=str(self._cache))


def sent(sql: str) -> str:
    """A request with a statement for the function, as a line of TOML."""
    body = orjson.dumps({"sql": sql}).decode()
    return f"request = {{ body = {orjson.dumps(body).decode()} }}"
