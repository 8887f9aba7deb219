"""Signing in and out, with a token, a code or an OpenID provider, and approving requests of `skerry login`.

The sign-in page has no session yet, so its form has the token of a cookie that was sent with it. A browser that doesn't
keep the cookie gets an error, and a form on another site can't sign anybody in.
"""

import contextlib
import secrets
from urllib.parse import quote, urlencode

from control.access import auth, csrf, sessions
from control.access.auth import AuthError
from control.access.openid_provider import CALLBACK, Provider
from control.access.sessions import COOKIE
from control.api.operations import Reply
from control.console import rendering, visits
from control.console.visits import SIGN_IN, ConsolePage, Visit
from control.problems import ProblemError

VISIT_COOKIE = "__Host-skerry-sign-in"
"""The cookie that the sign-in form is bound to."""
PROVIDER = "/sign-in/provider"
PROVIDER_COOKIE = "__Host-skerry-provider"
"""The cookie that a sign-in at the provider is bound to, for as long as one may take."""
PROVIDER_SECONDS = 600.0
NO_COOKIES = (
    "the browser didn't send back the cookie that this page gave it. Cookies must be allowed, and the page must come "
    "by https; some browsers keep none of http://127.0.0.1"
)


async def show(visit: Visit) -> Reply:
    """GET /sign-in?next=&by=code"""
    with contextlib.suppress(ProblemError):
        await visits.visitor(visit.services, visit.scope)
        return rendering.redirect(csrf.own_path(visit.query.get("next", "/")))
    return _page(visit, visit.query.get("next", "/"), by_code=visit.query.get("by") == "code")


async def sign_in(visit: Visit) -> Reply:
    """POST /sign-in: `token` or `code`, and `next`, the page to show then."""
    services, form = visit.services, visit.form
    to = csrf.own_path(form.get("next", "/"))
    by_code = "code" in form
    stays = form.get("stays") == "on"
    try:
        own = sessions.cookie(visit.scope, VISIT_COOKIE)
        if own is None:
            return _page(visit, to, by_code=by_code, error=ProblemError("form_refused", NO_COOKIES))
        csrf.check(visit.scope, csrf.form_token(own), form.getlist("visit_token"), services.settings.public_url)
        await services.fleet.read_late()
        services.fleet.refuse_stale()
        if by_code:
            secret = await services.sign_ins.use_code(visit.scope, form["code"], stays=stays)
        else:
            operator = await services.auth.operator_of(form.get("token", "").strip())
            secret = await services.sessions.begin(visit.scope, operator, "console", "token", stays=stays)
    except ProblemError as error:
        return _refusal(visit, to, error, by_code=by_code)
    return await _signed_in(visit, secret, to, stays=stays)


async def begin_at_provider(visit: Visit) -> Reply:
    """GET /sign-in/provider?next=: send the browser to the provider. A form may lead only to this server."""
    to = csrf.own_path(visit.query.get("next", "/"))
    try:
        address, secret = await _provider(visit).begin(to)
    except ProblemError as error:
        return _refusal(visit, to, error)
    return rendering.redirect(address, (sessions.set_cookie(PROVIDER_COOKIE, secret, seconds=PROVIDER_SECONDS),))


async def end_at_provider(visit: Visit) -> Reply:
    """GET /sign-in/provider/done: finish the sign-in after the provider has sent the browser back."""
    provider = _provider(visit)
    answer: dict[str, list[str]] = {}
    for name, value in visit.query.multi_items():
        answer.setdefault(name, []).append(value)
    gone = sessions.set_cookie(PROVIDER_COOKIE, "", seconds=0)
    try:
        await visit.services.fleet.read_late()
        visit.services.fleet.refuse_stale()
        await visit.services.sign_ins.answers.take(auth.address(visit.scope))
        person, to = await provider.finish(sessions.cookie(visit.scope, PROVIDER_COOKIE), answer)
        secret = await visit.services.people.sign_in(visit.scope, person)
    except ProblemError as error:
        return _refusal(visit, "/", error, gone)
    return await _signed_in(visit, secret, csrf.own_path(to), gone, stays=False)


def _provider(visit: Visit) -> Provider:
    """Return the provider. Raises: ProblemError no_such_path, when there is none."""
    if visit.services.provider is None:
        raise ProblemError("no_such_path", "no OpenID provider is set up here (SKERRY_OIDC_ISSUER)")
    return visit.services.provider


async def _signed_in(visit: Visit, secret: str, to: str, *cookies: tuple[bytes, bytes], stays: bool) -> Reply:
    """Return the answer to a visitor who has signed in. The browser's previous session ends."""
    with contextlib.suppress(ProblemError):
        before = await visit.services.sessions.signed_in(visit.scope)
        await visit.services.sessions.end(visit.scope, before.operator)
    seconds = visit.services.settings.session_stay if stays else None
    given = sessions.set_cookie(COOKIE, secret, seconds=seconds), sessions.set_cookie(VISIT_COOKIE, "", seconds=0)
    return rendering.redirect(to, (*given, *cookies))


async def sign_out(visit: Visit) -> Reply:
    """POST /sign-out. If the provider has its own session, a page says so: a form can't lead there."""
    await visit.services.sessions.end(visit.scope, visit.operator)
    gone = (sessions.set_cookie(COOKIE, "", seconds=0),)
    provider = visit.services.provider
    if provider is not None and visit.operator.signed_in.get("by") == "provider":
        leave = await provider.end_url()
        return visit.html_alone("signed_out.html", 200, gone, provider=provider.name, leave=leave)
    return rendering.redirect(SIGN_IN, gone)


async def ask_code(visit: Visit) -> Reply:
    """GET /login: ask for the code of `skerry login`."""
    return visit.html_alone("login.html", waiting=None, done="", error=None)


async def answer_login(visit: Visit) -> Reply:
    """POST /login: `code` shows the waiting request; `id` and `answer` approve or refuse it."""
    sign_ins, session = visit.services.sign_ins, visit.visitor.session
    if session is None:
        raise ProblemError("unknown_session", "a login is allowed in a browser, by somebody who has signed in there")
    waiting, done = None, ""
    try:
        if "answer" in visit.form:
            allow = visit.form["answer"] == "allow"
            await sign_ins.answer_login(visit.scope, visit.form.get("id", ""), session, allow=allow)
            done = "allowed" if allow else "refused"
        else:
            waiting = await sign_ins.find_login(visit.scope, visit.form.get("code", ""))
    except ProblemError as error:
        if error.status >= 500 or isinstance(error, AuthError):
            raise
        return visit.html_alone("login.html", error.status, waiting=None, done="", error=error)
    return visit.html_alone("login.html", waiting=waiting, done=done, error=None, ends_at=session.ends_at)


def _refusal(visit: Visit, to: str, error: ProblemError, *cookies: tuple[bytes, bytes], by_code: bool = False) -> Reply:
    """Return the page again with the error; refused credentials are recorded."""
    if isinstance(error, AuthError) and error.reason:
        visit.services.failures.record(auth.address(visit.scope), error.reason)
        visit.services.metrics.auth_failure(error.reason)
    return _page(visit, to, *cookies, by_code=by_code, error=error)


def _page(
    visit: Visit, to: str, *cookies: tuple[bytes, bytes], by_code: bool, error: ProblemError | None = None
) -> Reply:
    try:
        own = sessions.cookie(visit.scope, VISIT_COOKIE)
    except AuthError:
        own = None
    own = own or secrets.token_urlsafe(32)
    to = csrf.own_path(to)
    other = urlencode({"next": to} if by_code else {"next": to, "by": "code"}, quote_via=quote)
    return visit.html_alone(
        "sign_in.html",
        200 if error is None else error.status,
        # Even if the browser already has it: it keeps it for an hour from now.
        (sessions.set_cookie(VISIT_COOKIE, own, seconds=3600), *cookies),
        by_code=by_code,
        other=f"{SIGN_IN}?{other}",
        next=to,
        provider=visit.services.provider.name if visit.services.provider else "",
        begin=f"{PROVIDER}?{urlencode({'next': to}, quote_via=quote)}",
        visit_token=csrf.form_token(own),
        error=error,
        stay_days=visit.services.settings.session_stay / 86400,
        life_hours=visit.services.settings.session_life / 3600,
    )


PAGES = (
    ConsolePage("GET", SIGN_IN, show, role=None),
    ConsolePage("POST", SIGN_IN, sign_in, role=None),
    ConsolePage("GET", PROVIDER, begin_at_provider, role=None),
    ConsolePage("GET", CALLBACK, end_at_provider, role=None),
    ConsolePage("POST", "/sign-out", sign_out),
    ConsolePage("GET", "/login", ask_code),
    ConsolePage("POST", "/login", answer_login),
)
