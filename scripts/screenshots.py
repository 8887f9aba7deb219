"""Takes the pictures of the console, docs/images/console-*.png: real pages of a real fleet, started for them.

`skerry up` serves in an empty folder; further nodes join and run beside its own, in other groups; functions are called,
a release fails on a node whose rows don't fit it, another one goes out in steps, and a node is stopped. Debian's
Chromium, driven by Playwright, signs in like a person and opens the pages.
"""

import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import psutil
from playwright.sync_api import Browser, sync_playwright

from scripts.picture import LIMIT, ROOT, environment, serving

IMAGES = ROOT / "docs" / "images"
LARGEST = 300_000
"""Bytes of a picture."""
SHOPS = {
    "shops-eu": ("shop-ams-01", "shop-ams-02", "shop-lis-01", "shop-vie-01"),
    "shops-us": ("shop-bos-01", "shop-nyc-01", "shop-nyc-02"),
}
"""Nodes by group, besides the one of `skerry up`."""
WELL = "ALTER TABLE visits ADD COLUMN note TEXT;"
UNIQUE = "CREATE UNIQUE INDEX by_count ON visits (count);"
UNFIT = "shop-lis-01"
"""The node that has two names with the same count."""

POLICY = """
[rollout]
steps = ["1", "50%", "100%"]
bake = "30m"

[[rollout.gate]]
metric = "error_ratio"
at_most = "1%"
at_least_calls = 50

[[rollout.gate]]
metric = "p99"
at_most = "250ms"
at_least_calls = 50
"""
"""How releases of the group shops-us go out."""

WIDE, PHONE = (1280, 800), (390, 844)
PICTURES: tuple[tuple[str, str, str, tuple[int, int]], ...] = (
    ("overview", "/", "light", WIDE),
    ("nodes", "/nodes?group=shops-eu", "dark", WIDE),
    ("node", "/nodes/shop-lis-01", "light", WIDE),
    ("release", "/releases/shops-us/2", "light", WIDE),
    ("plan", "/releases/shops-eu/1/rollback", "dark", WIDE),
    ("function", "/functions/visits", "light", WIDE),
    ("phone", "/releases/shops-us/2", "light", PHONE),
)
"""Name, page, theme and size of each."""


@dataclass
class Fleet:
    """A running fleet in a folder."""

    folder: Path
    control: str
    nodes: dict[str, tuple[psutil.Popen, int]]
    """The process and the port of each further node."""

    def skerry(self, command: str) -> str:
        """Return what a command prints. Raises: SystemExit, when it fails."""
        program = ["timeout", str(LIMIT), "bash", "-c", command]
        done = psutil.Popen(program, cwd=self.folder, env=environment(), stdout=-1, stderr=-2)
        printed = done.communicate()[0].decode()
        if done.returncode:
            raise SystemExit(f"{command} failed:\n{printed}")
        return str(printed)


def main() -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("Debian's package chromium isn't installed: `scripts/browser` does it")
    with tempfile.TemporaryDirectory(prefix="skerry-") as name:
        folder = Path(name)
        # If this runs as root, PostgreSQL runs as another user, and has its files below.
        folder.chmod(0o755)
        with serving(folder), fleet(folder) as made:
            happen(made)
            code = orjson.loads(made.skerry("skerry console --json"))
            with sync_playwright() as playwright:
                flags = ["--no-sandbox"] if os.geteuid() == 0 else []
                browser = playwright.chromium.launch(executable_path=chromium, args=flags)
                take(browser, made.control, code["code"])
                browser.close()


@contextlib.contextmanager
def fleet(folder: Path) -> Iterator[Fleet]:
    """Join the further nodes and run them until the block ends."""
    known = orjson.loads((folder / ".skerry" / "cli.json").read_bytes())
    made = Fleet(folder, known["url"], {})
    try:
        for group, names in SHOPS.items():
            made.skerry(f"skerry group create {group}")
            for name in names:
                token = orjson.loads(made.skerry(f"skerry node token --group {group} --json"))["token"]
                made.skerry(
                    f"SKERRY_JOIN_TOKEN={token} skerry-edge join --state {name} --control {made.control} --name {name} "
                    f"--label site={name.split('-')[1]}"
                )
                port = free_port()
                command = ["skerry-edge", "run", "--state", name, "--listen", f"127.0.0.1:{port}", "--workers", "1"]
                with (folder / f"{name}.log").open("wb") as log:
                    made.nodes[name] = (
                        psutil.Popen(command, cwd=folder, env=environment(), stdout=log, stderr=log),
                        port,
                    )
        yield made
    finally:
        for process, _ in made.nodes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process, _ in made.nodes.values():
            process.wait(LIMIT)


def happen(made: Fleet) -> None:
    """Let the fleet work, and some things go wrong."""
    example = ROOT / "examples" / "visits"
    made.skerry(f"skerry schema add {example / 'schema.sql'} --name visits --no-release")
    manifest = f"--manifest {example / 'manifest.json'}"
    made.skerry(f"skerry function push visits {example / 'visits.wasm'} {manifest} --group shops-eu --wait")
    made.skerry("skerry release create --group shops-us --set visits=1 --wait")
    for name, (_, port) in made.nodes.items():
        for number in range(1, 9):
            for _ in range(number if name != UNFIT else 5):
                call(port, f"/functions/visits/guest-{number}")
    for name, sql in (("notes", WELL), ("visits_by_count", UNIQUE)):
        (made.folder / f"{name}.sql").write_text(sql)
        made.skerry(f"skerry schema add {name}.sql --name {name} --no-release")
    stopped, _ = made.nodes["shop-vie-01"]
    stopped.send_signal(signal.SIGTERM)
    stopped.wait(LIMIT)
    reason = "--reason 'visitors by how often they came (build 8812)'"
    made.skerry(f"skerry release create --group shops-eu --schema 4 --now {reason}")
    (made.folder / "policy.toml").write_text(POLICY)
    made.skerry(f"skerry release create --group shops-us --schema 3 --policy policy.toml {reason}")
    # Numbers arrive once a minute, and a node is offline after 75 s.
    until = time.monotonic() + 130
    while time.monotonic() < until:
        for name in SHOPS["shops-us"]:
            call(made.nodes[name][1], f"/functions/visits/guest-{int(until - time.monotonic()) % 8 + 1}")
        time.sleep(0.5)


def call(port: int, path: str) -> None:
    """Call a function, whatever the outcome, which its node counts."""
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}{path}", method="POST", data=b""))


def take(browser: Browser, control: str, code: str) -> None:
    """Sign in, and take each picture."""
    context = browser.new_context(ignore_https_errors=True, viewport={"width": WIDE[0], "height": WIDE[1]})
    page = context.new_page()
    page.goto(f"{control}/sign-in?by=code")
    page.fill("input[name=code]", code)
    page.click("button.b--main")
    page.wait_for_url(f"{control}/")
    for name, path, theme, (width, height) in PICTURES:
        page.emulate_media(color_scheme="dark" if theme == "dark" else "light")
        page.set_viewport_size({"width": width, "height": height})
        answer = page.goto(f"{control}{path}")
        if answer is None or answer.status != 200:
            raise SystemExit(f"{path} answers {answer and answer.status}")
        page.wait_for_timeout(1500)
        picture = page.screenshot()
        if len(picture) > LARGEST:
            raise SystemExit(f"the picture of {path} is too large: {len(picture)} bytes")
        file = IMAGES / f"console-{name}.png"
        file.write_bytes(picture)
        sys.stdout.write(f"{file.relative_to(ROOT)}: {len(picture)} bytes\n")


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


if __name__ == "__main__":
    main()
