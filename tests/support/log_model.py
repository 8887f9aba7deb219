"""The index of a write-ahead log as processes read and write it, a step for each read and each write (SQLite's wal.c).

The database is one page, whose content is the number of the last COMMIT; a frame of the log is that page. There are a
writer (workers, one at a time by the writer lock), a reader, and a checkpointer that is asked as the schedule asks it.
What an exclusive lock is held for alone is one step.
"""

from collections.abc import Callable
from typing import NamedTuple

from tests.support.explicit_states import Program, World


class Header(NamedTuple):
    """One of the two copies at the index's beginning, which are equal where nobody is writing them."""

    begun: int
    """How often the log has begun anew: SQLite's salts."""
    frames: int
    commits: int
    """COMMITs up to the last frame, which is what a reader must find. SQLite has no such field."""


def world(commits: int) -> World:
    """A log with these COMMITs, none of which is moved into the file."""
    header = Header(0, commits, commits)
    shared: World = {
        "first": header, "second": header, "backfilled": 0, "mark": 0, "log": tuple(range(1, commits + 1)), "file": 0,
        "locks": frozenset(), "wrong": "", "mode": "passive",
    }  # fmt: skip
    return shared | {
        f"{what} {who}": value
        for who in ("writer", "reader", "checkpointer")
        for what, value in (("at", "idle"), ("header", None), ("number", 0))
    }


def _held(w: World, *names: str) -> bool:
    return any(lock.split()[0] in names for lock in w["locks"])


def _take(w: World, lock: str) -> None:
    w["locks"] |= {lock}


def _drop(w: World, who: str, *names: str) -> None:
    w["locks"] -= {f"{name} {who}" for name in names}


def _forget(w: World, who: str) -> None:
    """Have what a process knows no longer make a difference."""
    w["locks"] = frozenset(lock for lock in w["locks"] if not lock.endswith(who))
    w[f"header {who}"], w[f"number {who}"] = None, 0


def _begin(who: str, following: str) -> Program:
    """How a transaction begins: what it sees, and a lock that keeps that as it is."""
    header, number = f"header {who}", f"number {who}"

    def second(w: World) -> str:
        return "moved" if w["second"] == w[header] else "first copy"

    def moved(w: World) -> str:
        if w["backfilled"] == w[header].frames and not _held(w, "moving"):
            # The log isn't needed.
            _take(w, f"file {who}")
            return "header again"
        return "mark"

    def mark(w: World) -> str | None:
        if _held(w, "anew"):
            return None
        if w["mark"] != w[header].frames and not _held(w, "log"):
            w["mark"] = w[header].frames
        if w["mark"] > w[header].frames:
            return "first copy"
        _take(w, f"log {who}")
        w[number] = w["mark"]
        return "moved again"

    def moved_again(w: World) -> str:
        same = w["mark"] == w[number]
        # What is moved by now is read from the file.
        w[number] = w["backfilled"]
        return "header again" if same else leave(w)

    def again(w: World) -> str:
        return following if w["first"] == w[header] else leave(w)

    def leave(w: World) -> str:
        _drop(w, who, "file", "log", "write")
        return "first copy"

    return {
        "first copy": _copied(who), "second copy": second, "moved": moved, "mark": mark, "moved again": moved_again,
        "header again": again,
    }  # fmt: skip


def _copied(who: str) -> Callable[[World], str]:
    def first(w: World) -> str:
        w[f"header {who}"] = w["first"]
        return "second copy"

    return first


def _written(who: str, kind: str, following: str) -> Program:
    """How a header is written: the second copy before the first one."""

    def second(w: World) -> str:
        w["second"] = w[f"header {who}"]
        return f"{kind}, first copy"

    def first(w: World) -> str:
        w["first"] = w[f"header {who}"]
        return following

    return {f"{kind}, second copy": second, f"{kind}, first copy": first}


def _anew(who: str, following: str) -> Program:
    """How a log whose frames are all moved begins anew."""

    def begin(w: World) -> str:
        header = w[f"header {who}"]
        w[f"header {who}"] = Header(header.begun + 1, 0, header.commits)
        return "anew, second copy"

    def backfilled(w: World) -> str:
        w["backfilled"] = 0
        return "anew, mark"

    def mark(w: World) -> str:
        w["mark"] = 0
        _drop(w, who, "anew")
        return following

    return {
        "anew": begin, **_written(who, "anew", "anew, backfilled"), "anew, backfilled": backfilled, "anew, mark": mark,
    }  # fmt: skip


def reader() -> Program:
    def page(w: World) -> str:
        header = w["header reader"]
        in_log = "log reader" in w["locks"] and header.frames > w["number reader"]
        found = w["log"][header.frames - 1] if in_log else w["file"]
        if found != header.commits:
            w["wrong"] = f"a reader finds COMMIT {found} in the place of {header.commits}"
        _forget(w, "reader")
        return "idle"

    return {"idle": lambda _: "first copy", **_begin("reader", "page"), "page": page}


def writer(commits: int) -> Program:
    """It makes COMMITs up to so many."""

    def idle(w: World) -> str | None:
        if w["first"].commits == commits or _held(w, "turn"):
            return None
        _take(w, "turn writer")
        return "first copy"

    def lock(w: World) -> str:
        _take(w, "write writer")
        return "header at last"

    def last(w: World) -> str:
        if w["first"] == w["header writer"]:
            return "may begin anew"
        _drop(w, "writer", "file", "log", "write")
        return "first copy"

    def may_begin(w: World) -> str:
        if "log writer" in w["locks"]:
            return "frame"
        if w["backfilled"] and not _held(w, "log"):
            _take(w, "anew writer")
            return "anew"
        return "log"

    def log(w: World) -> str | None:
        if _held(w, "anew"):
            return None
        if not _held(w, "log"):
            w["mark"] = w["header writer"].frames
        _drop(w, "writer", "file")
        _take(w, "log writer")
        return "frame"

    def frame(w: World) -> str:
        begun, frames, made = w["header writer"]
        w["log"] = (*w["log"][:frames], made + 1, *w["log"][frames + 1 :])
        w["header writer"] = Header(begun, frames + 1, made + 1)
        return "end, second copy"

    def ended(w: World) -> str:
        _forget(w, "writer")
        return "idle"

    return {
        "idle": idle, **_begin("writer", "write lock"), "write lock": lock, "header at last": last,
        "may begin anew": may_begin, **_anew("writer", "log"), "log": log, "frame": frame,
        **_written("writer", "end", "ended"), "ended": ended,
    }  # fmt: skip


def checkpointer(*, only_if_left: bool, looks_again: bool, last: str = "restart") -> Program:
    """`only_if_left`: PASSIVE is asked for only while frames are left to be moved. `looks_again`: its SQLite looks
    whether the log has begun anew meanwhile, as 3.51.3 and later do. `last`: how the schedule asks for what is left."""
    me, header, number = "checkpointer", "header checkpointer", "number checkpointer"

    def idle(w: World) -> str | None:
        left = w["backfilled"] < w["first"].frames
        if w["first"] != w["second"] or not w["first"].frames:
            return None
        w["mode"] = "passive" if left or not only_if_left else last
        return "lock" if w["mode"] == "passive" else "turn"

    def turn(w: World) -> str | None:
        if _held(w, "turn"):
            return None
        _take(w, f"turn {me}")
        return "lock"

    def lock(w: World) -> str:
        _take(w, f"checkpoint {me}")
        if w["mode"] != "passive":
            _take(w, f"write {me}")
        return "first copy"

    def second(w: World) -> str:
        return "left" if w["second"] == w[header] else "first copy"

    def left(w: World) -> str:
        return "mark" if w["backfilled"] < w[header].frames else "moved"

    def mark(w: World) -> str:
        w[number] = w[header].frames
        if w["mark"] < w[number]:
            if _held(w, "log", "anew"):
                w[number] = w["mark"]
            else:
                w["mark"] = w[number]
        return "file"

    def file(w: World) -> str:
        if w["backfilled"] >= w[number] or _held(w, "file"):
            return "moved"
        _take(w, f"moving {me}")
        return "look again" if looks_again else "move"

    def look_again(w: World) -> str:
        if w["first"].begun == w[header].begun:
            return "move"
        _drop(w, me, "moving")
        return "moved"

    def move(w: World) -> str:
        if w["backfilled"] < w[number]:
            w["file"] = w["log"][w[number] - 1]
        return "note"

    def note(w: World) -> str:
        w["backfilled"] = w[number]
        _drop(w, me, "moving")
        return "moved"

    def moved(w: World) -> str:
        if w["mode"] == "truncate" and w["backfilled"] >= w[header].frames and not _held(w, "log"):
            _take(w, f"anew {me}")
            return "anew"
        return "done"

    def done(w: World) -> str:
        _forget(w, me)
        following = "turn" if w["mode"] == "passive" else "idle"
        w["mode"] = last if w["mode"] == "passive" else "passive"
        return following

    def cut(w: World) -> str:
        w["log"] = ()
        return "done"

    return {
        "idle": idle, "turn": turn, "lock": lock, "first copy": _copied(me), "second copy": second, "left": left,
        "mark": mark, "file": file, "look again": look_again, "move": move, "note": note, "moved": moved,
        **_anew(me, "cut"), "cut": cut, "done": done,
    }  # fmt: skip
