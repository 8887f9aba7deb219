"""What the store has of a node's backup, and the database that Litestream makes of it."""

import asyncio
import sys
from pathlib import Path

from control.backups import objects
from control.backups.objects import BackupFile
from control.storage.object_store import Store

LITESTREAM = Path(sys.executable).with_name("litestream")


async def stored(store: Store, node: str, lineage: str = "") -> dict[str, dict[BackupFile, bytes]]:
    """Return by lineage, or of one, the files of a node's backup."""
    found: dict[str, dict[BackupFile, bytes]] = {}
    async for page in store.under(objects.prefix(node, lineage)):
        for item in page:
            one = objects.parse(item.key, item.size)
            assert one is not None, item.key
            read = await store.read(item.key, item.size)
            assert read is not None
            found.setdefault(one.lineage, {})[one.file] = read.data
    return found


async def restored(files: dict[BackupFile, bytes], folder: Path, *more: str) -> Path:
    """Return the database that `litestream restore` makes of the files of a history, in a new folder."""
    folder.mkdir()
    for file, data in files.items():
        path = folder / "replica" / "ltx" / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    made = folder / "restored.db"
    command = [LITESTREAM, "restore", *more, "-o", made, f"file://{folder / 'replica'}"]
    process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-2)
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return made
