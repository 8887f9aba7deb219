"""The edge's own SQL statements, in the folder ``sql/edge``."""

from pathlib import Path


def load(name: str) -> str:
    """Return the text of ``sql/edge/<name>.sql``, from the installed package or from the checkout."""
    packaged = Path(__file__).parents[1] / "_sql"
    folder = packaged if packaged.is_dir() else Path(__file__).parents[2] / "sql" / "edge"
    return (folder / f"{name}.sql").read_text(encoding="utf-8")
