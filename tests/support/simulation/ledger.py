"""What must be true of a run at every moment, checked as things happen: the properties of the fleet.

- A node never goes back: neither the generation that it has committed nor its schema falls.
- What was acknowledged is true: control says that a node runs or has reached something only where the node has
  committed it, an answer tells nothing that isn't committed, and a result that was acknowledged is in the log.
- A report that waits on a node's disk goes before any question.
- A sync ends once, and not long after its lease has.
That the newest target wins and that every sync ends is seen at a run's end (`world`).
"""

from collections import defaultdict, deque
from typing import Any
from zlib import crc32

import msgspec

from control.protocol import wire
from edge_runtime.ipc.frames import LocalRelease
from tests.support.simulation.loop import VirtualLoop
from tests.support.simulation.network import Answer, Request
from tests.support.simulation.node import Node
from tests.support.simulation.tables import Tables


class Violation(AssertionError):
    """A property doesn't hold."""


class Ledger:
    """Hears what is committed, answered and done in a run, and raises `Violation` in `check` where it can't be."""

    tables: Tables

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.violations: list[str] = []
        self.trace: deque[str] = deque(maxlen=60)
        self._digest = 0
        self._lines = 0
        self.inventories: defaultdict[str, dict[str, wire.Inventory]] = defaultdict(dict)
        """What each node has ever run, by digest."""
        self._reported: defaultdict[str, set[str]] = defaultdict(set)
        """Digests that control has ever stored of each node."""
        self._results: defaultdict[str, set[str]] = defaultdict(set)
        """Results that the log has ever had of each sync."""
        self.overwritten: set[str] = set()
        """Ids of releases and syncs that there were when metadata were restored from a backup."""
        self._targets: dict[int, str] = {}
        """The release that each generation decided."""
        self._releases: dict[str, tuple[int, set[tuple[str, int, str]]]] = {}

    # What happened

    def say(self, text: str) -> None:
        """Put something into the run's trace."""
        line = f"{self._loop.time():9.3f} {text}"
        self.trace.append(line)
        self._lines += 1
        self._digest = crc32(line.encode(), self._digest)

    @property
    def digest(self) -> str:
        """Digest of the whole trace: two runs with the same one were the same."""
        return f"{self._lines}-{self._digest:08x}"

    def wrong(self, text: str) -> None:
        """A property doesn't hold."""
        self.say(f"WRONG: {text}")
        self.violations.append(text)

    def check(self) -> None:
        """Raise `Violation` where a property didn't hold."""
        if self.violations:
            raise Violation(self.violations[0])

    # The database

    def observe(self, written: list[tuple[str, Any, dict[str, Any] | None]]) -> None:
        """A transaction has been committed, which has replaced these rows."""
        earlier: dict[tuple[str, Any], dict[str, Any] | None] = {}
        for table, key, before in written:
            if table in _OBSERVED:
                earlier.setdefault((table, key), before)
        for (table, key), before in earlier.items():
            now = self.tables[table].get(key)
            if now is not None:
                getattr(self, f"_{table}")(before, now)

    def _groups(self, before: dict[str, Any] | None, now: dict[str, Any]) -> None:
        if before is None:
            return
        if now["generation"] < before["generation"]:
            self.wrong(f"the target of group {now['name']} went from {before['generation']} to {now['generation']}")
        if now["generation"] != before["generation"]:
            self._targets[now["generation"]] = now["release_id"]
            self.say(f"group {now['name']}: generation {now['generation']}")

    def _nodes(self, before: dict[str, Any] | None, now: dict[str, Any]) -> None:
        id, name, digest, confirmed = now["id"], now["name"], now["digest"], now["confirmed_generation"]
        if before is None:
            return
        if now["generation"] != before["generation"]:
            self._targets[now["generation"]] = self.tables["groups"][now["group_id"]]["release_id"]
            self.say(f"{name}: moved to {self.tables['groups'][now['group_id']]['name']}")
        if digest != before["digest"]:
            self._reported[id].add(digest)
            if digest not in self.inventories[id]:
                self.wrong(f"control says that {name} runs {digest[:8]}, which it never ran")
        if confirmed != before["confirmed_generation"]:
            self.say(f"{name}: confirmed at {confirmed}")
            if confirmed and not self._ran(id, self._targets.get(confirmed)):
                self.wrong(f"control says that {name} is at generation {confirmed}, whose release it never ran")
        if now["state"] != before["state"]:
            self.say(f"{name}: {now['state']}")

    def _syncs(self, before: dict[str, Any] | None, now: dict[str, Any]) -> None:
        id, status = now["id"], now["status"]
        node = self.tables["nodes"][now["node_id"]]["name"]
        was = None if before is None else before["status"]
        self._results[id] |= {status, now["late_status"]}
        if before is not None and was not in ("running", status) and now["folded"] == before["folded"]:
            self.wrong(f"the sync {id} of {node} had ended as {was}, and is {status} now")
        if was != status:
            self.say(f"{node}: sync {id[:8]} to generation {now['generation']} is {status} {now['error_code']}")
        if status == "succeeded" and was != status and not self._ran(now["node_id"], now["release_id"]):
            self.wrong(f"control says that {node} has succeeded in sync {id}, whose release it never ran")

    def _ran(self, node_id: str, release_id: str | None) -> bool:
        if release_id is None:
            return True
        return any(self.runs(inventory, release_id) for inventory in self.inventories[node_id].values())

    def runs(self, inventory: wire.Inventory, release_id: str) -> bool:
        """Whether a node with this inventory runs a release, said in other words than the program's."""
        floor, functions = self._release(release_id)
        has = {(f.name, f.version, f.sha256) for f in inventory.functions}
        return has == functions and len(inventory.schema_changes) >= floor

    def _release(self, id: str) -> tuple[int, set[tuple[str, int, str]]]:
        """The floor and the functions of a release."""
        found = self._releases.get(id)
        if found is None:
            rows = self.tables["release_functions"].items()
            functions = {(name, f["version"], f["sha256"]) for (release, name), f in rows if release == id}
            found = self._releases[id] = (self.tables["releases"][id]["schema_floor"], functions)
        return found

    # Answers

    def answered(self, request: Request, answer: Answer) -> None:
        """A replica sends an answer."""
        if answer.status == 201 and request.path == "/v1/releases":
            id = msgspec.json.decode(answer.body)["id"]
            if id not in self.tables["releases"] and id not in self.overwritten:
                self.wrong(f"the release {id} was acknowledged, and isn't there")
        if answer.status != 200:
            if answer.status >= 300:
                self.say(f"{request.method} {request.path[:20]}: {answer.status} {_code(answer)}")
            return
        if request.method == "PUT":
            id = request.path.rpartition("/")[2]
            update = msgspec.json.decode(request.body, type=wire.SyncUpdate)
            if update.status == "running":
                return
            state = msgspec.json.decode(answer.body, type=wire.SyncState)
            if not self._results[id] & ({update.status, state.status} - {"running"}):
                self.wrong(f"the result {update.status} of sync {id} was acknowledged, and the log hasn't got it")
            if update.inventory is not None and not state.late and id in self.tables["syncs"]:
                digest, node = wire.digest(update.inventory), self.tables["syncs"][id]["node_id"]
                if digest not in self._reported[node] and state.status == update.status:
                    self.wrong(f"the report of sync {id} was acknowledged, and what the node runs wasn't stored")
        elif request.path == "/v1/poll" and b'"type":"plan"' in answer.body:
            planned = msgspec.json.decode(answer.body, type=wire.Plan)
            if planned.sync_id not in self.tables["syncs"] and planned.sync_id not in self.overwritten:
                self.wrong(f"a plan was sent whose sync {planned.sync_id} isn't in the log")

    # Nodes

    def committed(self, node: Node, plan: wire.Plan, before: LocalRelease | None) -> None:
        """A node's libsql file has come to hold the plan's release."""
        self.say(f"{node.name}: commits release {plan.release_number}, generation {plan.generation}")
        inventory = node.inventory
        self.knows(node)
        if before is not None and plan.generation < before.generation:
            self.wrong(f"{node.name} went back from generation {before.generation} to {plan.generation}")
        if before is not None and inventory.schema_version < before.schema_version:
            self.wrong(f"{node.name}'s schema went back from {before.schema_version} to {inventory.schema_version}")

    def knows(self, node: Node) -> None:
        """Remember what a node runs."""
        self.inventories[node.id][wire.digest(node.inventory)] = node.inventory

    def polls(self, node: Node) -> None:
        """A node asks control what there is to do."""
        if node.owes is not None:
            self.wrong(f"{node.name} asks, and control doesn't know yet how its sync {node.owes} ended")


_OBSERVED = frozenset({"groups", "nodes", "syncs"})


def _code(answer: Answer) -> str:
    return msgspec.json.decode(answer.body, type=wire.Problem).code
