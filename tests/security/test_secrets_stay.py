"""A secret on its way from the node's file to the function, with a real control, store and database: nowhere else."""

import os
from pathlib import Path

from tests.guests.build import guest
from tests.support.cluster import NODE, VERSION, Cluster, cluster

VALUE = "a-value-that-nobody-may-see"
NAME = "keeper"


async def test_a_secret_stays_on_its_node() -> None:
    async with cluster(functions=(VERSION,)) as made:
        made.doing = "a release with a function whose secret the node lacks"
        file = made.folder / "edge" / "secrets.toml"
        version = await made.push(NAME, guest("fetch"), secrets=["KEY"], route={"path": "/keep/{what}"})
        await made.call("POST", "/v1/releases", {"functions": {NAME: version}})

        async def failed() -> bool:
            return (await made.node())["error"] is not None

        await made.until("the node has failed the sync", failed)
        error = (await made.node())["error"]
        made.check(error["code"] == "secret_missing", str(error))
        made.check(f"{NAME} needs the secret KEY" in error["message"], str(error))
        made.check(str(file) in error["message"], str(error))
        made.check((await made.ask(f"/functions/{VERSION}"))[0] == 200, "the old release doesn't serve")
        made.check((await made.ask(f"/functions/{NAME}"))[0] == 404, "a part of the new release serves")

        made.doing = "the secret is put there"
        new = file.with_suffix(".new")
        new.touch(0o600)
        new.write_text(f'[{NAME}]\nKEY = "{VALUE}"\n')
        new.replace(file)
        await made.call("POST", f"/v1/nodes/{NODE}/retry")

        async def served() -> bool:
            return (await made.ask("/keep/it?env=KEY"))[2] == VALUE.encode()

        await made.until("the function has its secret", served)
        await made.until("control knows it", lambda: _at_target(made))

        made.doing = "the value is looked for"
        made.check(VALUE not in str(await made.status()), "it is in the node's status")
        for path in ("/v1/nodes", "/v1/releases", "/v1/syncs", "/v1/audit", f"/v1/functions/{NAME}/versions"):
            made.check(VALUE not in str(await made.items(path)), f"it is in {path}")
        files = [Path(folder) / name for folder, _, names in os.walk(made.folder) for name in names]
        holding = [str(path) for path in files if VALUE.encode() in content(path)]
        made.check(len(files) > 100, "the files of control's database aren't there")
        made.check(holding == [str(file)], f"it is in {holding}")


def content(path: Path) -> bytes:
    """The bytes of a file; none where the path isn't a file, or is one of a server's own that is gone by now."""
    try:
        return path.read_bytes() if path.is_file() else b""
    except FileNotFoundError:
        return b""


async def _at_target(made: Cluster) -> bool:
    return bool((await made.node())["at_target"])
