"""`skerry-edge caller`: what it makes of the file, and that a node which it can't start says why."""

import asyncio
import hashlib
import json
from pathlib import Path

from edge_runtime.web import callers_file
from tests.integration.edge_runtime.cli.test_node import command

KEPT = """# Ours, by hand.
[[caller]]
name = "old"            # since 2024
token_sha256 = "%s"
functions = "all"

# The next one.
"""


async def test_callers_are_added_listed_and_removed(tmp_path: Path) -> None:
    file = str(tmp_path / "callers.toml")
    status, token, err = await command("caller", "add", "till", "--file", file, "--function", "orders", "--rate", "50")
    assert status == 0, err
    token = token.strip()
    assert token.startswith("skc_")
    assert len(token) > 40
    text = Path(file).read_text()
    assert token not in text
    assert hashlib.sha256(token.encode()).hexdigest() in text
    assert Path(file).stat().st_mode & 0o777 == 0o600
    status, out, _ = await command("caller", "add", "prometheus", "--pages", "--json", SKERRY_EDGE_CALLERS=file)
    assert (status, json.loads(out)["token"][:4]) == (0, "skc_")
    status, _, err = await command("caller", "add", "till", "--all-functions", "--file", file)
    assert status == 1
    assert "callers_unfit" in err
    assert "`skerry-edge caller delete till` first" in err
    status, _, err = await command("caller", "list")
    assert status == 2
    assert "SKERRY_EDGE_CALLERS" in err
    for wrong, said in (
        (("Till", "--pages"), "'Till' is no name"),
        (('a"', "--pages"), "is no name"),
        (("a", "--function", "Orders"), "'Orders' is no name"),
        (("a", "--pages", "--rate", "nan"), "--rate is calls a second"),
        (("a", "--pages", "--rate", "inf"), "--rate is calls a second"),
    ):
        status, _, err = await command("caller", "add", *wrong, "--file", file)
        assert status == 2
        assert said in err
    status, out, _ = await command("caller", "list", "--file", file)
    assert out.splitlines() == [
        "till (by token): orders, 50 calls a second, 50 at once",
        "prometheus (by token): no function, the node's pages",
    ]
    assert (await command("caller", "delete", "till", "--file", file))[0] == 0
    status, _, err = await command("caller", "delete", "till", "--file", file)
    assert status == 1
    assert "caller_missing" in err
    assert "it has prometheus" in err
    status, out, _ = await command("caller", "list", "--file", file, "--json")
    assert [caller["name"] for caller in json.loads(out)["callers"]] == ["prometheus"]
    assert (await command("caller", "add", "nothing", "--file", file))[0] == 2
    assert (await command("caller", "add", "both", "--file", file, "--pages", "--burst", "2"))[0] == 2


async def test_what_else_is_in_the_file_stays_and_two_commands_lose_nothing(tmp_path: Path) -> None:
    file = tmp_path / "callers.toml"
    file.write_text(KEPT % ("0" * 64))
    file.chmod(0o600)
    names = [f"caller-{number}" for number in range(4)]
    done = await asyncio.gather(
        *[command("caller", "add", name, "--all-functions", "--file", str(file)) for name in names]
    )
    assert [status for status, _, _ in done] == [0] * 4
    text = file.read_text()
    assert text.startswith(KEPT % ("0" * 64))
    assert {entry.name for entry in callers_file.parse(text.encode(), "f")} == {"old", *names}
    # A form that no command writes isn't changed by one.
    file.write_text(f'caller = [{{ name = "a", token_sha256 = "{"1" * 64}", functions = "all" }}]\n')
    before = file.read_text()
    for verb in (("add", "b", "--all-functions"), ("delete", "a")):
        status, _, err = await command("caller", *verb, "--file", str(file))
        assert status == 1
        assert "callers_unfit" in err
    assert file.read_text() == before


async def test_a_file_that_others_may_read_isnt_used(tmp_path: Path) -> None:
    file = tmp_path / "callers.toml"
    file.write_text(KEPT % ("0" * 64))
    file.chmod(0o644)
    for verb in (("list",), ("add", "b", "--pages"), ("delete", "old")):
        status, _, err = await command("caller", *verb, "--file", str(file))
        assert status == 1
        assert "chmod 600" in err
