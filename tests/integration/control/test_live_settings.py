"""Settings of a file that is read again while control runs."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from control.live_settings import LiveSettings
from control.settings import ControlSettings, ControlSettingsError
from tests.support.control import until
from tests.support.replica import Site


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    """The log's level is the process's."""
    logger = logging.getLogger("skerry")
    before = logger.level
    logger.setLevel(logging.INFO)
    yield
    logger.setLevel(before)


@pytest.fixture
def settings(tmp_path: Path) -> ControlSettings:
    (tmp_path / "control.env").write_text("")
    return ControlSettings(
        metadata_url="postgresql://a@127.0.0.1/a",
        artifacts_url="http://k:s@127.0.0.1:1/b",
        body_limit=1000,
        settings_file=tmp_path / "control.env",
    )


def test_what_the_file_says_goes_before_the_environment_and_can_be_taken_back(
    settings: ControlSettings, tmp_path: Path
) -> None:
    file, logger = tmp_path / "control.env", logging.getLogger("skerry")
    live = LiveSettings(settings)
    assert live.look() is False
    file.write_text(
        "# as systemd reads it\n\nSKERRY_METADATA_URL=postgresql://secret@elsewhere/b\n"
        "SKERRY_BODY_LIMIT=2000\nexport SKERRY_STALL_LIMIT='2.5'\nSKERRY_LOG_LEVEL=\"debug\"\n"
    )
    assert live.look() is True
    assert (live.settings.body_limit, live.settings.stall_limit) == (2000, 2.5)
    assert live.settings.metadata_url == settings.metadata_url, "it is for the start alone"
    assert live.named == {"body_limit", "stall_limit"}
    assert logger.level == logging.DEBUG
    assert live.look() is False
    file.write_text("SKERRY_STALL_LIMIT=2.5\n")
    assert live.look() is True
    assert (live.settings.body_limit, logger.level) == (1000, logging.INFO)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("SKERRY_BODY_LIMIT=many", "must be a whole number"),
        ("SKERRY_BODY_LIMIT=0", "must be more than 0"),
        ("SKERRY_LOG_LEVEL=loud", "must be one of debug, info"),
        ("SKERRY_BODY_LIMIT=5000\na secret\n", "line 2 of"),
    ],
)
def test_a_file_that_cant_be_used_changes_nothing(
    settings: ControlSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, said: str
) -> None:
    file = tmp_path / "control.env"
    file.write_text("SKERRY_BODY_LIMIT=3000")
    live = LiveSettings(settings)
    file.write_text(text)
    for _ in range(3):
        assert live.look() is False
        assert said in live.error
    assert live.settings.body_limit == 3000
    assert sum(said in line for line in caplog.messages) == 1
    assert "a secret" not in caplog.text
    with pytest.raises(ControlSettingsError, match=said):
        LiveSettings(settings)
    file.unlink()
    assert live.look() is False
    assert "can't be read" in live.error
    file.write_text("SKERRY_BODY_LIMIT=4000")
    assert live.look() is True
    assert (live.settings.body_limit, live.error) == (4000, "")


async def test_a_running_replica_goes_by_it(control_site: Site, tmp_path: Path) -> None:
    file = tmp_path / "live.env"
    file.write_text("")
    site = replace(control_site, settings=replace(control_site.settings, settings_file=file))
    async with site.running() as replica:

        async def status() -> int:
            return (await replica.call("POST", "/v1/groups", {"name": "x" * 500})).status

        assert await status() == 422
        file.write_text("SKERRY_BODY_LIMIT=100\n")

        async def refused() -> bool:
            return await status() == 413

        await until(refused)
        shown = {s["name"]: s for s in (await replica.call("GET", "/v1/settings")).json()["items"]}
        assert (shown["SKERRY_BODY_LIMIT"]["value"], shown["SKERRY_BODY_LIMIT"]["origin"]) == ("100", "file")
        file.write_text("")

        async def back() -> bool:
            return await status() == 422

        await until(back)
