"""The waiting lines of a node: one for each function, served in turn, so that none waits for another's queue."""

from edge_runtime.dispatch.breaker import Breaker
from edge_runtime.dispatch.call import Call, Line, Tally, Target
from edge_runtime.ipc import frames
from edge_runtime.settings import PoolLimits


class Lines:
    """`turns` has the lines in which calls wait, the one whose turn it is first."""

    def __init__(self, limits: PoolLimits) -> None:
        self.turns: list[Line] = []
        self.waiting = 0
        """Calls in all of them."""
        self._limits = limits
        self._lines: dict[str, Line] = {}

    def of(self, name: str) -> Line:
        """The line of a function, which the current release may not have: the one that comes may."""
        line = self._lines.get(name)
        if line is None:
            line = self._lines[name] = Line(name, queue=self._limits.function_queue)
        return line

    def serve(self, release: frames.LocalRelease, tallies: dict[str, Tally]) -> dict[str, Target]:
        """The functions of a new release by name, each with its line; a version keeps its breaker."""
        limits = self._limits
        made = {}
        for index, f in enumerate(release.functions):
            line = self.of(f.name)
            manifest, before = f.manifest, line.target
            line.concurrency = min(manifest.concurrency or limits.concurrency, limits.workers)
            line.few = limits.few
            line.queue = manifest.queue or limits.function_queue
            line.target = made[f.name] = Target(
                index,
                f,
                tallies.setdefault(f.name, Tally(f.name)),
                line,
                before.breaker if before is not None and _same(before.function, f) else Breaker(),
                manifest.sql == "write",
                manifest.time_limit_ms / 1000,
                release.number,
            )
        for name, line in list(self._lines.items()):
            if name not in made:
                line.target = None
                if not line.calls and not line.links:
                    del self._lines[name]
        return made

    def add(self, line: Line, call: Call) -> None:
        """At the end of its line."""
        if not line.calls:
            self.turns.append(line)
        line.calls.append(call)
        self.waiting += 1

    def put_back(self, line: Line, call: Call) -> None:
        """To the front of its line, whose turn it is next: it has had one."""
        if not line.calls:
            self.turns.insert(0, line)
        line.calls.appendleft(call)
        self.waiting += 1

    def take(self, turn: int) -> Call:
        """The first call of the line at a place in `turns`; the line's next turn comes after those of all others."""
        line = self.turns.pop(turn)
        self.waiting -= 1
        call = line.calls.popleft()
        if line.calls:
            self.turns.append(line)
        return call

    def drop(self, line: Line, call: Call) -> bool:
        """Take a call out of its line; whether it was there."""
        if call not in line.calls:
            return False
        line.calls.remove(call)
        self.waiting -= 1
        if not line.calls:
            self.turns.remove(line)
        return True

    def clear(self, line: Line) -> list[Call]:
        """Take all calls out of a line."""
        calls = list(line.calls)
        if calls:
            self.turns.remove(line)
            self.waiting -= len(calls)
            line.calls.clear()
        return calls


def _same(before: frames.LocalFunction, now: frames.LocalFunction) -> bool:
    """Whether what is known of one function's calls holds for the other's."""
    return (before.sha256, before.manifest_digest) == (now.sha256, now.manifest_digest)
