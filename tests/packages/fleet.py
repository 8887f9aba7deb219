"""Control and a node of the packages, set up by the commands of docs/how-to, word by word.

The pages' names and ports are exchanged for those of the test; that is all.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.packages import units
from tests.packages.machine import NAMES, ROOT, Machine
from tests.packages.units import Service, answered
from tests.support.ports import free_port

NAME = NAMES[0]
CA = "/etc/skerry/ca.pem"


@dataclass
class Fleet:
    """What was set up: where it is, who its admin is, and what runs."""

    machine: Machine
    folder: Path
    port: int
    node_port: int
    admin: str
    services: dict[str, Service]

    def start(self, unit: str) -> None:
        """Start a unit's program, and wait until it answers."""
        self.services[unit] = units.start(self.machine, unit, self.folder)
        if unit == "skerry":
            answered(self.services[unit], "--cacert", CA, f"https://{NAME}:{self.port}/readyz")
        else:
            answered(self.services[unit], f"http://127.0.0.1:{self.node_port}/_skerry/healthz")

    def stop(self, unit: str) -> None:
        self.services.pop(unit).stop()

    def skerry(self, script: str) -> str:
        """Run lines of a shell with `skerry` on the machine, as the admin, and return what they printed."""
        url = f"https://{NAME}:{self.port}"
        return self.machine.shell(script, SKERRY_URL=url, SKERRY_TOKEN=self.admin, SKERRY_CA=CA)

    def call(self, *curl: str) -> str:
        """Call the node's function `visits` by curl, and return the answer."""
        return self.machine.run("curl", "-sS", "--fail-with-body", *curl)

    def count(self, name: str) -> str:
        """Count a visit of `name` at the node, and return its answer."""
        return self.call("-X", "POST", f"http://127.0.0.1:{self.node_port}/functions/visits/{name}")

    def visits(self, name: str) -> str:
        """Return what the node answers for `name`, without counting."""
        return self.call(f"http://127.0.0.1:{self.node_port}/functions/visits/{name}")


def set_up(machine: Machine, database: str, bucket: str, folder: Path, kind: type[Fleet] = Fleet) -> Fleet:
    """Set up control, a node and a function by the pages, and return them, running; `kind` says how they are run."""
    # After the packages, so that it brings nothing that they lack.
    machine.apt("install", "curl")
    fleet = kind(machine, folder, free_port(), free_port(), "", {})
    page = (ROOT / "docs" / "how-to" / "set-up-control.md").read_text("utf-8")
    machine.shell(f"mkdir /root/authority; cd /root/authority\n{block(page, 'openssl req')}")
    settings = block(page, "SKERRY_METADATA_URL=")
    for name, value in (("METADATA_URL", database), ("ARTIFACTS_URL", bucket), ("BIND", "127.0.0.1")):
        settings, times = re.subn(rf"(?m)^SKERRY_{name}='[^']*'$", f"SKERRY_{name}='{value}'", settings)
        assert times == 1, name
    machine.write("/etc/skerry/control.env", f"{settings}\nSKERRY_PORT='{fleet.port}'\n")
    found = re.search(r"\bsko_\S+", machine.shell(block(page, "skerry migrate")))
    assert found, "skerry migrate printed no token"
    fleet.admin = found[0]
    fleet.start("skerry")
    join(fleet)
    machine.shell("mkdir -p /root/examples/visits")
    for name in ("visits.wasm", "schema.sql", "manifest.json"):
        machine.put(ROOT / "examples" / "visits" / name, f"/root/examples/visits/{name}")
    page = (ROOT / "docs" / "how-to" / "push-a-function.md").read_text("utf-8")
    lines = block(page, "skerry schema add").splitlines()
    fleet.skerry("\n".join(line for line in lines if not line.startswith("skerry invoke")))
    return fleet


def join(fleet: Fleet) -> None:
    """Have the node join by the page, and start it."""
    page = (ROOT / "docs" / "how-to" / "add-a-node.md").read_text("utf-8")
    token = re.search(r"\bskj_\S+", fleet.skerry(block(page, "skerry node token --group")))
    assert token
    lines = block(page, "skerry-edge join").splitlines()
    command = "\n".join(line for line in lines if not line.startswith(("apt-get ", "systemctl ")))
    assert command.count("skj_…") == 1
    address = f"https://{NAME}:8443"
    assert command.count(address) == 1
    fleet.machine.shell(command.replace("skj_…", token[0]).replace(address, f"https://{NAME}:{fleet.port}"))
    fleet.machine.write("/etc/skerry/edge.env", f"SKERRY_EDGE_LISTEN='127.0.0.1:{fleet.node_port}'\n")
    fleet.start("skerry-edge")


def block(page: str, word: str) -> str:
    """Return the one block of a page that has `word` in it, without its indentation."""
    blocks = [found[2] for found in re.finditer(r"(?ms)^( *)```(?:text|sh)\n(.*?)^\1```", page) if word in found[2]]
    assert len(blocks) == 1, f"{len(blocks)} blocks of the page have {word} in them"
    return "\n".join(line.strip() for line in blocks[0].splitlines())
