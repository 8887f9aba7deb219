"""Which worker has room for a call: an idle one, or one whose calls are all short."""

from edge_runtime.dispatch.call import Line
from edge_runtime.dispatch.worker_link import Link
from edge_runtime.ipc.claims import ROOM


class Room:
    """The workers that may have another call, by the number of those that they have."""

    def __init__(self, depth: int) -> None:
        """`depth`: calls that one worker may have, where they are short."""
        self.depth = depth
        self.open = 0
        """Workers that may have another call."""
        self._free: list[list[Link]] = [[] for _ in range(depth)]

    def place(self, link: Link, serial: int) -> None:
        """Put a link where it belongs, after its jobs or what it can do have changed; `serial`: what is served."""
        level = len(link.jobs)
        if (
            level >= self.depth
            or link.longs
            or not link.usable
            or link.spare
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

    def pick(self, line: Line, short: bool) -> Link | None:
        """The worker for a line's next call; None where it must wait."""
        if line.spreads:
            free = self._free
            if free[0]:
                return free[0][-1]
            if short:
                for level in range(1, self.depth):
                    if free[level]:
                        return free[level][-1]
            return None
        if not short:
            return None
        # Behind its own calls, where there are fewest.
        best, least = None, self.depth
        for link in line.links:
            if 0 <= link.level < least:
                best, least = link, link.level
        return best
