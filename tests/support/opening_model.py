"""Who is the first to open the database's file, and who the last: two workers by libsql, a guard by the current SQLite,
and the zygote, which has a log recovered before it forks a worker, and then holds SQLite's lock on the index (DMS).

What an exclusive lock is held for alone is one step. A worker never closes the file; it may be killed at any moment.
"""

from tests.support.explicit_states import Program, World

WORKERS = ("one", "other")


def world() -> World:
    """A node that was killed after a COMMIT: its log has rows."""
    return {
        "log": "rows", "index": 0, "made": False, "dms": frozenset(), "open": frozenset(), "wrong": "",
        "at zygote": "take", "at one": "gone", "at other": "gone", "at guard": "idle",
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


def _opening(who: str, engine: str) -> Program:
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
            if w["log"] == "rows" and engine == "libsql":
                w["wrong"] = "libsql recovers a log that has rows"
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

    return {"gone": lambda _: None, **_opening(who, "libsql"), "ready": commit, "idle": lambda _: None}


def killer(who: str) -> Program:
    def kill(w: World) -> str | None:
        if w[f"at {who}"] == "gone":
            return None
        _drop(w, who)
        w[f"at {who}"] = "gone"
        return "kill"

    return {"kill": kill}


def _close(w: World, who: str) -> bool:
    """Close a connection of the current SQLite; return whether it was the last one, and has moved the log."""
    last = w["open"] == {who} and _holders(w, w[f"has {who}"]) <= {who}
    if last:
        w["log"], w["index"], w["made"] = "none", 0, False
    _drop(w, who)
    return last


def guard() -> Program:
    def ready(w: World) -> str:
        return "close"

    def close(w: World) -> str:
        _close(w, "guard")
        return "idle"

    return {"idle": lambda _: "file", **_opening("guard", "current"), "ready": ready, "close": close}


def zygote(*, takes_first: bool, looks_at_it: bool) -> Program:
    """`takes_first`: where nobody uses the index it makes it and takes the lock, before it forks a worker.
    `looks_at_it`: a lock of others on an index that says nothing yet doesn't count."""

    def take(w: World) -> str:
        if any(who == "zygote" and held != w["index"] for held, who in w["dms"]):
            w["dms"] = frozenset(lock for lock in w["dms"] if lock[1] != "zygote")
        holders = _holders(w, w["index"]) - {"zygote"}
        if w["index"] and holders and not any(holder.endswith("!") for holder in holders):
            w["dms"] |= {(w["index"], "zygote")}
        return "look"

    def look(w: World) -> str:
        if all(w[f"at {who}"] != "gone" for who in WORKERS):
            return "take"
        locked = (w["index"], "zygote") in w["dms"]
        if w["log"] == "rows" and not (locked and (w["made"] or not looks_at_it)):
            return "recover"
        return "make" if takes_first and not locked else "fork"

    def recover(w: World) -> str | None:
        if any(holder.endswith("!") for holder in _holders(w, w["index"])):
            return None
        if not w["open"]:
            # The last one to be closed, unless somebody else has the lock.
            w["log"] = "empty"
            if not _holders(w, w["index"]):
                w["index"], w["made"] = 0, False
            return "take"
        w["made"] = w["made"] or bool(w["index"])
        if w["at guard"] != "ready" and w["index"]:
            w["log"] = "empty"
        return "take"

    def make(w: World) -> str:
        if _holders(w, w["index"]) or w["log"] == "rows":
            return "take"
        if not w["index"]:
            _new_index(w)
        w["made"] = False
        w["dms"] |= {(w["index"], "zygote")}
        return "fork"

    def fork(w: World) -> str:
        for who in WORKERS:
            if w[f"at {who}"] == "gone":
                w[f"at {who}"] = "file"
                break
        return "take"

    return {"take": take, "look": look, "recover": recover, "make": make, "fork": fork}
