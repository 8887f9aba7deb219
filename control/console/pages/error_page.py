"""GET /errors/{code}: what an error code means and how to fix it. Each code on a page links here."""

from control.api.operations import Reply
from control.console.explanations import explanations
from control.console.visits import ConsolePage, Visit
from control.problems import ProblemError


async def show(visit: Visit) -> Reply:
    """GET /errors/{code}"""
    code = visit.path["code"]
    told = explanations().get(code)
    if told is None:
        raise ProblemError("no_such_path", f"no error has the code {code[:80]}")
    fleet = await visit.fleet()
    nodes = sum(cause.nodes for cause in fleet.causes if cause.code == code) if fleet else 0
    return await visit.html("error.html", code=code, told=told, nodes=nodes)


PAGES = (ConsolePage("GET", "/errors/{code}", show),)
