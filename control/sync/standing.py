"""How a node stands, in one word: what the CLI, the API, the console and the metrics say alike. Pure."""

from typing import Literal

Standing = Literal["revoked", "failing", "offline", "syncing", "behind", "at_target"]
"""The words, the worst first. A node has the first one that is true of it:

- `revoked`: an operator has revoked its credentials, so control refuses it until it joins again; it may well serve;
- `failing`: it isn't at its target, and its last sync that ended has failed or expired;
- `offline`: it wasn't heard of for a while (the setting `offline_after`); it may well serve;
- `syncing`: a sync of it is open;
- `behind`: it isn't at its target, and no sync was begun yet;
- `at_target`: it runs its group's release, or its group has none.
"""
STANDINGS: tuple[Standing, ...] = ("revoked", "failing", "offline", "syncing", "behind", "at_target")
LETTERS: dict[str, Standing] = {
    "r": "revoked",
    "f": "failing",
    "o": "offline",
    "s": "syncing",
    "b": "behind",
    "t": "at_target",
}
"""The letter of each standing, where a text has one for each node."""


def standing(state: str, *, at_target: bool, error_code: str) -> Standing:
    """How a node stands whose state is `online`, `offline`, `syncing` or `revoked`; `error_code`: of its last sync, or
    ''."""
    if state == "revoked":
        return "revoked"
    if error_code and not at_target:
        return "failing"
    if state == "offline":
        return "offline"
    if state == "syncing":
        return "syncing"
    return "at_target" if at_target else "behind"
