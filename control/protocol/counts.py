"""Counts in words, as commands, logs and pages show them. Pure."""


def counted(count: int, what: str, many: str = "") -> str:
    """Return a count with its noun: 1 node, 2,500 nodes; `many` is the plural where it isn't `what` + s."""
    return f"{count:,} {what if count == 1 else many or what + 's'}"
