"""Which forms of the console are taken, and where one gets to after signing in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Scope

from control.access import csrf
from control.problems import ProblemError

OWN = "https://control.example:8443"
Headers = list[tuple[str, str]]


def scope(headers: Headers, scheme: str = "https") -> Scope:
    return {"scheme": scheme, "headers": [(name.encode(), value.encode()) for name, value in headers]}


def sent(origin: str | None = OWN, site: str | None = "same-origin", host: str = "control.example:8443") -> Headers:
    found = [("host", host)]
    if origin is not None:
        found.append(("origin", origin))
    if site is not None:
        found.append(("sec-fetch-site", site))
    return found


def is_taken(headers: Headers, *, scheme: str = "https", public_url: str = "") -> bool:
    try:
        csrf.check(scope(headers, scheme), "right", ["right"], public_url)
    except ProblemError as error:
        return error.code != "form_refused"
    return True


@pytest.mark.parametrize(
    ("headers", "scheme", "public_url", "taken"),
    [
        (sent(), "https", "", True),
        # Older browsers don't send the second one.
        (sent(site=None), "https", "", True),
        (sent("https://control.example", host="control.example"), "https", "", True),
        (sent("https://control.example:443", host="control.example"), "https", "", True),
        (sent("HTTPS://Control.Example:8443"), "https", "", True),
        # Other pages
        (sent(site="same-site"), "https", "", False),
        (sent(site="cross-site"), "https", "", False),
        (sent(site="none"), "https", "", False),
        (sent("https://other.example"), "https", "", False),
        (sent("https://other.control.example:8443", site="same-site"), "https", "", False),
        (sent("https://other.control.example:8443", site=None), "https", "", False),
        (sent("https://control.example"), "https", "", False),
        (sent("https://control.example:8444"), "https", "", False),
        (sent("http://control.example:8443"), "https", "", False),
        (sent("https://control.example:8443@evil.example"), "https", "", False),
        (sent("https://control.example:8443/path"), "https", "", False),
        # No page that says so
        (sent("null"), "https", "", False),
        (sent(""), "https", "", False),
        (sent("https://["), "https", "", False),
        (sent("https://control.example:99999"), "https", "", False),
        (sent(None), "https", "", False),
        ([("origin", OWN)], "https", "", False),
        # Two headers
        ([*sent(), ("origin", OWN)], "https", "", False),
        ([*sent(), ("sec-fetch-site", "same-origin")], "https", "", False),
        ([*sent(), ("host", "control.example:8443")], "https", "", False),
        (sent(f"{OWN}, {OWN}"), "https", "", False),
        # Behind a proxy that ends TLS, and behind one that gives control another name
        (sent(), "http", "", True),
        (sent("http://127.0.0.1:8443", host="127.0.0.1:8443"), "http", "", True),
        (sent("http://127.0.0.1:8444", host="127.0.0.1:8443"), "http", "", False),
        (sent("https://edge.example", host="10.0.0.7:8443"), "http", "https://edge.example", True),
        (sent("https://10.0.0.7:8443", host="10.0.0.7:8443"), "http", "https://edge.example", False),
        (sent("https://edge.example:443", host="10.0.0.7"), "http", "https://edge.example", True),
    ],
)
def test_a_form_is_taken_of_controls_own_pages_alone(
    headers: Headers, scheme: str, public_url: str, taken: bool
) -> None:
    assert is_taken(headers, scheme=scheme, public_url=public_url) == taken


@pytest.mark.parametrize("given_token", [[], [""], ["wrong"], ["right", "right"], ["right", "wrong"], ["righ\u00e9"]])
def test_a_form_has_its_sessions_token_once(given_token: list[str]) -> None:
    with pytest.raises(ProblemError, match="another session"):
        csrf.check(scope(sent()), "right", given_token)


@pytest.mark.parametrize("path", ["/", "/nodes?group=a&error=b", "/releases/shops-eu/42", "/functions/%2e%2e"])
def test_after_signing_in_one_gets_to_the_page_that_was_asked_for(path: str) -> None:
    assert csrf.own_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "nodes",
        "https://evil.example/",
        "//evil.example/",
        "///evil.example/",
        "/\\evil.example",
        "\\\\evil.example",
        "/\t/evil.example",
        "\t//evil.example",
        "/nodes\r\nset-cookie: a=b",
        "javascript:alert(1)",
        "/sign-in?next=/sign-in",
        "/sign-out",
        "/n\u00f6des",
        "/" + "a" * 2000,
    ],
)
def test_no_other_place(path: str) -> None:
    assert csrf.own_path(path) == "/"


@given(st.text())
def test_whatever_is_asked_for_it_is_a_path_here(text: str) -> None:
    found = csrf.own_path(text)
    assert found.startswith("/")
    assert not found.startswith(("//", "/\\"))
    assert found.isascii()
    assert found.isprintable()
