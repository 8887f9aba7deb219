"""Counts in words, as commands, logs and pages tell them. Pure."""


def counted(count: int, what: str, many: str = "") -> str:
    """Return a count with its word: 1 node, 2,500 nodes; `many` is the word for several, where it isn't `what` + s."""
    return f"{count:,} {what if count == 1 else many or what + 's'}"
