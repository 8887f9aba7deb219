"""The errors that a node tells with a stable code: one base class, and the table of codes.

A code never changes its meaning or its status. What each means for a person, and what to do, is in docs/errors.md,
which `just errors` makes of this table and of scripts/errors/edge.md.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Code:
    """What a code stands for."""

    status: int
    """HTTP status of a call that ends with the error; 0 where no call does."""
    title: str
    """What all messages with the code have in common: what happened."""


CODES: Final[dict[str, Code]] = {
    # A sync: its plan
    "generation_lower": Code(0, "Control planned a lower generation than the node has completed"),
    "plan_invalid": Code(0, "The plan contradicts itself"),
    "manifest_unknown": Code(0, "A function's manifest isn't one that this version of the node understands"),
    "secret_missing": Code(503, "A secret that the function needs has no value on this node"),
    "secrets_unfit": Code(503, "The node's file of secrets can't be used"),
    "node_crashed": Code(0, "The node's process ended again and again in the middle of the sync"),
    "not_at_target": Code(0, "The sync ended, but the node doesn't run what the release asks for"),
    # A sync: fetching
    "artifact_unreachable": Code(0, "The artifact couldn't be fetched: the store or the way to it fails"),
    "artifact_refused": Code(0, "The artifact store refused the presigned URL, also a fresh one"),
    "artifact_mismatch": Code(0, "The bytes that came don't have the sha256 that was asked for"),
    "artifact_lost": Code(0, "The artifact to compile isn't on the node's disk any more, or isn't what it was"),
    "artifact_url_refused": Code(0, "Control named a plain http URL for an artifact"),
    "disk_full": Code(507, "The disk of the state directory is full, or would be"),
    "disk_failed": Code(507, "The state directory can't be written, or the disk failed a COMMIT"),
    # A sync: compiling and loading
    "compile_failed": Code(0, "The compiler refused the module"),
    "compile_io": Code(0, "The compiler couldn't write its file"),
    "compile_crashed": Code(0, "The compiler's process died on this module"),
    "compile_timeout": Code(0, "The compiler took longer than SKERRY_EDGE_COMPILE_LIMIT"),
    "no_process": Code(0, "No process could be started to compile a module or to try it"),
    "function_uncompiled": Code(503, "The function has no compiled code on this node yet"),
    "function_unloadable": Code(503, "The function can't be loaded, neither compiled nor on the interpreter"),
    "function_too_large": Code(0, "The function's code needs more memory than a worker has for loaded functions"),
    "module_load_crashed": Code(0, "A process that loaded the release's functions died of it"),
    "load_timeout": Code(0, "The node's workers didn't load the release's functions in time"),
    # A sync: applying
    "schema_change_failed": Code(0, "A statement of a schema change failed on this node's data"),
    "apply_failed": Code(0, "The release couldn't be applied, for another reason than a schema change's statement"),
    "constraint_unique": Code(502, "A UNIQUE constraint failed"),
    "constraint_check": Code(502, "A CHECK constraint failed"),
    "constraint_not_null": Code(502, "A NOT NULL constraint failed"),
    "constraint_foreign_key": Code(502, "A FOREIGN KEY constraint failed"),
    "foreign_key_violation": Code(0, "After the schema changes, rows point at rows that aren't there"),
    "probe_failed": Code(0, "A function's probe didn't answer as its manifest says"),
    "schema_checksum_mismatch": Code(0, "The SQL of a schema change isn't what its checksum says"),
    "schema_history_mismatch": Code(0, "The node's database has other schema changes than control"),
    "apply_timeout": Code(0, "Schema changes and probes took longer than SKERRY_EDGE_APPLY_LIMIT together"),
    "applier_died": Code(0, "The process that applied the release ended"),
    "commit_failed": Code(502, "The COMMIT failed"),
    "database_unfit": Code(0, "The libsql file can't be used"),
    "database_unverified": Code(0, "The libsql file's record of the release isn't what the node has committed"),
    # A call, before its function runs
    "request_invalid": Code(400, "This isn't a request that HTTP/1.1 allows, or not one that skerry.sql takes"),
    "head_too_large": Code(431, "The request's head is too large"),
    "body_timeout": Code(408, "The body didn't arrive in time"),
    "body_too_large": Code(413, "The body is too large"),
    "body_memory": Code(503, "All request bodies together need more memory than they may have"),
    "host_refused": Code(403, "The Host header names another host than this node"),
    "origin_refused": Code(403, "A web page of another site asks"),
    "token_needed": Code(401, "The node has a token, and the request hasn't"),
    "path_unknown": Code(404, "There is nothing at this path"),
    "method_unknown": Code(405, "This path doesn't take this method"),
    "function_unknown": Code(404, "The node's release has no function of that name"),
    "request_unfit": Code(400, "The request can't be handed to a function"),
    "queue_full": Code(503, "Too many calls wait already"),
    "queue_timeout": Code(503, "The call waited too long for a worker"),
    "circuit_open": Code(503, "The function is cut off for a while"),
    "wal_full": Code(503, "The node's write-ahead log is at its limit"),
    "release_changing": Code(503, "The release is being changed"),
    "release_changed": Code(503, "The release changed while the call ran, and the call can't be run again"),
    "node_stopping": Code(503, "The node is being stopped"),
    "client_gone": Code(499, "The client closed the connection"),
    "internal": Code(500, "The node made a mistake"),
    # A call, while its function runs
    "guest_trap": Code(502, "The function trapped"),
    "guest_exit": Code(502, "The function ended with an exit code other than 0"),
    "guest_error": Code(502, "The Extism plug-in says that it failed"),
    "entry_unknown": Code(404, "The Extism plug-in has no function of that name"),
    "guest_http_failed": Code(502, "The Extism plug-in's http_request failed, or isn't granted"),
    "guest_vars_full": Code(507, "The Extism plug-in's vars would be too large"),
    "guest_memory_full": Code(507, "What passes between the Extism plug-in and its host needs too much memory"),
    "guest_response_invalid": Code(502, "What the function gave isn't a response"),
    "guest_call_invalid": Code(502, "The function called its host in a way that can't be"),
    "guest_unlinkable": Code(502, "The function can't be instantiated"),
    "worker_crashed": Code(502, "The process that ran the function ended"),
    "time_limit": Code(504, "The function ran longer than it may"),
    "lock_held_too_long": Code(504, "The function held its turn to write longer than it may"),
    "writer_busy": Code(503, "The function waited too long for its turn to write"),
    "memory_limit": Code(507, "The process that ran the function took more memory than it may"),
    "response_too_large": Code(507, "The response is larger than it may be"),
    "commit_unknown": Code(502, "It isn't known whether the call's changes were saved"),
    "stuck": Code(0, "The worker didn't move on, though no code of a guest ran"),
    # SQL of a function
    "not_granted": Code(0, "The function's manifest doesn't grant this"),
    "sql_invalid": Code(0, "SQLite doesn't understand the statement"),
    "sql_not_allowed": Code(0, "This isn't one statement that a function may run"),
    "sql_closed": Code(0, "The statement touches what is closed to functions"),
    "sql_parameters": Code(0, "The number of parameters isn't the statement's"),
    "sql_value": Code(0, "A parameter or a result can't be passed on exactly"),
    "sql_failed": Code(0, "SQLite failed while it ran the statement"),
    "database_busy": Code(503, "The database was locked longer than a function waits"),
    "sql_out_of_memory": Code(507, "SQLite needed more memory than it may have"),
    "sql_disk_limit": Code(507, "The call had more temporary data on disk, or wrote more, than it may"),
    "sql_request_too_large": Code(507, "The request of SQL is too large"),
    "sql_too_many_rows": Code(507, "The result has too many rows"),
    "sql_answer_too_large": Code(507, "The answer of SQL is too large"),
    "transaction_ended": Code(502, "An error ended the call's transaction"),
    # HTTP of a function
    "http_request_invalid": Code(0, "The function's HTTP request isn't one that can be made"),
    "http_failed": Code(0, "The function's HTTP request couldn't be made, or wasn't answered"),
    "http_timeout": Code(0, "The whole answer didn't come in time"),
    "http_too_large": Code(0, "The body of the function's HTTP request, or of the answer, is too large"),
    # A module
    "module_too_large": Code(0, "The module is too large"),
    "module_invalid": Code(0, "The module isn't valid"),
    "module_component": Code(0, "The module is a component, which WasmEdge can't run"),
    "module_too_complex": Code(0, "The module has more local variables, parameters or results than it may"),
    "module_native": Code(0, "The module brings machine code in a custom section"),
    "abi_unknown": Code(0, "The module exports nothing that a call could start"),
    "abi_wasi_http": Code(0, "The module is made for wasi:http"),
    "abi_wapc": Code(0, "The module is a waPC guest"),
    "abi_proxy_wasm": Code(0, "The module is a proxy-wasm filter"),
    "abi_http_wasm": Code(0, "The module is an http-wasm handler"),
    "abi_wasi_unstable": Code(0, "The module is made for WASI before preview 1"),
    "imports_unknown": Code(0, "The module imports what nodes don't offer"),
    "imports_mismatch": Code(0, "The module imports a function with another signature than it has"),
    "memory_imported": Code(0, "The module imports its memory"),
    "memory_missing": Code(0, "The module has no memory"),
    "memory_several": Code(0, "The module has more than one memory"),
    "memory_not_exported": Code(0, "The module doesn't export its memory by the name that it must have"),
    "memory_64": Code(0, "The module's memory has 64-bit addresses"),
    "memory_shared": Code(0, "The module's memory is shared between threads"),
    "memory_zero": Code(0, "The module's memory starts with no page"),
    "memory_above_limit": Code(0, "The module's memory starts with more pages than it may"),
    "table_too_large": Code(0, "A table of the module is larger than it may be"),
    "table_unbounded": Code(0, "A table of the module has no maximum, or too large a one"),
    # A schema change
    "schema_invalid": Code(0, "A statement of the schema change is incomplete, wrong or fails"),
    "schema_not_allowed": Code(0, "A statement of the schema change can't run in a release's transaction"),
    "schema_closed": Code(0, "The schema change touches what is closed to it"),
    "schema_amendment_differs": Code(0, "The amended SQL leads to another schema than the first one"),
    "schema_too_slow": Code(0, "Trying the schema change took too long"),
    "schema_history_broken": Code(0, "An earlier schema change doesn't apply any more"),
    # Joining
    "token_malformed": Code(0, "This isn't a join token"),
    "name_invalid": Code(0, "This isn't a name for a node"),
    "control_url_invalid": Code(0, "The address of control isn't an https URL"),
    "already_joined": Code(0, "The state directory belongs to a node already"),
    "identity_unreadable": Code(0, "The identity in the state directory can't be read"),
    "state_unusable": Code(0, "The state directory can't be made or written"),
    "ca_unreadable": Code(0, "The CA's file can't be read, or has no certificate"),
    "ca_mismatch": Code(0, "Control shows another CA than the one of the token's fingerprint"),
    # On the way to control
    "unreachable": Code(0, "No answer came"),
    "name_unknown": Code(0, "The host name can't be resolved"),
    "timed_out": Code(0, "No answer came in time"),
    "tls_untrusted": Code(0, "Control's certificate isn't trusted"),
    "proxy_failed": Code(0, "The proxy gave no way to control"),
    "answer_too_large": Code(0, "An answer was larger than any of control's can be"),
    "answer_unknown": Code(0, "An answer isn't one that this version understands"),
    "redirected": Code(0, "The artifact store sends on again instead of answering with the artifact"),
    "identity_unusable": Code(0, "The node's identity or its CA file can't be used"),
    # The commands
    "fence_lacking": Code(0, "The machine lacks a piece of the fence round what runs a function"),
    "check_crashed": Code(0, "The check ended on what it was given"),
    "status_refused": Code(0, "The node answers, but not with its status"),
    "module_refused": Code(0, "The module can't run on a node"),
}

FAILED: Final = Code(502, "The function failed")
"""What a code stands for that isn't in the table: it came from another program or version."""


def status_of(code: str) -> int:
    """HTTP status of a call that ends with the code."""
    return CODES.get(code, FAILED).status or FAILED.status


def title_of(code: str) -> str:
    """Title of the answer to a call that ends with the code."""
    return CODES.get(code, FAILED).title


class CodedError(Exception):
    """An error with a stable code. `str` of it is the message: what happened, to what, and what to do now."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status_of(code)
        """HTTP status of a call that ends with it."""


class SyncFailed(CodedError):
    """A sync can't go on."""

    held = 0.0
    """Seconds for which the attempt kept calls waiting."""
