"""One connection between a client and PostgreSQL, which behaves as one to CockroachDB: messages in, messages out.

While a portal that was limited to a number of rows is suspended in an explicit transaction, CockroachDB takes Sync,
that portal again and COMMIT, and refuses everything else: the message is not carried out, the transaction has failed.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from tests.support import cockroachdb_rules as rules
from tests.support.cockroachdb_rules import Refused

MULTIPLE_PORTALS = Refused("0A000", "unimplemented: multiple active portals is in preview, please set session variable "
                           "multiple_active_portals_enabled to true to enable them")  # fmt: skip
LARGEST = 16 * 1024 * 1024
"""Bytes of a message at most (`sql.conn.max_read_buffer_message_size`)."""
TOO_LARGE = Refused("08P01", "message size 17 MiB bigger than maximum allowed message size 16 MiB")
RESTART = Refused("40001", "restart transaction: TransactionRetryWithProtoRefreshError: WriteTooOldError")
AMBIGUOUS = Refused("40003", "result is ambiguous: error=rpc error: code = Unavailable [propagate]")
UNIMPLEMENTED_HERE = Refused("XX000", "the proxy can't translate this statement when it is prepared")
ERRORS_PARAMETER = "cockroachdb_errors"
"""A connection's own rate of errors, given as ``?cockroachdb_errors=0.05`` in the URL."""
_FAIL = "DO $fail$ BEGIN RAISE 'failed by the proxy'; END $fail$"


def message(kind: bytes, body: bytes = b"") -> bytes:
    """One message of PostgreSQL's protocol."""
    return kind + struct.pack("!I", len(body) + 4) + body


def error_response(refused: Refused) -> bytes:
    """An ErrorResponse."""
    fields = b"SERROR\0VERROR\0C%b\0M%b\0\0" % (refused.sqlstate.encode(), refused.message.encode())
    return message(b"E", fields)


class Ends(Protocol):
    """What a session sends its messages to."""

    def to_server(self, data: bytes) -> None: ...

    def to_client(self, data: bytes) -> None: ...


@dataclass
class Errors:
    """Errors of CockroachDB's own: at a rate per COMMIT and per statement that writes, or those that are set."""

    rate: float = 0.0
    random: Random = field(default_factory=lambda: Random(1))
    commits: int = 0
    """How many COMMITs were answered with an error so far."""
    statements: int = 0
    next_commits: list[tuple[Refused, bool]] = field(default_factory=list)
    """What the next COMMITs are answered with, and whether they are saved."""
    next_after: str = ""
    """Text of a statement: only COMMITs of transactions that had one with this text get these answers; empty: all."""
    next_statements: list[Refused] = field(default_factory=list)
    """What the next statements that write are answered with."""

    def commit(self, statements: list[str]) -> tuple[Refused, bool] | None:
        """Return what a COMMIT is answered with in place of success, and whether it is saved."""
        if self.next_commits and any(self.next_after in text for text in statements):
            return self.next_commits.pop(0)
        if not self.due():
            return None
        self.commits += 1
        return self.random.choice([(RESTART, False), (AMBIGUOUS, False), (AMBIGUOUS, True)])

    def statement(self) -> Refused | None:
        """Return what a statement that writes is answered with in place of being run."""
        if self.next_statements:
            return self.next_statements.pop(0)
        if not self.due():
            return None
        self.statements += 1
        return AMBIGUOUS

    def due(self) -> bool:
        return self.rate > 0 and self.random.random() < self.rate


@dataclass
class Session:
    """The state of one connection after its start."""

    ends: Ends
    errors: Errors
    note: Callable[[str], None] = lambda _: None
    """Told the text of each statement when it is carried out."""
    status: bytes = b"I"
    _statements: dict[bytes, str] = field(default_factory=dict)
    _bound: dict[bytes, str] = field(default_factory=dict)
    """The statement of each portal."""
    _executed: bytes = b""
    _suspended: bytes | None = None
    """The name of the suspended portal."""
    _skipping: bool = False
    """An error was answered: what follows is ignored until Sync."""
    _swallowed: int = 0
    """Whole answers of the server that the client must not see, each up to its ReadyForQuery."""
    _instead: Refused | None = None
    """What the client is told in place of the server's answer to a COMMIT."""
    _done: list[str] = field(default_factory=list)
    """The statements of this transaction."""
    refused: int = 0
    largest: int = LARGEST

    # From the client

    def from_client(self, kind: bytes, body: bytes) -> None:
        """Take one message."""
        if self._skipping:
            if kind == b"S":
                self._skipping = False
                self.ends.to_client(message(b"Z", self.status))
            return
        if len(body) > self.largest:
            self._refuse(TOO_LARGE, kind)
            return
        if self._suspended is not None and not self._allowed(kind, body):
            self._refuse(MULTIPLE_PORTALS, kind)
            return
        if kind == b"Q":
            self._query(body)
        elif kind == b"P":
            self._parse(body)
        else:
            if kind == b"B":
                portal, statement, _ = body.split(b"\0", 2)
                self._bound[portal] = self._statements.get(statement, "")
            elif kind == b"E" and not self._execute(body):
                return
            elif kind == b"C" and body[:1] == b"S":
                self._statements.pop(body[1:-1], None)
            self.ends.to_server(message(kind, body))

    def _allowed(self, kind: bytes, body: bytes) -> bool:
        """Whether CockroachDB takes the message while the portal is suspended."""
        if kind in (b"S", b"H", b"X"):
            return True
        if kind == b"E":
            return body.split(b"\0", 1)[0] == self._suspended
        if kind == b"C":
            return body == b"P%b\0" % self._suspended
        return kind == b"Q" and _first_word(body[:-1].decode()) in ("COMMIT", "END")

    def _query(self, body: bytes) -> None:
        text = body[:-1].decode()
        word = _first_word(text)
        self._suspended = None
        if (
            word in ("COMMIT", "END")
            and self.status == b"T"
            and (failing := self.errors.commit(self._done)) is not None
        ):
            self._fail_commit(*failing)
            return
        translated = rules.translate(text)
        if isinstance(translated, Refused):
            self._refuse(translated, b"Q")
            return
        if self._writes(text) and (error := self.errors.statement()) is not None:
            self._refuse(error, b"Q")
            return
        self._carry_out(text)
        self.ends.to_server(message(b"Q", translated.encode() + b"\0"))

    def _parse(self, body: bytes) -> None:
        name, text, rest = body.split(b"\0", 2)
        original = text.decode()
        translated = rules.translate(original)
        if isinstance(translated, str) and "; DO " in translated:
            translated = UNIMPLEMENTED_HERE
        if isinstance(translated, Refused):
            self._refuse(translated, b"P")
            return
        self._statements[name] = original
        self.ends.to_server(message(b"P", b"%b\0%b\0%b" % (name, translated.encode(), rest)))

    def _execute(self, body: bytes) -> bool:
        self._executed = body.split(b"\0", 1)[0]
        text = self._bound.get(self._executed, "")
        if self._suspended is None:
            self._carry_out(text)
        self._suspended = None
        if self._writes(text) and (error := self.errors.statement()) is not None:
            # The server has the Bind; its answer to that must not be seen after the error.
            self._refuse(error, b"E")
            return False
        return True

    def _carry_out(self, text: str) -> None:
        if self.status == b"I":
            self._done.clear()
        self._done.append(text)
        self.note(text)

    def _writes(self, text: str) -> bool:
        return self.status == b"T" and _first_word(text) in ("INSERT", "UPDATE", "DELETE", "WITH")

    def _fail_commit(self, refused: Refused, saved: bool) -> None:
        """Answer COMMIT with an error, whether the transaction is saved or rolled back."""
        self._instead = refused
        done = "COMMIT" if saved else "ROLLBACK"
        self.note(done)
        self.ends.to_server(message(b"Q", done.encode() + b"\0"))

    def _refuse(self, refused: Refused, kind: bytes) -> None:
        """Answer an error, have the transaction failed where there is one, and ignore what follows up to Sync."""
        self.refused += 1
        self._suspended = None
        if self.status == b"T":
            self.status = b"E"
            self._swallowed += 1
            # Within the client's unfinished batch of messages: the server ends it here, with an error.
            self.ends.to_server((b"" if kind == b"Q" else message(b"S")) + message(b"Q", _FAIL.encode() + b"\0"))
            if kind != b"Q":
                self._swallowed += 1
        elif kind != b"Q":
            self._swallowed += 1
            self.ends.to_server(message(b"S"))
        self.ends.to_client(error_response(refused))
        if kind == b"Q":
            self.ends.to_client(message(b"Z", self.status))
        else:
            self._skipping = True

    # From the server

    def from_server(self, kind: bytes, body: bytes) -> None:
        """Take one message."""
        if self._swallowed:
            if kind == b"Z":
                self._swallowed -= 1
            return
        if kind == b"Z":
            self.status = body
            if self._instead is not None:
                self.ends.to_client(error_response(self._instead))
                self._instead = None
        elif self._instead is not None:
            return
        elif kind == b"s" and self.status == b"T":
            self._suspended = self._executed
        elif kind == b"S" and body.startswith(b"server_version\0"):
            body = b"server_version\0%b\0" % rules.SERVER_VERSION.encode()
            self.ends.to_client(message(b"S", b"crdb_version\0%b\0" % rules.VERSION.encode()))
        self.ends.to_client(message(kind, body))


def start(body: bytes) -> tuple[bytes, float | None]:
    """Return the start message's body for PostgreSQL, without what it doesn't know, and the connection's errors' rate.

    CockroachDB ignores parameters that it doesn't know, as it ignores those of PostgreSQL's that it lacks.
    """
    parts = body[4:].rstrip(b"\0").split(b"\0")
    kept, rate = [], None
    for name, value in zip(parts[::2], parts[1::2], strict=True):
        if name.decode() == ERRORS_PARAMETER:
            rate = float(value)
        elif name.decode() not in rules.VARIABLES:
            kept += [name, value]
    return body[:4] + b"\0".join(kept) + b"\0\0", rate


def _first_word(text: str) -> str:
    return text.lstrip().split(None, 1)[0].rstrip(";").upper() if text.strip() else ""
