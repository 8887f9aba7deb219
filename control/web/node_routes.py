"""The operations on nodes, and those that nodes call."""

from control import wire
from control.api import join_tokens, node_views, nodes, pagination, records, requests, responses, syncs
from control.api.operations import Operation
from control.api.request_input import INVENTORY_BODY
from control.api.responses import Page
from control.audit_chain import AuditEntry, AuditSeal

NODE = "/v1/nodes/{node}"

OPERATIONS: tuple[Operation, ...] = (
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
        ("token_expired", "token_used", "token_revoked", "name_taken"),
        body=wire.Join,
    ),
    Operation(
        "PUT",
        "/v1/nodes/self/row-counts",
        "Tell how many rows the node's tables have",
        syncs.tell_rows,
        "node",
        {204: None},
        body=requests.RowCounts,
    ),
    Operation(
        "POST",
        "/v1/nodes/self/credential",
        "Rotate the node's credential",
        nodes.rotate,
        "node",
        {201: wire.Rotated},
        ended="",
    ),
    Operation(
        "POST",
        "/v1/nodes/self/sql",
        "Tell of SQL that somebody has run on the node",
        nodes.sql_run,
        "node",
        {204: None},
        body=wire.SqlRun,
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
        ("unknown_node", "unknown_group", "nodes_unfit", "loss_not_allowed"),
        body=requests.MoveNode,
    ),
    Operation(
        "GET",
        NODE + "/move",
        "What the move of a node would change",
        nodes.plan_move,
        "read",
        {200: responses.MovePlan},
        ("unknown_node", "unknown_group"),
        query=nodes.MoveQuery,
    ),
    Operation(
        "POST", NODE + "/revoke", "Revoke a node's credentials", nodes.revoke, "admin", {204: None}, ("unknown_node",)
    ),
    Operation(
        "POST", NODE + "/retry", "Let a node try again now", nodes.retry, "deploy", {204: None}, ("unknown_node",)
    ),
    Operation(
        "GET",
        "/v1/join-tokens",
        "Join tokens, newest first",
        join_tokens.list_tokens,
        "admin",
        {200: Page[responses.JoinToken]},
        query=pagination.Paging,
    ),
    Operation(
        "DELETE",
        "/v1/join-tokens/{id}",
        "Revoke a join token",
        join_tokens.revoke,
        "admin",
        {204: None},
        ("unknown_join_token", "node_joined"),
    ),
    Operation(
        "POST",
        "/v1/join-tokens",
        "Make a one-time token to join with",
        join_tokens.create,
        "admin",
        {201: responses.MadeJoinToken},
        ("unknown_group", "unknown_node", "token_used"),
        body=requests.NewJoinToken,
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
        # An edge that knows no ended credentials sends a report that waits before all else, and drops it for good by
        # this code; only then it asks for another credential.
        ended="unknown_sync",
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
        "Who changed what, newest first",
        records.list_audit,
        "admin",
        {200: Page[AuditEntry]},
        query=records.AuditFilter,
    ),
    Operation(
        "GET",
        "/v1/audit/sealed",
        "The rows of the audit log that have a seal, in the order in which they are hashed",
        records.list_sealed,
        "admin",
        {200: Page[AuditEntry]},
        query=records.AfterSeal,
    ),
    Operation(
        "GET",
        "/v1/audit/seals",
        "The seals over the audit log's rows, by number",
        records.list_seals,
        "admin",
        {200: Page[AuditSeal]},
        query=records.AfterSeal,
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
)
