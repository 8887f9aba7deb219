"""The effective settings of the replica that answers: names, values, and sources, without secrets."""

from control.api import replicas
from control.api.operations import Reply
from control.api.pagination import Page
from control.console.visits import ConsolePage, Visit
from control.protocol import settings_in_force


async def show(visit: Visit) -> Reply:
    """GET /settings"""
    found: Page[settings_in_force.SettingInForce] = await visit.ask(replicas.settings)
    return await visit.html("settings.html", settings=found.items)


PAGES = (ConsolePage("GET", "/settings", show, "admin", everywhere=True),)
