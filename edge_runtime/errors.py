"""The errors that a node reports with a stable code: one base class, and the table of codes.

A code never changes its meaning or its status. What each means for a person, and what to do, is in docs/errors.md,
which `just errors` generates from this table and scripts/errors/edge.md.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """The status and the title of a code."""

    status: int
    """HTTP status of a call that ends with the error; 0 if no call does."""
    title: str
    """What all messages with the code have in common: what happened."""


CODES: Final[dict[str, ErrorCode]] = {
    # A sync: its plan
    "generation_lower": ErrorCode(0, "Control planned a lower generation than the node has completed"),
    "plan_invalid": ErrorCode(0, "The plan contradicts itself"),
    "manifest_unknown": ErrorCode(0, "A function's manifest isn't one that this version of the node understands"),
    "secret_missing": ErrorCode(503, "A secret that the function needs has no value on this node"),
    "secrets_unfit": ErrorCode(503, "The node's file of secrets can't be used"),
    "node_crashed": ErrorCode(0, "The node's process ended again and again in the middle of the sync"),
    "not_at_target": ErrorCode(0, "The sync ended, but the node doesn't run what the release asks for"),
    # A sync: fetching
    "artifact_unreachable": ErrorCode(0, "The artifact couldn't be fetched: the store or the way to it fails"),
    "artifact_refused": ErrorCode(0, "The artifact store refused the presigned URL, also a fresh one"),
    "artifact_mismatch": ErrorCode(0, "The bytes that came don't have the sha256 that was asked for"),
    "artifact_lost": ErrorCode(0, "The artifact to compile isn't on the node's disk any more, or isn't what it was"),
    "artifact_url_refused": ErrorCode(0, "Control named a plain http URL for an artifact or a file of a backup"),
    "disk_full": ErrorCode(507, "The disk of the state directory is full, or would be"),
    "disk_failed": ErrorCode(507, "The state directory can't be written, or the disk failed a COMMIT"),
    # A sync: compiling and loading
    "compile_failed": ErrorCode(0, "The compiler refused the module"),
    "compile_io": ErrorCode(0, "The compiler couldn't write its file"),
    "compile_crashed": ErrorCode(0, "The compiler's process died on this module"),
    "compile_timeout": ErrorCode(
        0, "The compiler took longer than SKERRY_EDGE_COMPILE_LIMIT or SKERRY_EDGE_ENGINE_COMPILE_LIMIT"
    ),
    "no_process": ErrorCode(0, "No process could be started to compile a module or to try it"),
    "function_uncompiled": ErrorCode(503, "The function has no compiled code on this node yet"),
    "function_unloadable": ErrorCode(503, "The function can't be loaded, neither compiled nor on the interpreter"),
    "function_too_large": ErrorCode(0, "The function's code needs more memory than a worker has for loaded functions"),
    "module_load_crashed": ErrorCode(0, "A process that loaded the release's functions died of it"),
    "load_timeout": ErrorCode(0, "The node's workers didn't load the release's functions in time"),
    # A sync: applying
    "schema_change_failed": ErrorCode(0, "A statement of a schema change failed on this node's data"),
    "apply_out_of_memory": ErrorCode(0, "A schema change needed more memory than SQLite may have in the applier"),
    "apply_disk_limit": ErrorCode(0, "A schema change needed a larger file than a process of the node may write"),
    "apply_failed": ErrorCode(
        0, "The release couldn't be applied, for another reason than a schema change's statement"
    ),
    "constraint_unique": ErrorCode(502, "A UNIQUE constraint failed"),
    "constraint_check": ErrorCode(502, "A CHECK constraint failed"),
    "constraint_not_null": ErrorCode(502, "A NOT NULL constraint failed"),
    "constraint_foreign_key": ErrorCode(502, "A FOREIGN KEY constraint failed"),
    "foreign_key_violation": ErrorCode(0, "After the schema changes, rows point at rows that aren't there"),
    "probe_failed": ErrorCode(0, "A function's probe didn't answer as its manifest says"),
    "schema_checksum_mismatch": ErrorCode(0, "The SQL of a schema change isn't what its checksum says"),
    "schema_history_mismatch": ErrorCode(0, "The node's database has other schema changes than control"),
    "apply_timeout": ErrorCode(0, "Schema changes and probes took longer than SKERRY_EDGE_APPLY_LIMIT together"),
    "applier_died": ErrorCode(0, "The process that applied the release ended"),
    "commit_failed": ErrorCode(502, "The COMMIT failed"),
    "tick_done": ErrorCode(409, "The tick has ended before, and its effect is there"),
    "database_unfit": ErrorCode(0, "The libsql file can't be used"),
    "database_unverified": ErrorCode(0, "The libsql file's record of the release isn't what the node has committed"),
    # A rehearsal that says nothing about its release
    "rehearsal_no_room": ErrorCode(0, "The disk has no room for a copy of the database to rehearse a release on"),
    "rehearsal_log_long": ErrorCode(0, "The write-ahead log grew too long while the database was copied"),
    "rehearsal_timeout": ErrorCode(0, "The rehearsal took longer than it may"),
    "rehearsal_died": ErrorCode(0, "A process of the rehearsal ended before it had a result"),
    "rehearsal_impossible": ErrorCode(0, "The rehearsal couldn't be begun on this machine"),
    # A call, before its function runs
    "request_invalid": ErrorCode(400, "This isn't a request that HTTP/1.1 allows, or not one that skerry.sql takes"),
    "head_too_large": ErrorCode(431, "The request's head is too large"),
    "body_timeout": ErrorCode(408, "The body didn't arrive in time"),
    "body_too_large": ErrorCode(413, "The body is too large"),
    "body_memory": ErrorCode(503, "All request bodies together need more memory than they may have"),
    "host_refused": ErrorCode(403, "The Host header names another host than this node"),
    "origin_refused": ErrorCode(403, "A web page of another origin asks"),
    "cross_site_refused": ErrorCode(403, "A web page of another origin had a browser send the request"),
    "token_needed": ErrorCode(401, "The node has a token, and the request hasn't"),
    "caller_unknown": ErrorCode(401, "The request comes from none of the node's callers"),
    "caller_forbidden": ErrorCode(403, "The caller may not have this"),
    "rate_exceeded": ErrorCode(429, "The caller asks more often than it may"),
    "path_unknown": ErrorCode(404, "There is nothing at this path"),
    "method_unknown": ErrorCode(405, "This path doesn't take this method"),
    "function_unknown": ErrorCode(404, "The node's release has no function of that name"),
    "request_unfit": ErrorCode(400, "The request can't be handed to a function"),
    "queue_full": ErrorCode(503, "Too many calls wait already"),
    "queue_timeout": ErrorCode(503, "The call waited too long for a worker"),
    "circuit_open": ErrorCode(503, "The function is cut off for a while"),
    "wal_full": ErrorCode(503, "The node's write-ahead log is at its limit"),
    "release_changing": ErrorCode(503, "The release is being changed"),
    "release_changed": ErrorCode(503, "The release changed while the call ran, and the call can't be run again"),
    "node_stopping": ErrorCode(503, "The node is being stopped"),
    "client_gone": ErrorCode(499, "The client closed the connection"),
    "internal": ErrorCode(500, "The node made a mistake"),
    # A call, while its function runs
    "guest_trap": ErrorCode(502, "The function trapped"),
    "guest_exit": ErrorCode(502, "The function ended with an exit code other than 0"),
    "guest_error": ErrorCode(502, "The Extism plug-in says that it failed"),
    "entry_unknown": ErrorCode(404, "The Extism plug-in has no function of that name"),
    "guest_http_failed": ErrorCode(502, "The Extism plug-in's http_request failed, or isn't granted"),
    "guest_vars_full": ErrorCode(507, "The Extism plug-in's vars would be too large"),
    "guest_memory_full": ErrorCode(507, "What passes between the Extism plug-in and its host needs too much memory"),
    "guest_response_invalid": ErrorCode(502, "What the function gave isn't a response"),
    "guest_call_invalid": ErrorCode(502, "The function called its host in a way that can't be"),
    "guest_unlinkable": ErrorCode(502, "The function can't be instantiated"),
    "worker_crashed": ErrorCode(502, "The process that ran the function ended"),
    "time_limit": ErrorCode(504, "The function ran longer than it may"),
    "lock_held_too_long": ErrorCode(504, "The function held its turn to write longer than it may"),
    "writer_busy": ErrorCode(503, "The function waited too long for its turn to write"),
    "memory_limit": ErrorCode(507, "The process that ran the function took more memory than it may"),
    "response_too_large": ErrorCode(507, "The response is larger than it may be"),
    "commit_unknown": ErrorCode(502, "It isn't known whether the call's changes were saved"),
    "stuck": ErrorCode(0, "The worker didn't move on, though no code of a guest ran"),
    # SQL of a function
    "not_granted": ErrorCode(0, "The function's manifest doesn't grant this"),
    "database_not_given": ErrorCode(0, "`skerry-edge call` was given no database"),
    "sql_invalid": ErrorCode(0, "SQLite doesn't understand the statement"),
    "sql_not_allowed": ErrorCode(0, "This isn't one statement that may be run here"),
    "sql_closed": ErrorCode(0, "The statement touches what is closed"),
    "sql_parameters": ErrorCode(0, "The number of parameters isn't the statement's"),
    "sql_value": ErrorCode(0, "A parameter or a result can't be passed on exactly"),
    "sql_failed": ErrorCode(0, "SQLite failed while it ran the statement"),
    "database_held": ErrorCode(503, "Another process holds the database"),
    "database_busy": ErrorCode(503, "The database was locked longer than a function waits"),
    "sql_out_of_memory": ErrorCode(507, "SQLite needed more memory than it may have"),
    "sql_disk_limit": ErrorCode(507, "The call had more temporary data on disk, or wrote more, than it may"),
    "sql_request_too_large": ErrorCode(507, "The request of SQL is too large"),
    "sql_too_many_rows": ErrorCode(507, "The result has too many rows"),
    "sql_answer_too_large": ErrorCode(507, "The answer of SQL is too large"),
    "transaction_ended": ErrorCode(502, "An error ended the call's transaction"),
    # HTTP of a function
    "http_request_invalid": ErrorCode(0, "The function's HTTP request isn't one that can be made"),
    "http_failed": ErrorCode(0, "The function's HTTP request couldn't be made, or wasn't answered"),
    "http_timeout": ErrorCode(0, "The whole answer didn't come in time"),
    "http_too_large": ErrorCode(0, "The body of the function's HTTP request, or of the answer, is too large"),
    # A module
    "module_too_large": ErrorCode(0, "The module is too large"),
    "module_invalid": ErrorCode(0, "The module isn't valid"),
    "module_source": ErrorCode(0, "It is a text, and no module"),
    "module_component": ErrorCode(0, "The module is a component, which WasmEdge can't run"),
    "module_gc": ErrorCode(0, "The module has types of WebAssembly's garbage collection"),
    "module_too_complex": ErrorCode(0, "The module has more local variables, parameters or results than it may"),
    "module_native": ErrorCode(0, "The module brings machine code in a custom section"),
    "abi_unknown": ErrorCode(0, "The module exports nothing that a call could start"),
    "abi_other_host": ErrorCode(0, "The module is made for another host"),
    "abi_wasi_http": ErrorCode(0, "The module is made for wasi:http"),
    "abi_wapc": ErrorCode(0, "The module is a waPC guest"),
    "abi_proxy_wasm": ErrorCode(0, "The module is a proxy-wasm filter"),
    "abi_http_wasm": ErrorCode(0, "The module is an http-wasm handler"),
    "abi_wasi_unstable": ErrorCode(0, "The module is made for WASI before preview 1"),
    "imports_unknown": ErrorCode(0, "The module imports what nodes don't offer"),
    "imports_mismatch": ErrorCode(0, "The module imports a function with another signature than it has"),
    "memory_imported": ErrorCode(0, "The module imports its memory"),
    "memory_missing": ErrorCode(0, "The module has no memory"),
    "memory_several": ErrorCode(0, "The module has more than one memory"),
    "memory_not_exported": ErrorCode(0, "The module doesn't export its memory by the name that it must have"),
    "memory_64": ErrorCode(0, "The module's memory has 64-bit addresses"),
    "memory_shared": ErrorCode(0, "The module's memory is shared between threads"),
    "memory_zero": ErrorCode(0, "The module's memory starts with no page"),
    "memory_above_limit": ErrorCode(0, "The module's memory starts with more pages than it may"),
    "table_too_large": ErrorCode(0, "A table of the module is larger than it may be"),
    "table_unbounded": ErrorCode(0, "A table of the module has no maximum, or too large a one"),
    # A schema change
    "schema_invalid": ErrorCode(0, "A statement of the schema change is incomplete, wrong or fails"),
    "schema_not_allowed": ErrorCode(0, "A statement of the schema change can't run in a release's transaction"),
    "schema_closed": ErrorCode(0, "The schema change touches what is closed to it"),
    "schema_amendment_differs": ErrorCode(0, "The amended SQL leads to another schema than the first one"),
    "schema_too_slow": ErrorCode(0, "Trying the schema change took too long"),
    "schema_history_broken": ErrorCode(0, "An earlier schema change doesn't apply any more"),
    # Joining
    "token_malformed": ErrorCode(0, "This isn't a join token"),
    "name_invalid": ErrorCode(0, "This isn't a name for a node"),
    "control_url_invalid": ErrorCode(0, "The address of control isn't an https URL"),
    "already_joined": ErrorCode(0, "The state directory belongs to a node already"),
    "identity_unreadable": ErrorCode(0, "The identity in the state directory can't be read"),
    "state_unusable": ErrorCode(0, "The state directory can't be made or written"),
    "ca_unreadable": ErrorCode(0, "The CA's file can't be read, or has no certificate"),
    "ca_mismatch": ErrorCode(0, "Control shows another CA than the one of the token's fingerprint"),
    # Reaching control
    "unreachable": ErrorCode(0, "No answer came"),
    "name_unknown": ErrorCode(0, "The host name can't be resolved"),
    "timed_out": ErrorCode(0, "No answer came in time"),
    "tls_untrusted": ErrorCode(0, "Control's certificate isn't trusted"),
    "clock_behind": ErrorCode(0, "By this machine's clock, control's certificate isn't valid yet"),
    "proxy_failed": ErrorCode(0, "The proxy gave no way to control"),
    "answer_too_large": ErrorCode(0, "An answer was larger than any of control's can be"),
    "answer_unknown": ErrorCode(0, "An answer isn't one that this version understands"),
    "redirected": ErrorCode(0, "The artifact store sends on again instead of answering with the artifact"),
    "identity_unusable": ErrorCode(0, "The node's identity or its CA file can't be used"),
    # The commands
    "fence_lacking": ErrorCode(0, "The machine lacks a piece of the fence round what runs a function"),
    "check_crashed": ErrorCode(0, "The check ended on what it was given"),
    "status_refused": ErrorCode(0, "The node answers, but not with its status"),
    "status_unavailable": ErrorCode(0, "A process has the state directory, and doesn't answer"),
    "callers_unfit": ErrorCode(0, "The file of callers can't be used, or not be changed so"),
    "caller_missing": ErrorCode(0, "The file has no caller of that name"),
    "module_refused": ErrorCode(0, "The module can't run on a node"),
    "state_of_another_user": ErrorCode(0, "The state directory belongs to another user"),
    "node_running": ErrorCode(0, "The node, or one of its processes, still runs"),
    "database_in_use": ErrorCode(0, "Another process has the database open"),
    "database_missing": ErrorCode(0, "The state directory has no database"),
    "database_unknown": ErrorCode(0, "The file isn't a node's database, or not one that this version knows"),
    "database_damaged": ErrorCode(0, "The database isn't whole"),
    "backup_damaged": ErrorCode(0, "Files of a backup don't make a database"),
    "copy_failed": ErrorCode(0, "The database couldn't be copied"),
    "backup_target_unfit": ErrorCode(0, "The backup can't be written to this file"),
    "restore_failed": ErrorCode(0, "The backup couldn't be put in the database's place"),
}

FAILED: Final = ErrorCode(502, "The function failed")
"""Used for a code that isn't in the table: it came from another program or version."""


def known(code: str) -> str:
    """Return a code that a child sent; `internal` if the node doesn't know it."""
    return code if code in CODES else "internal"


def status_of(code: str) -> int:
    """Return the HTTP status of a call that ends with the code."""
    return CODES.get(code, FAILED).status or FAILED.status


def title_of(code: str) -> str:
    """Return the title of the answer to a call that ends with the code."""
    return CODES.get(code, FAILED).title


class CodedError(Exception):
    """An error with a stable code. Its `str` is the message: what happened, to what, and what to do now."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status_of(code)
        """The HTTP status of a call that ends with it."""


class SyncFailed(CodedError):
    """A sync can't continue."""

    held = 0.0
    """Seconds for which the attempt kept calls waiting."""
    brief = ""
    """The message without anything that a function said, where it differs: that may be the contents of rows."""
