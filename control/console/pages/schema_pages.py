"""The schema: its changes, and one: its text, its revisions, who has it, what it can do to nodes."""

from control.api import pagination, schema
from control.api.operations import Reply
from control.api.schema import ListedSchemaChange, SchemaChange, SchemaChangeHistory
from control.console.pages.release_pages import path_of
from control.console.visits import ConsolePage, Visit
from control.problems import ProblemError

SHOWN = 25
"""Changes of a page of the list."""
TEXT = 40_000
"""Characters of a change's text that are shown."""
EVERY, ONE = "/schema", "/schema/{number}"


async def show_list(visit: Visit) -> Reply:
    """GET /schema: the newest changes first, or those from a number down."""
    newest: int = await visit.ask(schema.count_changes)
    top = visit.query.get("from", "")
    last = min(newest, int(top)) if top.isdecimal() and 0 < len(top) < 9 else newest
    first = max(0, last - SHOWN)
    # The API lists them from the first one on.
    query = pagination.Paging(pagination.write_cursor(first), max(1, last - first))
    found, _ = await visit.items(schema.list_changes, ListedSchemaChange, query)
    rows = [change for change in found if change.number <= last]
    # Long texts may have ended the API's page early.
    while rows and rows[-1].number < last:
        query = pagination.Paging(pagination.write_cursor(rows[-1].number), last - rows[-1].number)
        rows += (await visit.items(schema.list_changes, ListedSchemaChange, query))[0]
    return await visit.html("schema.html", rows=rows[::-1], newest=newest, first=first)


async def show_one(visit: Visit) -> Reply:
    """GET /schema/{number}?revision="""
    change: SchemaChangeHistory = await visit.ask(schema.get_change, path_of(visit))
    shown: SchemaChange = change
    wanted = visit.query.get("revision", "")
    if wanted:
        found = [revision for revision in change.revisions if str(revision.revision) == wanted]
        if not found:
            raise ProblemError(
                "invalid_parameter",
                f"change {change.number} has no revision {wanted[:20]}, or one so old that it isn't shown",
                field="revision",
            )
        shown = found[0]
    return await visit.html(
        "schema_change.html",
        change=change,
        shown=shown,
        sql=shown.sql[:TEXT],
        cut=max(0, len(shown.sql) - TEXT),
        newest=await visit.ask(schema.count_changes),
        may=visit.rights.allows("deploy", None),
    )


PAGES = (ConsolePage("GET", EVERY, show_list), ConsolePage("GET", ONE, show_one))
