"""Who is the first to open the database's file, and who the last: two workers by libsql, a guard by the current SQLite,
and the zygote, which has a log recovered that nobody has open, before it forks a worker. SQLite's lock on the index
(DMS) says whether somebody has.

What an exclusive lock is held for alone is one step. A worker never closes the file; it may be killed at any moment.
"""

from tests.support.explicit_states import Program, World

WORKERS = ("one", "other")


def world() -> World:
    """A node that was killed after a COMMIT: its log has rows."""
    return {
        "log": "rows", "index": 0, "made": False, "dms": frozenset(), "open": frozenset(), "wrong": "",
        "at zygote": "look", "at one": "gone", "at other": "gone", "at guard": "idle",
        "has one": 0, "has other": 0, "has guard": 0, "at killer of one": "kill", "at killer of other": "kill",
    }  # fmt: skip


def _holders(w: World, index: int) -> set[str]:
    return {who for held, who in w["dms"] if held == index}


def _new_index(w: World) -> None:
    """Make the file, which says nothing yet."""
    known = {held for held, _ in w["dms"]} | {w[f"has {who}"] for who in (*WORKERS, "guard")}
    w["index"], w["made"] = min({1, 2, 3, 4, 5} - known), False


def _drop(w: World, who: str) -> None:
    w["dms"] = frozenset(lock for lock in w["dms"] if lock[1].rstrip("!") != who)
    w["open"] -= {who}
    w[f"has {who}"] = 0


def _opening(who: str) -> Program:
    """How a connection comes to the index (SQLite's unixOpenSharedMemory and unixLockSharedMemory)."""

    def file(w: World) -> str | None:
        if "closing" in w["open"]:
            return None
        w["open"] |= {who}
        return "index"

    def index(w: World) -> str:
        if not w["index"]:
            _new_index(w)
        w[f"has {who}"] = w["index"]
        return "lock"

    def lock(w: World) -> str | None:
        holders = _holders(w, w[f"has {who}"])
        if any(holder.endswith("!") for holder in holders):
            return None
        if holders:
            w["dms"] |= {(w[f"has {who}"], who)}
            return "header"
        w["dms"] |= {(w[f"has {who}"], f"{who}!")}
        return "blank"

    def blank(w: World) -> str:
        # Nobody uses it: what it says is a leftover.
        if w["index"] == w[f"has {who}"]:
            w["made"] = False
        w["dms"] = w["dms"] - {(w[f"has {who}"], f"{who}!")} | {(w[f"has {who}"], who)}
        return "header"

    def header(w: World) -> str:
        if not w["made"]:
            w["made"] = True
        others = {w[f"has {other}"] for other in w["open"] if f"has {other}" in w} - {0}
        if len(others) > 1:
            w["wrong"] = "two indices of one file are in use"
        return "ready"

    return {"file": file, "index": index, "lock": lock, "blank": blank, "header": header}


def worker(who: str) -> Program:
    def commit(w: World) -> str:
        w["log"] = "rows"
        return "idle"

    return {"gone": lambda _: None, **_opening(who), "ready": commit, "idle": lambda _: None}


def killer(who: str) -> Program:
    def kill(w: World) -> str | None:
        if w[f"at {who}"] == "gone":
            return None
        _drop(w, who)
        w[f"at {who}"] = "gone"
        return "kill"

    return {"kill": kill}


def guard(*, looks_for_others: bool) -> Program:
    """`looks_for_others`: it removes the index only where nobody else has the file open, as SQLite does."""

    def ready(w: World) -> str:
        return "close"

    def close(w: World) -> str:
        others = w["open"] - {"guard"} or _holders(w, w["has guard"]) - {"guard"}
        if not others or not looks_for_others:
            w["log"], w["index"], w["made"] = "none", 0, False
        _drop(w, "guard")
        return "idle"

    return {"idle": lambda _: "file", **_opening("guard"), "ready": ready, "close": close}


def zygote() -> Program:
    def look(w: World) -> str:
        if all(w[f"at {who}"] != "gone" for who in WORKERS):
            return "look"
        return "recover" if w["log"] == "rows" and not _holders(w, w["index"]) else "fork"

    def recover(w: World) -> str | None:
        if any(holder.endswith("!") for holder in _holders(w, w["index"])):
            return None
        if not w["open"]:
            # The last one to be closed, unless somebody else has the lock.
            w["log"] = "empty"
            if not _holders(w, w["index"]):
                w["index"], w["made"] = 0, False
            return "look"
        w["made"] = w["made"] or bool(w["index"])
        if w["at guard"] != "ready" and w["index"]:
            w["log"] = "empty"
        return "look"

    def fork(w: World) -> str:
        for who in WORKERS:
            if w[f"at {who}"] == "gone":
                w[f"at {who}"] = "file"
                break
        return "look"

    return {"look": look, "recover": recover, "fork": fork}
