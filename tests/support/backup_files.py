"""A node's database with a history, as the files of a backup have it."""

import io
from pathlib import Path

from control.backups.objects import BackupFile
from control.protocol import ltx
from edge_runtime.sql import database

BEGUN_MS = 1_700_000_000_000
EVERY_MS = 20_000
"""Milliseconds from each transaction to the next."""


def states(folder: Path, count: int) -> list[bytes]:
    """Make a node's database; return its file after each of `count` transactions."""
    path, found = folder / "source.db", []
    with database.connect(path, foreign_keys=True) as opened:
        for at in range(count):
            if at == 0:
                opened.rows("CREATE TABLE orders (id INTEGER PRIMARY KEY, text TEXT)")
            opened.rows(f"INSERT INTO orders (text) SELECT printf('%0900d', {at}) FROM (VALUES (1), (2), (3))")
            opened.rows("PRAGMA wal_checkpoint(TRUNCATE)")
            found.append(path.read_bytes())
    return found


def history(states: list[bytes], every_ms: int = EVERY_MS) -> dict[BackupFile, bytes]:
    """Return a snapshot of the first state, and a shipment for each other one, so many milliseconds apart."""
    found, before = {}, b""
    for number, state in enumerate(states, start=1):
        size = int.from_bytes(state[16:18], "big")
        pages = {at // size + 1: state[at : at + size] for at in range(0, len(state), size)}
        wrote = {page: data for page, data in pages.items() if before[(page - 1) * size : page * size] != data}
        out = io.BytesIO()
        header = ltx.Header(size, len(pages), number, number, BEGUN_MS + number * every_ms)
        written = ltx.write(out, header, sorted(wrote.items()))
        found[BackupFile(9 if number == 1 else 0, number, number, written)] = out.getvalue()
        before = state
    return found
