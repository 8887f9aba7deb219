"""The errors that control reports with a stable code: one base class, and the table of codes that clients can rely on.

A code never changes its meaning or its status. What each means for a person, and what to do, is in docs/errors.md,
which `just errors` generates from this table and scripts/errors/control.md. The title is the same in every error with
the code; the detail is written where the error is raised, since only that place knows what it is about.
"""

from dataclasses import dataclass
from typing import Final

import msgspec

from control.protocol import wire


@dataclass(frozen=True, slots=True)
class ProblemCode:
    """The status and the title of a code."""

    status: int
    """HTTP status of an answer with the code; 0 if no answer has it."""
    title: str
    """What all messages with the code have in common: what happened."""


CODES: Final[dict[str, ProblemCode]] = {
    # The request
    "bad_request": ProblemCode(400, "This isn't a request that HTTP/1.1 allows"),
    "head_too_slow": ProblemCode(408, "The request's head didn't arrive in time"),
    "head_too_large": ProblemCode(431, "The request's head is too large"),
    "too_many_headers": ProblemCode(431, "The request has too many headers"),
    "malformed_json": ProblemCode(400, "The body isn't JSON"),
    "body_incomplete": ProblemCode(400, "The body ended too early"),
    "body_timeout": ProblemCode(408, "The body didn't arrive in time"),
    "body_too_large": ProblemCode(413, "The body is too large"),
    "unsupported_media_type": ProblemCode(415, "The body's type isn't the one that this call takes"),
    "invalid_body": ProblemCode(422, "The body isn't what this call takes"),
    "invalid_parameter": ProblemCode(422, "A parameter isn't what this call takes"),
    "no_such_path": ProblemCode(404, "There is nothing at this path"),
    "method_not_allowed": ProblemCode(405, "This path doesn't take this method"),
    "idempotency_key_used": ProblemCode(422, "The idempotency key was used for another request"),
    # The caller
    "credentials_missing": ProblemCode(401, "No credentials were sent"),
    "credentials_invalid": ProblemCode(401, "The credentials aren't valid"),
    "node_revoked": ProblemCode(401, "The node was revoked"),
    "node_removed": ProblemCode(401, "The node was removed"),
    "credential_expired": ProblemCode(401, "The node's credential has ended"),
    "token_expired": ProblemCode(401, "The token has expired"),
    "token_used": ProblemCode(401, "The join token was used"),
    "token_revoked": ProblemCode(401, "The join token has ended"),
    "session_ended": ProblemCode(401, "The session has ended"),
    "login_pending": ProblemCode(403, "Nobody has allowed the login yet"),
    "login_refused": ProblemCode(403, "The login was refused"),
    "login_ended": ProblemCode(403, "The login has ended"),
    "too_many_tries": ProblemCode(429, "Too many tries"),
    "form_refused": ProblemCode(403, "The form isn't one that this page may send"),
    "role_insufficient": ProblemCode(403, "The operator's role doesn't allow this"),
    # The resource
    "unknown_node": ProblemCode(404, "There is no such node"),
    "unknown_group": ProblemCode(404, "There is no such group"),
    "unknown_function": ProblemCode(404, "There is no such function"),
    "unknown_version": ProblemCode(404, "There is no such version"),
    "unknown_artifact": ProblemCode(404, "There is no such artifact"),
    "unknown_schema_change": ProblemCode(404, "There is no such schema change"),
    "unknown_release": ProblemCode(404, "There is no such release"),
    "unknown_rollout": ProblemCode(404, "There is no such rollout"),
    "unknown_sync": ProblemCode(404, "There is no such sync"),
    "unknown_rehearsal": ProblemCode(404, "There is no such rehearsal going on"),
    "unknown_backup_file": ProblemCode(404, "The store has no such file of the backup"),
    "unknown_backup": ProblemCode(404, "There is no backup of the node"),
    "unknown_restore": ProblemCode(404, "There is no such restore for the node to carry out"),
    "unknown_operator": ProblemCode(404, "There is no such operator"),
    "unknown_webhook": ProblemCode(404, "There is no such webhook"),
    "unknown_join_token": ProblemCode(404, "There is no such join token"),
    "unknown_login": ProblemCode(404, "There is no such login"),
    "unknown_session": ProblemCode(404, "There is no such session"),
    "unknown_ca": ProblemCode(404, "This control plane has no CA to give out"),
    "watch_ended": ProblemCode(410, "Nobody watches the node's records any more"),
    # Conflicts
    "name_taken": ProblemCode(409, "The name is in use"),
    "group_in_use": ProblemCode(409, "The group is still needed"),
    "node_cloned": ProblemCode(409, "Two machines poll as the node"),
    "node_joined": ProblemCode(409, "A node has joined with the token"),
    "digest_mismatch": ProblemCode(409, "The bytes aren't those that were announced"),
    "upload_interrupted": ProblemCode(409, "The upload was given up before it ended"),
    "version_in_target": ProblemCode(409, "The version is part of a target"),
    "version_needed": ProblemCode(409, "A rollback would need the version"),
    "backup_off": ProblemCode(409, "The node's database isn't backed up"),
    "backup_ended": ProblemCode(409, "This history of the node's database has ended"),
    "backup_file_exists": ProblemCode(412, "The store has a file of that name already"),
    "restore_not_possible": ProblemCode(409, "The node can't be brought back, or let go, now"),
    "schema_conflict": ProblemCode(409, "The schema has moved on"),
    "schema_planned": ProblemCode(409, "Nodes may have applied the schema change"),
    "route_conflict": ProblemCode(409, "Two functions would have the same route"),
    "release_not_possible": ProblemCode(409, "The release can't be made as asked"),
    "rollout_open": ProblemCode(409, "A rollout of the group is open"),
    "rollout_not_possible": ProblemCode(409, "The rollout can't do that in its state"),
    "nodes_unfit": ProblemCode(409, "Nodes can't run the release"),
    "loss_not_allowed": ProblemCode(409, "Rows of nodes can be lost"),
    "stall_not_allowed": ProblemCode(409, "Calls that write would wait for long"),
    "plan_changed": ProblemCode(409, "The plan is another one by now"),
    "history_mismatch": ProblemCode(409, "The node's schema history isn't this control plane's"),
    "too_many_webhooks": ProblemCode(409, "There are as many webhooks as there may be"),
    "operator_of_provider": ProblemCode(409, "What the operator may comes from the identity provider"),
    "last_admin": ProblemCode(409, "The last admin must stay"),
    "artifact_too_large": ProblemCode(413, "The artifact is too large"),
    "module_refused": ProblemCode(422, "The module can't run on a node"),
    "manifest_unfit": ProblemCode(422, "The manifest can't be kept as it is"),
    "webhook_refused": ProblemCode(422, "No message would ever be sent to the webhook"),
    "schema_refused": ProblemCode(422, "The schema change can't be applied"),
    "invalid_policy": ProblemCode(422, "The rollout's policy isn't one that can be followed"),
    # Temporary failures
    "too_many_acts": ProblemCode(503, "A node or an operator has done this too often"),
    "too_many_watches": ProblemCode(503, "Too many views of nodes' records are open"),
    "database_busy": ProblemCode(503, "Too much is asked of the metadata database at once"),
    "database_locked": ProblemCode(503, "Another transaction holds what this one needs"),
    "database_read_only": ProblemCode(503, "The metadata database takes no writes"),
    "database_full": ProblemCode(503, "The metadata database's disk is full"),
    "database_unavailable": ProblemCode(503, "The metadata database can't be reached"),
    "commit_unknown": ProblemCode(503, "It isn't known whether the write was saved"),
    "store_unavailable": ProblemCode(503, "The artifact store can't be reached"),
    "store_refused": ProblemCode(503, "The artifact store refuses control"),
    "bucket_missing": ProblemCode(503, "The artifact store has no such bucket"),
    "store_not_owned": ProblemCode(503, "The bucket is another control's"),
    "store_mark_refused": ProblemCode(503, "The bucket's mark isn't one that this control wrote"),
    "deletions_held": ProblemCode(503, "Nothing is deleted from the bucket for now"),
    "spool_failed": ProblemCode(503, "Control can't keep uploads on its disk"),
    "store_full": ProblemCode(507, "The artifact store has no room"),
    "spool_full": ProblemCode(507, "Control's disk has no room"),
    "backup_incomplete": ProblemCode(409, "The backup has no files that lead to the state"),
    "backup_damaged": ProblemCode(409, "Files of the backup don't make a database"),
    "provider_unavailable": ProblemCode(503, "The identity provider can't be used"),
    "check_unavailable": ProblemCode(503, "The check couldn't be run"),
    "too_many_streams": ProblemCode(503, "Too many live pages are open"),
    "not_ready": ProblemCode(503, "Control isn't ready"),
    "shutting_down": ProblemCode(503, "Control is stopping"),
    "internal": ProblemCode(500, "Control made a mistake"),
    # Failures of a node's sync that the node itself doesn't report
    "sync_expired": ProblemCode(0, "The node didn't renew the sync's lease"),
    "not_at_target": ProblemCode(0, "The sync ended, but the node doesn't run what the release asks for"),
    "unknown": ProblemCode(0, "The node said that the sync failed, and not why"),
    # Errors of the `skerry` commands
    "schema": ProblemCode(0, "The metadata database's schema doesn't suit this version of control"),
    "start": ProblemCode(0, "Control can't be started"),
    "tls": ProblemCode(0, "Control's certificate isn't trusted"),
    "unreachable": ProblemCode(0, "No answer came"),
    "usage": ProblemCode(0, "The command can't be run as it was given"),
    "artifacts_lost": ProblemCode(0, "Artifacts are missing or damaged in the bucket"),
    "not_converged": ProblemCode(0, "Nodes failed, or didn't arrive in time"),
    "nodes_not_reached": ProblemCode(0, "Nodes are offline or revoked"),
    "rollout_not_done": ProblemCode(0, "A rollout waits for somebody, or has ended otherwise than done"),
    "rehearsal_not_passed": ProblemCode(0, "A rehearsal failed, or too little is known of it"),
    "audit_broken": ProblemCode(0, "The audit log isn't whole"),
}


class ProblemError(Exception):
    """A refusal that is answered as problem+json: what happened, to what, and what to do now.

    `field` is the path of the value that is wrong, in the body or the URL; `retry_after` is in seconds.
    """

    def __init__(
        self, code: str, detail: str, *, field: str = "", retry_after: int | None = None, allow: str = ""
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.status = CODES[code].status
        self.detail = detail
        self.field = field
        self.allow = allow
        """With method_not_allowed: the methods that the path accepts."""
        self.retry_after = 1 if retry_after is None and self.status == 503 else retry_after

    @property
    def title(self) -> str:
        """Return the title, which all messages with the code share."""
        return CODES[self.code].title

    def body(self) -> bytes:
        """Return the answer's body (RFC 9457)."""
        return msgspec.json.encode(
            wire.Problem(self.code, self.title, self.status, detail=self.detail, field=self.field)
        )
