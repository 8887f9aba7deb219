"""The loop that has files read again: at a signal, past what fails, and through links."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from control.reread_files import RereadFiles
from tests.integration.control.access.test_certificates import put, started
from tests.support.certificates import Authority
from tests.support.clock import SetClock
from tests.support.control import until


class Broken:
    """Files whose look ends with an error that nobody has thought of."""

    error = ""

    def look(self, *, anew: bool = False) -> bool:
        raise RuntimeError("a fault of the program")


async def test_a_signal_has_all_files_read_at_once_past_what_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority()
    served = started(put(tmp_path, authority.issue("control"), authority.certificate))
    files, changed = RereadFiles({"broken": Broken(), "certificates": served}, SetClock(timers="stand")), list[str]()
    files.changed.append(lambda: changed.append("told"))
    running = asyncio.create_task(files.run())
    try:
        for number in (1, 2):
            before = served.context
            put(tmp_path, authority.issue("control"), authority.certificate)
            files.look_now()

            # Those who wait for a change are told of it when all files are read.
            async def told(number: int = number) -> bool:
                return len(changed) == number

            await until(told)
            assert served.context is not before
            assert sum("the files of broken couldn't be looked at" in line for line in caplog.messages) == number
        (tmp_path / "control.pem").write_text("nothing")
        files.look_now()

        async def said() -> bool:
            return bool(files.errors())

        await until(said)
        [line] = files.errors()
        assert line.startswith("certificates: ")
        assert line.endswith("what was read before stays in use")
        assert len(changed) == 2
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def test_a_link_is_followed_to_the_file_that_it_names(tmp_path: Path) -> None:
    """As tools leave them that renew certificates."""
    authority = Authority()
    archive = tmp_path / "archive"
    settings = put(tmp_path, authority.issue("control"), authority.certificate)
    for path in (settings.tls_cert, settings.tls_key):
        assert path is not None
        path.unlink()
        path.symlink_to(archive / path.name)
    authority.issue("control").put(archive, "control")
    served = started(settings)
    authority.issue("control", timedelta(days=300)).put(archive, "control")
    assert served.look()
