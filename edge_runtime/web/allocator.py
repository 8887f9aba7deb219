"""The allocator of this process: memory of bodies is used again while bodies pass, and returned to the system after."""

from typing import Final

from edge_runtime import malloc

LARGEST: Final = 1024 * 1024
"""Bytes up to which freed blocks are kept. Bodies come in smaller pieces."""
TRIM_AFTER: Final = 16 * 1024 * 1024
"""Bytes of bodies that have passed, after which free memory is returned to the system."""
LOOKS: Final = 30
"""Looks after which it is returned even if bodies go on passing."""


class Allocator:
    """glibc keeps a freed block if one that is in use lies behind it: hundreds of MB after a crowd of clients."""

    def __init__(self) -> None:
        self.passed = 0
        """Bytes of request bodies and large answers that have passed since memory was last returned."""
        self._before = 0
        """Of them, those that had passed at the last look."""
        self._looks = 0
        """Looks since memory was to be returned, while bodies passed."""

    def keep(self) -> None:
        """Have the allocator keep free memory from here on, until `look` returns it."""
        malloc.keep(LARGEST)

    def look(self, *, held: bool) -> None:
        """Return free memory, if bodies have passed and no more do. To be called once a second; `held` tells whether
        bodies are in memory, which will leave room as well."""
        if self.passed < TRIM_AFTER:
            return
        self._looks += 1
        if self.passed != self._before and self._looks < LOOKS:
            self._before = self.passed
            return
        self.passed = self._before = TRIM_AFTER if held else 0
        self._looks = 0
        malloc.trim()
