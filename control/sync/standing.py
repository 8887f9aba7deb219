"""The standing of a node in one word, as the CLI, the API, the console and the metrics report it. Pure."""

from typing import Literal

Standing = Literal["revoked", "failing", "offline", "syncing", "held", "behind", "at_target"]
"""The words, worst first. A node has the first one that applies:

- `revoked`: an operator has revoked its credentials, so control refuses it until it joins again; it may still serve;
- `failing`: it isn't at its target, and its last sync that ended has failed or expired;
- `offline`: it wasn't heard from for a while (the setting `offline_after`); it may still serve;
- `syncing`: it has an open sync;
- `held`: it is to bring data back, or has, and gets no release until somebody resumes it (`skerry data resume`);
- `behind`: it isn't at its target, and no sync has begun yet;
- `at_target`: it runs its target, which is its group's release or that of a rollout, or it has none.
"""
STANDINGS: tuple[Standing, ...] = ("revoked", "failing", "offline", "syncing", "held", "behind", "at_target")
LETTERS: dict[str, Standing] = {
    "r": "revoked",
    "f": "failing",
    "o": "offline",
    "s": "syncing",
    "h": "held",
    "b": "behind",
    "t": "at_target",
}
"""The letter of each standing, in texts with one letter per node."""


def standing(state: str, *, at_target: bool, error_code: str, held: bool = False) -> Standing:
    """Return the standing of a node in the state `online`, `offline`, `syncing` or `revoked`; `error_code`: of its last
    sync, or ''; `held`: whether it carries out a restore, or stays at one."""
    if state == "revoked":
        return "revoked"
    if error_code and not at_target:
        return "failing"
    if state == "offline":
        return "offline"
    if state == "syncing":
        return "syncing"
    if held:
        return "held"
    return "at_target" if at_target else "behind"
