"""GET /go?q=: from a name, number, code or digest to its page; if several match, a list of them."""

import asyncio
import re
from collections import Counter
from dataclasses import dataclass
from urllib.parse import quote

from control.api import functions, releases, schema
from control.api.operations import Reply
from control.api.release_bodies import Release, ReleaseFunction
from control.console import rendering
from control.console.explanations import is_explained
from control.console.visits import ConsolePage, Visit
from control.problems import ProblemError

LONGEST = 200
"""Maximum characters of the search text."""
SHOWN = 20
"""Maximum matches of one kind that are listed."""
LEAST_DIGEST = 6
"""Fewest digits of a sha256 that are searched for."""


@dataclass(frozen=True)
class MeantPage:
    """A page that the search may mean."""

    kind: str
    text: str
    page: str
    exact: bool = True
    """Whether the name is exactly the search text, and doesn't only begin with it or contain it."""


async def show(visit: Visit) -> Reply:
    """GET /go?q="""
    wanted = visit.query.get("q", "").strip()[:LONGEST]
    if not wanted:
        return rendering.redirect("/")
    found = [match for matches in await asyncio.gather(*(look(visit, wanted) for look in LOOKS)) for match in matches]
    exact = [match for match in found if match.exact]
    meant = exact or found
    pages = {match.page for match in meant}
    if len(pages) == 1:
        return rendering.redirect(pages.pop())
    listed = sorted(found, key=lambda match: (not match.exact, match.kind, match.text))
    more = any(count >= SHOWN for count in Counter(match.kind for match in found).values())
    return await visit.html("go_to.html", wanted=wanted, found=listed, most=SHOWN if more else 0)


async def _nodes_and_groups(visit: Visit, wanted: str) -> list[MeantPage]:
    grid = (await visit.services.standings.grid()).of(visit.rights.groups("read"))
    lower, found = wanted.lower(), []
    for group, nodes in grid.groups.items():
        if lower in group:
            found.append(MeantPage("group", group, f"/releases?group={group}", group == lower))
        if lower in nodes.joined:
            names = [name for name in nodes.names if lower in name]
            # The one that is meant is among them, however many match.
            names.sort(key=lambda name: (name != lower, not name.startswith(lower), name))
            found += [MeantPage("node", name, f"/nodes/{name}", name == lower) for name in names[:SHOWN]]
    return sorted(found, key=lambda match: (not match.exact, match.text))[: 2 * SHOWN]


async def _functions(visit: Visit, wanted: str) -> list[MeantPage]:
    name, _, version = wanted.lower().partition("@")
    meant: list[str] = await visit.ask(functions.named_like, {"text": name, "count": SHOWN})
    query = f"?version={version}" if version.isdecimal() and version.isascii() else ""
    return [MeantPage("function", each, f"/functions/{each}{query}", each == name) for each in meant]


async def _releases(visit: Visit, wanted: str) -> list[MeantPage]:
    """Find the release `group/number` or `group 42`."""
    parts = re.fullmatch(r"([a-z0-9][a-z0-9-]{0,62})[/ ]([1-9][0-9]{0,8})", wanted.lower())
    if parts is None:
        return []
    try:
        found: Release = await visit.ask(releases.get_release, {"group": parts[1], "number": int(parts[2])})
    except ProblemError as error:
        if error.status != 404:
            raise
        return []
    page = f"/releases/{found.group}/{found.number}"
    return [MeantPage("release", f"{found.group} {found.number}", page)]


async def _schema(visit: Visit, wanted: str) -> list[MeantPage]:
    """Find the schema change with this number."""
    if not re.fullmatch(r"[1-9][0-9]{0,5}", wanted) or int(wanted) > await visit.ask(schema.count_changes):
        return []
    return [MeantPage("schema change", wanted, f"/schema/{wanted}")]


async def _codes(visit: Visit, wanted: str) -> list[MeantPage]:
    """Find the error code, if nodes fail with it or it exists."""
    summary = (await visit.services.standings.summary()).of(visit.rights.groups("read"))
    code = wanted.lower()
    known = {cause.code: cause.nodes for cause in summary.causes}
    if code in known:
        return [MeantPage("error", f"{code}, {known[code]} failing", f"/nodes?error={quote(code)}")]
    if is_explained(code):
        return [MeantPage("error", code, f"/errors/{code}")]
    return [
        MeantPage("error", f"{one}, {nodes} failing", f"/nodes?error={quote(one)}", exact=False)
        for one, nodes in known.items()
        if code in one
    ][:SHOWN]


async def _artifacts(visit: Visit, wanted: str) -> list[MeantPage]:
    """Find the artifacts whose sha256 begins with these digits."""
    digest = wanted.lower()
    if not re.fullmatch(rf"[0-9a-f]{{{LEAST_DIGEST},64}}", digest):
        return []
    found: list[ReleaseFunction] = await visit.ask(functions.with_artifact, {"sha256": digest})
    return [
        MeantPage("artifact", f"{f.name}@{f.version} {f.sha256[:12]}", f"/functions/{f.name}?version={f.version}")
        for f in found
    ]


LOOKS = (_nodes_and_groups, _functions, _releases, _schema, _codes, _artifacts)
PAGES = (ConsolePage("GET", "/go", show),)
