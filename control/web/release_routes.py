"""The operations on schema changes, groups and releases."""

from control.api import pagination, releases, requests, responses, schema
from control.api.operations import Operation
from control.api.request_input import SQL_BODY
from control.api.responses import Page

CHANGES = "/v1/schema-changes"

OPERATIONS: tuple[Operation, ...] = (
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
        body=requests.NewSchemaChange,
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
        body=requests.AmendSchemaChange,
        body_limit=SQL_BODY,
    ),
    Operation(
        "POST",
        CHANGES + "/{number}/withdraw",
        "Withdraw the last schema change, if no plan has contained it",
        schema.withdraw,
        "deploy",
        {201: responses.SchemaChange},
        ("unknown_schema_change", "schema_conflict", "schema_planned"),
    ),
    Operation(
        "GET",
        CHANGES + "/{number}/reversal",
        "Draft the schema change that reverses one",
        schema.draft_reversal,
        "read",
        {200: responses.ReversalDraft},
        ("unknown_schema_change", "schema_refused", "check_unavailable"),
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
        body=requests.NewGroup,
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
        body=requests.NewRelease,
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
)
