"""Which worker has room for a call: an idle one, or one whose calls are all short."""

from edge_runtime.dispatch.queues import FunctionQueue
from edge_runtime.dispatch.worker_link import WorkerLink
from edge_runtime.ipc.claims import ROOM


class Placement:
    """The workers that may have another call, by the number of calls that they have."""

    def __init__(self, depth: int) -> None:
        """`depth`: calls that one worker may have, where they are short."""
        self.depth = depth
        self.open = 0
        """Workers that may have another call. Some may be unusable by now, which shows when they are picked."""
        self._free: list[list[WorkerLink]] = [[] for _ in range(depth)]

    def place(self, link: WorkerLink, serial: int) -> None:
        """Put a link where it belongs, after its jobs or its abilities have changed; `serial`: the set of modules that
        is served."""
        level = len(link.jobs)
        if (
            level >= self.depth
            or link.longs
            or not link.usable
            or link.spare
            or link.rests
            or serial not in link.serials
            or abs(link.last - link.replied) > ROOM
        ):
            level = -1
        old = link.level
        if level != old:
            if old >= 0:
                self._free[old].remove(link)
                self.open -= 1
            if level >= 0:
                self._free[level].append(link)
                self.open += 1
            link.level = level

    def pick(self, queue: FunctionQueue, *, spreads: bool, short: bool) -> WorkerLink | None:
        """Return the worker for a queue's next call, None where the call must wait.

        `spreads`: it may be one that has no call of the function; `short`: the function's recent calls were short.
        """
        if spreads:
            for free in self._free if short else self._free[:1]:
                while free:
                    link = free[-1]
                    if link.usable:
                        return link
                    # Killed since it was placed.
                    free.pop()
                    self.open -= 1
                    link.level = -1
            return None
        if not short:
            return None
        # Behind the function's own calls, where there are fewest.
        best, least = None, self.depth
        for link in queue.links:
            if 0 <= link.level < least and link.usable:
                best, least = link, link.level
        return best
