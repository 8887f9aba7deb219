"""A real Prometheus and a real Alertmanager, of Debian's packages as `scripts/debian-tools` unpacks them."""

import contextlib
import functools
import json
import re
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from control.local.process import Service
from tests.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / ".skerry" / "debian"
PROGRAMS = PLACE / "usr" / "bin"
ALERTS = ROOT / "packaging" / "alerts"
WINDOW = 10
"""Seconds of the windows in a test's copy of the rules."""


def run(program: str, *arguments: str | Path) -> str:
    """Run one of the programs to its end, which must be a success; return what it said."""
    done = subprocess.run(
        [str(PROGRAMS / program), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def quick(rules: str, thresholds: Mapping[str, tuple[str, str]]) -> str:
    """A copy of the rules for a test: windows of `WINDOW` seconds and no patience; `thresholds` are parts of rules with
    what takes their place, by alert."""
    made = re.sub(r"\[\d+[smhd]\]", f"[{WINDOW}s]", rules)
    made = re.sub(r"offset \d+[smhd]", f"offset {WINDOW}s", made)
    made = re.sub(r"^( +)for: .*$", r"\1for: 0s", made, flags=re.MULTILINE)
    for alert, (old, new) in thresholds.items():
        before, found, after = made.partition(f"alert: {alert}\n")
        assert found, f"there is no alert {alert}"
        rule, separator, rest = after.partition("- alert: ")
        assert old in rule, f"{alert} doesn't have {old!r}"
        made = before + found + rule.replace(old, new) + separator + rest
    return made


@dataclass
class Prometheus:
    """A Prometheus with an Alertmanager behind it."""

    http: aiohttp.ClientSession
    url: str

    async def _get(self, path: str, **query: str) -> Any:
        async with self.http.get(f"{self.url}/api/v1/{path}", params=query) as answer:
            found = await answer.json()
            assert found["status"] == "success", found
            return found["data"]

    async def query(self, expression: str) -> list[Any]:
        """What an expression answers now: a list of `metric` and `value`."""
        return list((await self._get("query", query=expression))["result"])

    async def firing(self) -> set[str]:
        """The names of the alerts that are firing."""
        found = (await self._get("alerts"))["alerts"]
        return {alert["labels"]["alertname"] for alert in found if alert["state"] == "firing"}

    async def up(self, job: str) -> list[float]:
        """Whether the targets of a job answered, each 1 or 0."""
        return [float(row["value"][1]) for row in await self.query(f'up{{job="{job}"}}')]


@contextlib.asynccontextmanager
async def prometheus(
    folder: Path, rules: str, scraped: Sequence[Mapping[str, Any]], receiver: str
) -> AsyncIterator[Prometheus]:
    """Run both until the block ends; alerts go to the URL `receiver` as the Alertmanager's webhooks."""
    folder.mkdir(parents=True, exist_ok=True)
    own, other = (f"127.0.0.1:{free_port()}" for _ in range(2))
    (folder / "rules.yml").write_text(rules)
    every = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    alertmanagers = {"alertmanagers": [{"static_configs": [{"targets": [other]}]}]}
    files = {"rule_files": ["rules.yml"], "alerting": alertmanagers, "scrape_configs": list(scraped)}
    # JSON is YAML.
    (folder / "prometheus.yml").write_text(json.dumps({"global": every} | files))
    route = {"receiver": "test", "group_by": ["alertname"], "group_wait": "0s", "group_interval": "1s"}
    told = {"name": "test", "webhook_configs": [{"url": receiver}]}
    (folder / "alertmanager.yml").write_text(json.dumps({"route": route, "receivers": [told]}))
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(20)) as http:
        with (folder / "lock").open("w") as held:
            servers = [Service(name, folder / f"{name}.log", held.fileno()) for name in ("alertmanager", "prometheus")]
            commands: list[list[str | Path]] = [
                [
                    *(PROGRAMS / "prometheus-alertmanager", f"--config.file={folder / 'alertmanager.yml'}"),
                    *(f"--storage.path={folder / 'alertmanager'}", f"--web.listen-address={other}"),
                    "--cluster.listen-address=",
                ],
                [
                    *(PROGRAMS / "prometheus", f"--config.file={folder / 'prometheus.yml'}"),
                    *(f"--storage.tsdb.path={folder / 'prometheus'}", f"--web.listen-address={own}"),
                    "--rules.alert.resend-delay=1s",
                ],
            ]
            try:
                for server, command, address in zip(servers, commands, (other, own), strict=True):
                    process = server.spawn(command, cwd=PLACE, env={})
                    await server.run_until_ready(process, functools.partial(_ready, http, f"http://{address}/-/ready"))
                yield Prometheus(http, f"http://{own}")
            finally:
                for server in servers:
                    await server.stop()


async def _ready(http: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with http.get(url) as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False
