"""The theme: as the system's, light or dark, kept in a cookie, so that the server writes it and nothing flashes."""

from control.api.operations import Reply
from control.console import rendering
from control.console.visits import THEME_COOKIE, THEMES, ConsolePage, Visit
from control.problems import ProblemError

YEAR = 365 * 24 * 3600


async def choose(visit: Visit) -> Reply:
    """POST /theme: `theme` is one of `THEMES`, or `next`; `back` is the page to show then."""
    wanted = visit.form.get("theme", "")
    if wanted == "next":
        wanted = THEMES[(THEMES.index(visit.theme) + 1) % len(THEMES)]
    if wanted not in THEMES:
        raise ProblemError("invalid_body", f"a theme is one of {', '.join(THEMES)}, or next", field="theme")
    secure = "; Secure" if visit.scope["scheme"] == "https" else ""
    kept = f"{THEME_COOKIE}={wanted}; Path=/; Max-Age={YEAR}; HttpOnly; SameSite=Lax{secure}"
    return rendering.redirect(inside(visit.form.get("back", "/")), ((b"set-cookie", kept.encode()),))


def inside(address: str) -> str:
    """An address as it came in a form, if it is a path of this server, else `/`."""
    safe = address.startswith("/") and not address.startswith("//") and address.isascii() and address.isprintable()
    return address if safe and "\\" not in address else "/"


PAGES = (ConsolePage("POST", "/theme", choose, role=None),)
