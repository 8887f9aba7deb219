"""The table of operations: all of the API but the poll. It is served by `starlette_app` and described by `openapi`."""

from functools import cache

from control import wire
from control.api import (
    artifacts,
    bucket,
    functions,
    node_views,
    nodes,
    operators,
    pagination,
    probes,
    records,
    releases,
    responses,
    schema,
    syncs,
)
from control.api.operations import INVENTORY_BODY, SQL_BODY, ApiCall, Operation, Reply, encode
from control.api.responses import Page
from control.web import openapi


async def describe(call: ApiCall) -> Reply:
    """GET /openapi.json."""
    return Reply(200, _description(), ((b"content-type", b"application/json"),))


@cache
def _description() -> bytes:
    # Made once: it takes 20 ms, and anybody may ask for it.
    return encode(openapi.document(OPERATIONS))


class NewGroup(wire.Body, frozen=True):
    name: wire.Name


ARTIFACT = "/v1/artifacts/{sha256}"
STORE = ("store_unavailable", "store_refused", "store_full", "store_not_owned", "bucket_missing")
"""Codes of problems that the artifact store may cause."""
FUNCTION = "/v1/functions/{name}"
VERSIONS = "/v1/functions/{name}/versions"
VERSION = "/v1/functions/{name}/versions/{version}"
CHANGES = "/v1/schema-changes"
NODE = "/v1/nodes/{node}"

OPERATIONS: tuple[Operation, ...] = (
    # Artifacts and functions
    Operation(
        "PUT",
        ARTIFACT,
        "Upload an artifact",
        artifacts.upload,
        "deploy",
        {200: responses.Artifact, 201: responses.Artifact},
        (
            "digest_mismatch",
            "upload_interrupted",
            "artifact_too_large",
            "module_refused",
            "check_unavailable",
            "spool_failed",
            "spool_full",
            *STORE,
        ),
        body=bytes,
    ),
    Operation("HEAD", ARTIFACT, "Is it uploaded?", artifacts.head, "deploy", {200: bytes}, ("unknown_artifact",)),
    Operation(
        "GET",
        ARTIFACT,
        "The bytes, for a node that has or wants them",
        artifacts.download,
        "node",
        {200: bytes, 206: bytes, 307: None},
        ("unknown_artifact", *STORE),
    ),
    Operation(
        "GET",
        "/v1/artifact-store",
        "The bucket of artifacts: whose it is, and whether anything is deleted from it",
        bucket.show,
        "read",
        {200: responses.ArtifactStore},
    ),
    Operation(
        "POST",
        "/v1/artifact-store/resume",
        "Let deletions from the bucket go on, which were held",
        bucket.resume,
        "admin",
        {200: responses.ArtifactStore},
    ),
    Operation(
        "GET",
        "/v1/functions",
        "Functions",
        functions.list_functions,
        "read",
        {200: Page[responses.Function]},
        query=pagination.Paging,
    ),
    Operation(
        "DELETE",
        FUNCTION,
        "Delete a function with all its versions",
        functions.delete,
        "deploy",
        {204: None},
        ("unknown_function", "version_in_target"),
        query=functions.DeletionQuery,
    ),
    Operation(
        "GET",
        VERSIONS,
        "Versions of a function, newest first",
        functions.list_versions,
        "read",
        {200: Page[responses.Version]},
        ("unknown_function",),
        query=pagination.Paging,
    ),
    Operation(
        "POST",
        VERSIONS,
        "Make a version of an uploaded artifact",
        functions.add_version,
        "deploy",
        {201: responses.Version},
        ("unknown_artifact", "module_refused", "manifest_unfit"),
        body=wire.NewVersion,
    ),
    Operation(
        "GET", VERSION, "A version", functions.get_version, "read", {200: responses.Version}, ("unknown_version",)
    ),
    Operation(
        "DELETE",
        VERSION,
        "Delete a version",
        functions.delete,
        "deploy",
        {204: None},
        ("unknown_version", "version_in_target"),
        query=functions.DeletionQuery,
    ),
    # Schema
    Operation(
        "GET",
        CHANGES,
        "Schema changes, each in its newest revision",
        schema.list_changes,
        "read",
        {200: Page[responses.SchemaChange]},
        query=pagination.Paging,
    ),
    Operation(
        "POST",
        CHANGES,
        "Register a schema change",
        schema.add,
        "deploy",
        {201: responses.MadeSchemaChange},
        ("schema_conflict", "schema_refused", "check_unavailable"),
        body=wire.NewSchemaChange,
        body_limit=SQL_BODY,
    ),
    Operation(
        "GET",
        CHANGES + "/{number}",
        "A schema change and its revisions",
        schema.get_change,
        "read",
        {200: responses.SchemaChangeHistory},
        ("unknown_schema_change",),
    ),
    Operation(
        "POST",
        CHANGES + "/{number}/revisions",
        "Amend a schema change",
        schema.amend,
        "deploy",
        {201: responses.MadeSchemaChange},
        ("unknown_schema_change", "schema_conflict", "schema_refused", "check_unavailable"),
        body=wire.AmendSchemaChange,
        body_limit=SQL_BODY,
    ),
    # Groups and releases
    Operation(
        "GET",
        "/v1/groups",
        "Groups and their releases",
        releases.list_groups,
        "read",
        {200: Page[responses.Group]},
        query=pagination.Paging,
    ),
    Operation(
        "POST",
        "/v1/groups",
        "Make a group",
        releases.create_group,
        "deploy",
        {201: responses.Group},
        ("name_taken",),
        body=NewGroup,
    ),
    Operation(
        "GET",
        "/v1/releases",
        "Releases, newest first",
        releases.list_releases,
        "read",
        {200: Page[responses.Release]},
        ("unknown_group",),
        query=releases.ReleaseQuery,
    ),
    Operation(
        "POST",
        "/v1/releases",
        "Make a release, or with plan say what it would change",
        releases.create,
        "deploy",
        {200: responses.MadeRelease, 201: responses.MadeRelease},
        (
            "unknown_group",
            "unknown_function",
            "unknown_version",
            "unknown_schema_change",
            "unknown_release",
            "release_not_possible",
            "route_conflict",
            "nodes_unfit",
        ),
        body=wire.NewRelease,
        query=releases.PlanQuery,
    ),
    Operation(
        "GET",
        "/v1/releases/{group}/{number}",
        "A release",
        releases.get_release,
        "read",
        {200: responses.Release},
        ("unknown_group", "unknown_release"),
    ),
    # Nodes
    Operation(
        "GET",
        "/v1/nodes",
        "Nodes",
        node_views.list_nodes,
        "read",
        {200: Page[responses.Node]},
        ("unknown_group",),
        query=node_views.NodeFilter,
    ),
    Operation(
        "POST",
        "/v1/nodes",
        "Join",
        nodes.join,
        "join",
        {201: wire.Joined},
        ("token_expired", "token_used", "name_taken", "unknown_node"),
        body=wire.Join,
    ),
    Operation(
        "POST",
        "/v1/nodes/self/credential",
        "Rotate the node's credential",
        nodes.rotate,
        "node",
        {201: wire.Rotated},
    ),
    Operation("GET", NODE, "A node", node_views.get_node, "read", {200: responses.DetailedNode}, ("unknown_node",)),
    Operation("DELETE", NODE, "Remove a node", nodes.remove, "admin", {204: None}, ("unknown_node",)),
    Operation(
        "POST",
        NODE + "/move",
        "Move a node to another group",
        nodes.move,
        "deploy",
        {200: responses.DetailedNode},
        ("unknown_node", "unknown_group", "nodes_unfit"),
        body=wire.MoveNode,
    ),
    Operation(
        "POST", NODE + "/revoke", "Revoke a node's credentials", nodes.revoke, "admin", {204: None}, ("unknown_node",)
    ),
    Operation(
        "POST", NODE + "/retry", "Let a node try again now", nodes.retry, "deploy", {204: None}, ("unknown_node",)
    ),
    Operation(
        "POST",
        "/v1/join-tokens",
        "Make a one-time token to join with",
        nodes.make_join_token,
        "admin",
        {201: responses.MadeJoinToken},
        ("unknown_group", "unknown_node", "token_used"),
        body=wire.NewJoinToken,
    ),
    # Syncs and logs
    Operation(
        "PUT",
        "/v1/syncs/{id}",
        "Report a sync",
        syncs.put,
        "node",
        {200: wire.SyncState},
        ("unknown_sync",),
        body=wire.SyncUpdate,
        body_limit=INVENTORY_BODY,
    ),
    Operation("GET", "/v1/syncs/{id}", "A sync", records.get_sync, "read", {200: responses.Sync}, ("unknown_sync",)),
    Operation(
        "GET",
        "/v1/syncs",
        "The log of syncs, newest first",
        records.list_syncs,
        "read",
        {200: Page[responses.Sync]},
        query=records.SyncFilter,
    ),
    Operation(
        "GET",
        "/v1/audit",
        "What operators did, newest first",
        records.list_audit,
        "admin",
        {200: Page[responses.AuditEntry]},
        query=pagination.Paging,
    ),
    Operation(
        "GET",
        "/v1/auth-failures",
        "Refused authentications, newest first",
        records.list_auth_failures,
        "admin",
        {200: Page[responses.AuthFailure]},
        query=pagination.Paging,
    ),
    # Operators
    Operation(
        "GET",
        "/v1/operators",
        "Operators",
        operators.list_operators,
        "admin",
        {200: Page[responses.Operator]},
        query=pagination.Paging,
    ),
    Operation(
        "POST",
        "/v1/operators",
        "Make an operator",
        operators.create,
        "admin",
        {201: responses.MadeOperator},
        ("name_taken",),
        body=wire.NewOperator,
    ),
    Operation(
        "DELETE",
        "/v1/operators/{name}",
        "Revoke an operator",
        operators.revoke,
        "admin",
        {204: None},
        ("unknown_operator", "last_admin"),
    ),
    # For everybody
    Operation("GET", "/v1/ca", "The CA's certificate", probes.ca, None, {200: bytes}, ("unknown_ca",)),
    Operation("GET", "/healthz", "Is the process alive?", probes.healthz, None, {200: responses.Health}),
    Operation("GET", "/readyz", "Can it serve?", probes.readyz, None, {200: responses.Health}, ("not_ready",)),
    Operation("GET", "/metrics", "Counters for Prometheus", probes.metrics, None, {200: bytes}),
    Operation("GET", "/openapi.json", "This description", describe, None, {200: dict}),
)
