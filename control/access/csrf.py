"""Against CSRF: the console accepts forms only of its own pages, from the browser that was shown them. Pure.

Other sites can have a browser send a form here, with the cookie. A form is taken where the browser says that a page of
control's own origin sent it, in headers that no page can set, and where it has the token that only the page shown to
this session has. Either check alone would stop most sites.
"""

import hashlib
import hmac
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.types import Scope

from control.problems import ProblemError

DEFAULT_PORTS = {"http": 80, "https": 443}
_SHOWN = 100
"""Characters of a header that a message shows."""


def check(scope: Scope, form_token: str, given: Iterable[str], public_url: str = "") -> None:
    """Check a POST of the console before anything is done.

    `form_token` is the session's, `given` the values of the form's field for it; `public_url` is where browsers reach
    control, '' if that is what they send in Host.
    Raises: ProblemError form_refused, when another page sent it, or it was shown to another session.
    """
    check_origin(scope, public_url)
    values = list(given)
    if len(values) != 1 or not hmac.compare_digest(values[0].encode(), form_token.encode()):
        raise ProblemError(
            "form_refused",
            "the form is of another session, or of before you signed in: open the page again, and send it from there",
        )


def check_origin(scope: Scope, public_url: str = "") -> None:
    """Check that the browser says one of control's pages sent the request. Raises: ProblemError form_refused."""
    site, origin, host = (_header(scope, name) for name in (b"sec-fetch-site", b"origin", b"host"))
    if site not in (None, "same-origin"):
        raise ProblemError("form_refused", f"a page of another site had the browser send it ({site[:_SHOWN]})")
    if origin is None or host is None:
        raise ProblemError("form_refused", "the browser doesn't say which page sent it, by the headers Origin and Host")
    if public_url:
        own = [public_url]
    else:
        # Without TLS control listens only on loopback, perhaps behind a proxy that uses TLS.
        own = [f"{scheme}://{host}" for scheme in ("https", "http") if scheme == "https" or scope["scheme"] == "http"]
    sent = _parts(origin)
    if sent is None or sent not in [_parts(url) for url in own]:
        raise ProblemError(
            "form_refused",
            f"a page of {origin[:_SHOWN]} sent it, and control's own are those of {own[0][:_SHOWN]}; where a proxy "
            "gives control another name, set SKERRY_PUBLIC_URL",
        )


def form_token(secret: str) -> str:
    """Return the token for forms of the session with this secret. It doesn't reveal the secret to readers of a page."""
    return hashlib.sha256(b"form of " + secret.encode()).hexdigest()


def own_path(text: str) -> str:
    """Return `text` if it is a path of this server, perhaps with a query, else `/`: where to go after signing in."""
    if not text.startswith("/") or len(text) > 2000 or any(c <= " " or c == "\\" or c > "~" for c in text):
        return "/"
    parts = urlsplit(text)
    if parts.scheme or parts.netloc or text.startswith("//") or parts.path.startswith(("/sign-in", "/sign-out")):
        return "/"
    return text


def _header(scope: Scope, wanted: bytes) -> str | None:
    """Return the value of a header; None if there is none. Raises: ProblemError form_refused, when there are two."""
    found = [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]
    if len(found) > 1:
        raise ProblemError("form_refused", f"there are two headers {wanted.decode()}, and it isn't known which is true")
    return found[0] if found else None


def _parts(url: str) -> tuple[str, str, int] | None:
    """Return scheme, host and port of an origin; None if it is none, as `null`."""
    try:
        parts = urlsplit(url)
        port = parts.port or DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return None
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname or port is None or parts.path.strip("/") or parts.query:
        return None
    return parts.scheme, parts.hostname, port
