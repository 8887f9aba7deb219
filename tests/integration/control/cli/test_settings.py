"""What `skerry` says of its own settings, and of variables that are none."""

import json
from pathlib import Path

from tests.support import programs


async def test_the_commands_own_settings_are_shown_without_the_token(tmp_path: Path) -> None:
    given = {"SKERRY_URL": "https://control.example", "SKERRY_TOKEN": "sko_secret", "SKERRY_HOME": str(tmp_path)}
    done = await programs.command("control.cli", "settings", "--own", "--json", **given, SKERRY_TOKN="x")
    found = {s["name"]: (s["value"], s["origin"]) for s in json.loads(done.out)}
    assert found["SKERRY_URL"] == ("https://control.example", "environment")
    assert found["SKERRY_TOKEN"] == ("(set, and not shown)", "environment")
    assert found["SKERRY_CA"] == ("", "default")
    assert "is SKERRY_TOKEN meant?" in done.err
    (tmp_path / "cli.json").write_text(json.dumps({"url": "https://127.0.0.1:1", "token": "sko_secret"}))
    done = await programs.command("control.cli", "settings", "--own", "--json", SKERRY_HOME=str(tmp_path))
    found = {s["name"]: (s["value"], s["origin"]) for s in json.loads(done.out)}
    assert (found["SKERRY_URL"], found["SKERRY_TOKEN"][1]) == (("https://127.0.0.1:1", "file"), "file")


async def test_control_warns_in_its_log_of_a_variable_that_is_none() -> None:
    done = await programs.command("control.cli", "serve", SKERRY_PROT="8443")
    assert done.status != 0
    assert "Z WARNING skerry.control: the environment variable SKERRY_PROT is none of Skerry's" in done.err
    assert "is SKERRY_PORT meant?" in done.err
