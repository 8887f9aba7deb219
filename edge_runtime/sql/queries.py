"""The edge's own SQL, from the files in ``sql/edge``."""

from pathlib import Path


def load(name: str) -> str:
    """The text of ``sql/edge/<name>.sql``, from the wheel's copy or from the checkout."""
    packaged = Path(__file__).parents[1] / "_sql"
    folder = packaged if packaged.is_dir() else Path(__file__).parents[2] / "sql" / "edge"
    return (folder / f"{name}.sql").read_text(encoding="utf-8")
