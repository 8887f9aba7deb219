"""Records docs/images/terminal.svg, the README's picture: real commands, in a terminal, against servers started for it.

`skerry up` serves in an empty folder; each command of `SESSION` runs there in a terminal of `WIDTH` columns; rich draws
their output. The picture uses only the reader's own font, and refers to nothing outside itself.
"""

import fcntl
import os
import pty
import re
import signal
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import orjson
import psutil
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "terminal.svg"
WIDTH = 92
LARGEST = 200_000
LIMIT = 180.0
"""Seconds for `skerry up` to serve, and for a command to finish."""

SESSION = (
    "skerry function new notes --lang c",
    "skerry schema add notes/schema/0001_notes.sql --name notes --wait",
    "skerry function push notes --wait",
    "curl -d milk '{edge}/functions/notes?author=ada'",
    "skerry status",
    "kill -9 {control}  # control's process: the node serves on, and `skerry up` starts it again",
    "curl '{edge}/functions/notes?author=ada'",
    "skerry release create --rollback-to 1 --wait",
)

FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"
FORMAT = f"""<svg class="rich-terminal" viewBox="0 0 {{width}} {{height}}" xmlns="http://www.w3.org/2000/svg">
<title>A terminal: a function is written, brought to a node, called, and rolled back</title>
<style>
.{{unique_id}}-matrix {{{{ font-family: {FONTS}; font-size: {{char_height}}px; line-height: {{line_height}}px; }}}}
.{{unique_id}}-title {{{{ font-family: {FONTS}; font-size: 18px; font-weight: bold; }}}}
{{styles}}
</style>
<defs>
<clipPath id="{{unique_id}}-clip-terminal">
<rect x="0" y="0" width="{{terminal_width}}" height="{{terminal_height}}" />
</clipPath>
{{lines}}
</defs>
{{chrome}}
<g transform="translate({{terminal_x}}, {{terminal_y}})" clip-path="url(#{{unique_id}}-clip-terminal)">
{{backgrounds}}
<g class="{{unique_id}}-matrix">
{{matrix}}
</g>
</g>
</svg>
"""


def environment() -> dict[str, str]:
    """Return a user's environment: no Skerry settings, its commands on the PATH, a terminal with colors."""
    others = ("SKERRY_", "COLUMNS", "NO_COLOR")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    return kept | {"PATH": f"{ROOT / '.venv' / 'bin'}:{kept['PATH']}", "TERM": "xterm-256color"}


@contextmanager
def serving(folder: Path) -> Iterator[psutil.Process]:
    """Run `skerry up` in a folder, and stop it at the end. Raises: SystemExit, when it doesn't start serving."""
    log = folder / "up.log"
    with log.open("wb") as output:
        up = psutil.Popen(["skerry", "up"], cwd=folder, env=environment(), stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + LIMIT
        while "Ctrl-C ends everything" not in log.read_text("utf-8"):
            if up.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"`skerry up` doesn't serve:\n{log.read_text('utf-8')}")
            time.sleep(0.2)
        yield up
    finally:
        if up.poll() is None:
            up.send_signal(signal.SIGINT)
        up.wait(LIMIT)


def typed(command: str, folder: Path) -> str:
    """Return what a command prints on a terminal, with its escape codes. Raises: SystemExit, when it fails."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, WIDTH, 0, 0))
    program = ["timeout", str(LIMIT), "bash", "-c", command]
    running = psutil.Popen(program, cwd=folder, env=environment(), stdin=its, stdout=its, stderr=its)
    os.close(its)
    printed = b""
    while True:
        try:
            printed += os.read(ours, 65536)
        except OSError:  # EIO: the last process that had the terminal open has closed it.
            break
    os.close(ours)
    if running.wait():
        raise SystemExit(f"{command} failed:\n{printed.decode()}")
    return printed.decode()


def left(printed: str) -> str:
    """Return what stays on the screen after a progress bar was redrawn. Colors are kept."""
    lines, row = [""], 0
    for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\r\n|\r|\n)", printed):
        if part in ("\r\n", "\n"):
            row += 1
            lines += [""] * (row == len(lines))
        elif part == "\x1b[1A":
            row -= 1
        elif part in ("\r", "\x1b[2K"):
            lines[row] = ""
        elif not part.startswith("\x1b") or part.endswith("m"):
            lines[row] += part
    return "\n".join(line.rstrip() for line in lines).rstrip()


def session(folder: Path) -> Iterator[Text]:
    """Run `SESSION`; yield what a reader of the terminal sees."""
    # The compiler builds its C library once per machine; the picture shows the second time.
    typed("skerry function new first --lang c && skerry function build first", folder)
    with serving(folder) as up:
        edge = orjson.loads((folder / ".skerry" / "cli.json").read_bytes())["edge"]
        (control,) = [child.pid for child in up.children() if child.cmdline()[-2:] == ["control.cli", "serve"]]
        for template in SESSION:
            command = template.format(edge=edge, control=control)
            yield Text.assemble(("$ ", "bold green"), (command, "bold"))
            if printed := left(typed(command, folder)):
                yield Text.from_ansi(printed)
            yield Text()


def main() -> None:
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True, color_system="truecolor")
    with tempfile.TemporaryDirectory(prefix="skerry-") as folder:
        # If this runs as root, PostgreSQL runs as another user, and has its files below.
        os.chmod(folder, 0o755)  # noqa: S103
        for text in session(Path(folder)):
            console.print(text)
    drawn = console.export_svg(title="skerry", code_format=FORMAT, unique_id="skerry")
    if len(drawn.encode()) > LARGEST:
        raise SystemExit(f"the picture is too large: {len(drawn.encode())} bytes")
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(drawn, "utf-8")
    sys.stdout.write(f"{PICTURE.relative_to(ROOT)}: {len(drawn.encode())} bytes\n")


if __name__ == "__main__":
    main()
