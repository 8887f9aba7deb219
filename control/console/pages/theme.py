"""The theme: the system's, light or dark, kept in a cookie, so that the server renders it and nothing flashes."""

from control.access.csrf import own_path
from control.access.sessions import set_cookie
from control.api.operations import Reply
from control.console import rendering
from control.console.visits import SIGN_IN, THEME_COOKIE, THEMES, ConsolePage, Visit
from control.problems import ProblemError

YEAR = 365 * 24 * 3600


async def choose(visit: Visit) -> Reply:
    """POST /theme: `theme` is one of `THEMES`, or `next`; `back` is the page to show afterwards."""
    wanted = visit.form.get("theme", "")
    if wanted == "next":
        wanted = THEMES[(THEMES.index(visit.theme) + 1) % len(THEMES)]
    if wanted not in THEMES:
        raise ProblemError("invalid_body", f"a theme is one of {', '.join(THEMES)}, or next", field="theme")
    back = visit.form.get("back", "/")
    kept = set_cookie(THEME_COOKIE, wanted, seconds=YEAR)
    return rendering.redirect(back if back == SIGN_IN else own_path(back), (kept,))


PAGES = (ConsolePage("POST", "/theme", choose, role=None),)
