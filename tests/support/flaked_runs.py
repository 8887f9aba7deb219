"""A plugin of pytest's for `.ci/run`: a test that failed alone runs again, and may be found to have flaked.

`.ci/run` names a file in SKERRY_TEST_FLAKED, in which the one test is noted that may flake in all its runs of pytest.
The rules are in tests/support/flaked.py.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support import flaked, flaked_file

VARIABLE = "SKERRY_TEST_FLAKED"
LIMIT = 300.0
"""Seconds for all runs of the test."""
TAIL = 3000
"""Characters of a log that are shown."""


def join(config: pytest.Config) -> None:
    """Take part in this process of pytest's, where `.ci/run` is what runs it."""
    if VARIABLE in os.environ:
        config.pluginmanager.register(Logs())
        if not hasattr(config, "workerinput"):
            config.pluginmanager.register(Runs(config, Path(os.environ[VARIABLE])))


class Logs:
    """In a process that runs tests: tells what the logs of programs have at a failure."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        self._began, self._failed = time.time(), False
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        self._failed |= report.failed
        if self._failed:
            # Programs may write their last when the test is over: what they have logged is looked at then, too.
            logs = dict(self._logs(item.config._tmp_path_factory.getbasetemp()))  # type: ignore[attr-defined]
            said = call.excinfo.exconly() if report.failed and call.excinfo else ""
            shown = [content for _, content in report.sections]
            report.grave = flaked.grave("\n".join([said, *shown, *logs.values()]))
            if report.failed:
                report.sections += [(f"Log {path.name}", text[-TAIL:]) for path, text in logs.items() if text]
        return report

    def _logs(self, folder: Path) -> Iterator[tuple[Path, str]]:
        """Each log that a program of the test, or one that is lent to it, has written to meanwhile."""
        for place, _, names in os.walk(folder):
            for path in (Path(place, name) for name in names if name.endswith(".log")):
                with contextlib.suppress(OSError):
                    if path.is_file() and path.stat().st_mtime >= self._began - 1:
                        yield path, path.read_text("utf-8", "replace")


class Runs:
    """In the process that people see: has what failed run again when all else has ended, and says what that means."""

    def __init__(self, config: pytest.Config, state: Path) -> None:
        self._config, self._state = config, state
        self._failed: dict[str, list[pytest.TestReport]] = {}
        self._grave: dict[str, str] = {}
        self._told: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what is told of a failure."""
        if report.failed:
            self._failed.setdefault(report.nodeid, []).append(report)
        if found := getattr(report, "grave", ""):
            self._grave[report.nodeid] = found

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Run again what failed, if that is all that is wrong, and have the run go on if it flaked."""
        stats = self._config.pluginmanager.get_plugin("terminalreporter").stats
        failed = {report.nodeid for kind in ("failed", "error") for report in stats.get(kind, [])}
        if exitstatus == pytest.ExitCode.TESTS_FAILED and failed == set(self._failed):
            why = flaked.refusal([self._failure(name) for name in self._failed], self._state.exists())
            if not why:
                [(name, reports)] = self._failed.items()
                why = self._tried(name, reports)
                if not why:
                    _leave_out(stats, name)
                    stats["flaked"] = reports[:1]
                    session.testsfailed, session.exitstatus = 0, pytest.ExitCode.OK
            if why:
                self._told = [f"no test has flaked: {why}"]
        # What another user's run has noted, too: that user's home may be gone soon.
        flaked_file.add(flaked_file.read(self._state))

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say it before pytest's own summary."""
        for line in self._told:
            terminalreporter.write_line(line)

    def _failure(self, name: str) -> flaked.Failure:
        reports = self._failed[name]
        crashed = any(report.when not in ("setup", "call", "teardown") for report in reports)
        return flaked.Failure(name, reports[0].keywords, crashed, self._grave.get(name, ""))

    def _tried(self, name: str, reports: list[pytest.TestReport]) -> str:
        """Run a test again; return why its failure stands, '' where it flaked, which is noted then."""
        text = reports[0].longreprtext
        sections = [*reports[0].sections]
        seed = flaked.seed(os.environ.get("SKERRY_TEST_SEED"), "\n".join([text, *(shown for _, shown in sections)]))
        until = time.monotonic() + LIMIT
        runs = []
        for how, beside in (("alone", False), ("beside a busy program", True)):
            print(f"\nrunning again, {flaked.TIMES} times {how}: {name}", flush=True)
            runs.append(self._again(self._plain(name), seed, until, how, beside))
            if why := flaked.verdict(runs):
                return f"{why}\n{runs[-1].said}"
        error = getattr(getattr(reports[0].longrepr, "reprcrash", None), "message", text)
        entry = flaked.entry(name, datetime.now(UTC).date(), seed, error)
        try:
            with self._state.open("x", encoding="utf-8") as noted:
                noted.write(flaked.text([entry]))
        except FileExistsError:
            return "another test has flaked in this .ci/run"
        self._told = ["", f"FLAKED {name}", text[-TAIL:]]
        for title, shown in sections:
            self._told += [f"-- {title}, its end", shown[-TAIL:]]
        self._told += [
            f"-- {flaked_file.machine_file()} has what tests/flaked.toml needs, with the cause that you suspect:",
            flaked.text([entry]),
            f"FLAKED {name}, seed {seed or 'as always'}: it failed once, then passed {flaked.TIMES} times alone and "
            f"{flaked.TIMES} times beside a busy program",
        ]
        return ""

    def _plain(self, name: str) -> str:
        """The test's name without the group that xdist puts behind it."""
        grouped = self._config.getoption("dist", "no") == "loadgroup" and name.rfind("@") > name.rfind("]")
        return name.rpartition("@")[0] if grouped else name

    def _again(self, name: str, seed: str, until: float, how: str, beside: bool) -> flaked.Again:
        environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
        if seed:
            environment["SKERRY_TEST_SEED"] = seed
        left = max(until - time.monotonic(), 1.0)
        command = [sys.executable, "-m", "pytest", "-p", "tests.support.ten_times", "-p", "no:cacheprovider"]
        with contextlib.ExitStack() as ends:
            if beside:
                busy = subprocess.Popen([sys.executable, "-ISc", "while True: pass"])
                ends.callback(_end, busy, signal.SIGKILL)
            ran = subprocess.Popen(
                [*command, "--timeout=0", name],
                cwd=self._config.rootpath,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            ends.callback(_end, ran, signal.SIGINT)
            try:
                out, _ = ran.communicate(timeout=left)
            except subprocess.TimeoutExpired:
                return flaked.Again(how, 0, f"after {LIMIT:.0f} s of all runs it still ran")
        passed = re.search(r"(\d+) passed", out.rstrip().rpartition("\n")[2])
        return flaked.Again(how, int(passed[1]) if passed else 0, out[-TAIL:])


def _leave_out(stats: dict[str, list[Any]], name: str) -> None:
    """Have pytest's summary count no failure of that test."""
    for kind in ("failed", "error"):
        left = [report for report in stats.pop(kind, []) if report.nodeid != name]
        if left:
            stats[kind] = left


def _end(process: subprocess.Popen[Any], by: signal.Signals) -> None:
    """Have a process end; one of pytest's takes down what it has started."""
    if process.poll() is None:
        process.send_signal(by)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
