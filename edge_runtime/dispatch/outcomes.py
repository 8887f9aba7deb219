"""How a call can end: its function's answer, or a refusal; and how a worker's death is reported. Pure.

`overdue`, which says when a worker must be killed, is in `time_watchdog`.
"""

import os
import signal
from typing import Final, NamedTuple

from control.protocol import wire
from edge_runtime.errors import status_of
from edge_runtime.ipc import frames, progress_page
from edge_runtime.ipc.births import how
from edge_runtime.settings import EdgeSettings

# Why the front kills a worker.
TIME_LIMIT: Final = "time_limit"
MEMORY: Final = "memory_limit"
TEMP: Final = "sql_disk_limit"
LOCK_HELD: Final = "lock_held_too_long"
LOCK_WAIT: Final = "writer_busy"
CLIENT_GONE: Final = "client_gone"
STUCK: Final = "stuck"
HELD: Final = "database_held"
FOREIGN: Final = "foreign"
"""The worker said or did something that no honest worker does."""
REPLACED: Final = "release_changing"
"""Another database takes the place of the one that the worker has open."""
KILL_CODES: Final = (TIME_LIMIT, MEMORY, TEMP, LOCK_HELD, LOCK_WAIT, CLIENT_GONE, HELD, REPLACED)
"""Reasons that are also the code of the refusal that the worker's call gets."""


AnswerBody = bytes | list[memoryview]
"""What an answer's body is: whole, or a large one in pieces."""


class Answer(NamedTuple):
    """What a function answered."""

    status: int
    head: bytes
    """Its header lines as they are sent: see `frames`."""
    body: AnswerBody
    release: int
    """Number of the release that the call ran on."""


class Refusal(NamedTuple):
    """Why a call has no answer from its function."""

    status: int
    code: str
    message: str
    retry_after: int = 0
    """Seconds after which it makes sense to retry; 0 if the response doesn't say."""
    allow: str = ""
    """The methods that a route accepts, if the request's isn't one of them."""
    release: int = 0
    """Number of the release that the call ran on; 0 if it didn't run."""


Outcome = Answer | Refusal


def name_of(outcome: Outcome) -> str:
    """Return how an outcome is counted: "ok", the code of a refusal, or "answer_5xx" if the function itself answered
    with a status of 500 or more, so that nothing it wrote was kept."""
    if isinstance(outcome, Refusal):
        return outcome.code
    return "ok" if outcome.status < 500 else "answer_5xx"


def whole(body: AnswerBody) -> bytes:
    """Return a body in one piece."""
    return body if isinstance(body, bytes) else b"".join(body)


def refused(code: str, message: str, retry_after: int = 0, allow: str = "") -> Refusal:
    """Return a refusal with its code's status (`errors.CODES`)."""
    return Refusal(status_of(code), code, message, retry_after, allow)


def blames(why: str, state: int, status: int | None) -> bool:
    """Return whether a worker's death is the fault of the function that it ran; parameters as in `of_death`.

    A signal 9 that the front didn't send came from outside, since no guest can send one. The time that a commit takes
    depends on the disk.
    """
    if why:
        return why in (TIME_LIMIT, MEMORY, TEMP, LOCK_HELD, FOREIGN) or (
            why == STUCK and state == progress_page.LOADING
        )
    outside = status is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)
    return state != progress_page.COMMITTING and not outside


def of_death(
    function: frames.LocalFunction, state: int, why: str, status: int | None, settings: EdgeSettings, held_by: str
) -> Refusal:
    """Return the refusal for a call whose worker died while it ran it.

    `state` is how far the call had come (`progress_page`), `why` the reason why the front killed the worker (empty if
    it didn't), `status` the worker's exit status as from waitpid (None if unknown), `held_by` the process outside the
    node that holds the database (empty if there is none or it isn't known).
    """
    name = function.name
    if state == progress_page.COMMITTING:
        text = f"The process of {name} ended while its changes were being committed: whether they are kept is unknown."
        return refused("commit_unknown", text)
    if why == TIME_LIMIT:
        limit = function.manifest.time_limit_ms
        text = f"{name} ran longer than its manifest's time_limit_ms, {limit} ms. Nothing was changed."
        return refused(why, text)
    if why == MEMORY:
        text = f"The process that ran {name} took more memory than a worker may. Nothing was changed."
        return refused(why, text)
    if why == TEMP:
        text = f"{name} had more temporary data on disk than a call may (temp_limit). Nothing was changed."
        return refused(why, text)
    if why == LOCK_HELD:
        text = f"{name} held the writer lock longer than {settings.lock_hold:g} s. Nothing was changed."
        return refused(why, text)
    if why == LOCK_WAIT:
        text = f"{name} waited for the writer lock longer than {settings.lock_wait:g} s. Nothing was changed."
        return refused(why, text, 1)
    if why == HELD:
        return database_held(
            held_by, f"{name} waited for it longer than {settings.lock_wait:g} s. Nothing was changed."
        )
    if why == CLIENT_GONE:
        return client_gone()
    if why == REPLACED:
        return release_changing(f"Another database took the place of the one that {name} ran on. Nothing was changed")
    if why == FOREIGN:
        text = f"The process that ran {name} did what none of the node's does, and was ended: its log says what."
        return refused("worker_crashed", text)
    overflow = ""
    if status is not None and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSEGV:
        overflow = " (so shows a guest whose stack overflows)"
    return refused("worker_crashed", f"The process that ran {name} {how(status)}{overflow}. Nothing was changed.")


def client_gone() -> Refusal:
    """Return the refusal for a call whose client has disconnected."""
    return refused(CLIENT_GONE, "The client went away.")


def unknown(name: str) -> Refusal:
    """Return the refusal for a function that the current release doesn't have."""
    shown = name if wire.NAME.fullmatch(name) else name[:63].encode("unicode_escape").decode()
    return refused("function_unknown", f"This node's release has no function {shown}.")


def release_changed(name: str) -> Refusal:
    """Return the refusal for a call that can't be repeated after a release came before its first SQL."""
    text = (
        f"The node's release changed while {name} ran, before its first SQL and after it had sent an HTTP request "
        "that can't be sent twice: so it wasn't run again. It has written nothing to the database."
    )
    return refused("release_changed", text)


def release_changing(what: str) -> Refusal:
    """Return the refusal for a call that a release, coming or just applied, kept from running."""
    return refused("release_changing", f"{what}; try again.", 1)


def writes_held(left: int) -> Refusal:
    """Return the refusal for a call that would write while a release is applied, for `left` more seconds."""
    text = "The node's release is being changed, and the call can't write before that is done"
    return refused("release_changing", f"{text}; try again.", left)


def queue_full(name: str = "", capacity: int = 0) -> Refusal:
    """Return the refusal when too many calls wait: of the function `name` if given, else on the node."""
    if name:
        return refused("queue_full", f"Too many calls of {name} are waiting, {capacity} of them; try again.", 1)
    return refused("queue_full", "Too many calls are waiting on this node; try again.", 1)


def database_held(by: str, more: str) -> Refusal:
    """Return the refusal when a process outside the node, `by` if known, has the database locked."""
    who = f": {by}" if by else ""
    return refused(HELD, f"Another process holds the node's database{who}. {more} Try again.", 1)


def log_full() -> Refusal:
    """Return the refusal when the database's write-ahead log is too long."""
    text = (
        "The node's database can't take more writes just now: its write-ahead log is at its limit, because reading "
        "calls overlap all the time or the disk is slow. Nothing was changed; try again."
    )
    return refused("wal_full", text, 1)


def cut_off(name: str, left: int) -> Refusal:
    """Return the refusal when the function's breaker is open, for `left` more seconds."""
    text = f"{name} is cut off for {left} s: its calls ended their processes again and again."
    return refused("circuit_open", text, left)
