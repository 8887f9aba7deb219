"""What every page has: headers, escaping, theme, the console's own files; and what never is in a template."""

import gzip
import re
from datetime import UTC, datetime, timedelta, timezone
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from control import problems
from control.access.certificates import ControlCertificates
from control.clock import SystemClock
from control.console import assets, explanations, formats, rendering
from control.live_settings import LiveSettings
from control.metrics import ControlMetrics
from control.reread_files import RereadFiles
from control.settings import ControlSettings
from control.web.app import ControlApp
from edge_runtime import errors

CONSOLE = Path(rendering.__file__).parent
SETTINGS = ControlSettings(metadata_url="postgresql://u:p@127.0.0.1/d", artifacts_url="http://k:s@127.0.0.1:1/b")
BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


class NoDatabase:
    """Services of a page that asks nothing."""

    def __init__(self) -> None:
        self.metrics, self.settings, self.clock = ControlMetrics(), SETTINGS, SystemClock()
        self.auth = self.fleet = self.heartbeats = self.decisions = self.tracing = self.numbers = None
        self.certificates, self.reread = ControlCertificates(SETTINGS, SystemClock()), RereadFiles({}, SystemClock())
        self.live_settings = LiveSettings(SETTINGS)


@pytest.fixture
def client() -> TestClient:
    made = ControlApp(SETTINGS, SystemClock())
    made.serve_with(NoDatabase())  # type: ignore[arg-type]
    return TestClient(
        made,
        base_url="https://control.example",
        raise_server_exceptions=False,
        follow_redirects=False,
        headers={"origin": "https://control.example"},
    )


def is_guarded(answer: httpx2.Response) -> None:
    """An answer's headers keep what is foreign out of it, and it out of what is foreign."""
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert {"frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"} <= set(policy.split("; "))
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"


def test_htmx_is_the_published_file() -> None:
    """Of the package htmx.org 2.0.11: dist/htmx.min.js, and its licence."""
    digest = sha256((CONSOLE / "static/htmx.min.js").read_bytes()).hexdigest()
    assert digest == "d6fdc75f204e6bdefa99b69bf1e6d4ac69b8a364f77929f45c13476b4000f717"
    assert (CONSOLE / "static/htmx.LICENSE").read_text().startswith("Zero-Clause BSD")


def test_a_file_is_kept_for_good_at_the_address_of_its_digest(client: TestClient) -> None:
    for name in assets.TYPES:
        raw = (CONSOLE / "static" / name).read_bytes()
        assert sha256(raw).hexdigest()[:16] in assets.address(name)
        answer = client.get(assets.address(name), headers={"accept-encoding": "gzip, br"})
        assert (answer.status_code, answer.content) == (200, raw)
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert (answer.headers["content-encoding"], answer.headers["vary"]) == ("gzip", "accept-encoding")
        plain = client.get(assets.address(name), headers={"accept-encoding": "gzip;q=0, identity"})
        assert plain.content == raw
        assert "content-encoding" not in plain.headers
        is_guarded(answer)


@pytest.mark.parametrize(
    "path", ["/static/0000000000000000/console.css", "/static/x/y.css", "/static/x/..%2fassets.py"]
)
def test_there_is_no_other_file(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_files_are_small() -> None:
    """What is sent over a slow line: style 12 KB, both scripts 25 KB."""
    zipped = {name: len(gzip.compress((CONSOLE / "static" / name).read_bytes())) for name in assets.TYPES}
    assert zipped["console.css"] <= 12 * 1024
    assert zipped["console.js"] + zipped["htmx.min.js"] <= 25 * 1024


def test_a_browser_gets_errors_as_pages_and_others_as_problems(client: TestClient) -> None:
    answer = client.get("/nowhere", headers=BROWSER)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "<code>no_such_path</code>" in answer.text
    is_guarded(answer)
    assert client.get("/nowhere").json()["code"] == "no_such_path"
    for path in ("/v1/nowhere", "/v1/poll"):
        answer = client.get(path, headers=BROWSER)
        assert answer.headers["content-type"] == "application/problem+json", path
    answer = client.get("/theme", headers=BROWSER)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert "<code>method_not_allowed</code>" in answer.text


def test_a_path_is_no_markup(client: TestClient) -> None:
    answer = client.get("/nowhere?<script>alert(1)</script>&\"'><img src=x>", headers=BROWSER)
    assert "<script>alert" not in answer.text
    assert "<img" not in answer.text


def test_the_theme_is_the_servers_word(client: TestClient) -> None:
    answer = client.post("/theme", data={"theme": "dark", "back": "/nodes?group=a"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/nodes?group=a")
    (cookie,) = answer.headers.get_list("set-cookie")
    assert cookie.startswith("skerry-theme=dark; Path=/;")
    assert '<html lang="en" data-theme="dark">' in client.get("/nowhere", headers=BROWSER).text
    client.post("/theme", data={"theme": "next"})
    assert '<html lang="en">' in client.get("/nowhere", headers=BROWSER).text
    assert '<html lang="en">' in client.get("/x", headers={**BROWSER, "cookie": 'skerry-theme="><script>"'}).text
    assert client.post("/theme", data={"theme": "<b>"}).status_code == 422
    assert client.post("/theme", json={}).status_code == 415


def test_a_theme_of_another_site_and_an_address_that_leads_away(client: TestClient) -> None:
    answer = client.post("/theme", data={"theme": "dark"}, headers={"origin": "https://evil.example"})
    assert answer.status_code == 403
    assert "<code>form_refused</code>" in answer.text
    for back in ("//evil.example", "https://evil.example", "/\\evil.example", "/a\r\nx: y", ""):
        assert client.post("/theme", data={"theme": "dark", "back": back}).headers["location"] == "/", back


def test_templates_have_no_script_and_no_style_in_them() -> None:
    """The policy forbids it, so it would do nothing; and nothing is put into a page unescaped."""
    for path in (CONSOLE / "templates").iterdir():
        text = path.read_text()
        assert not re.search(r"\sstyle=|<style|\son[a-z]+=|hx-on|javascript:|\|\s*safe\b|autoescape", text), path
        assert not re.search(r"<script(?! src=\"\{\{ asset)", text), path
        assert not re.search(r"(https?:)?//(?!www\.w3\.org)[a-z]", text), path
        for form in re.findall(r"<form[^>]*method=\"post\".*?</form>", text, re.DOTALL):
            assert "form_fields(" in form, path


def values() -> list[tuple[str, Any]]:
    now = datetime(2026, 11, 28, 12, tzinfo=UTC)
    return [
        (formats.num(10000), "10,000"),
        (formats.num(None), "\u2013"),
        (formats.share(58, 1000), "5.8 %"),
        (formats.share(1, 100000), "1"),
        (formats.share(0, 10), "0 %"),
        (formats.share(0, 0), "\u2013"),
        (formats.rate(18400.0), "18.4 k"),
        (formats.size(412_000_000), "412 MB"),
        (formats.size(999), "999 B"),
        (formats.size(None), "\u2013"),
        (formats.duration(0.0413), "41.3 ms"),
        (formats.duration(6.4), "6.4 s"),
        (formats.duration(200), "3 min"),
        (formats.relative(59.9), "59 s"),
        (formats.relative(7199), "119 min"),
        (formats.relative(172800), "2 d"),
        (formats.plural(1, "node"), "1 node"),
        (formats.cut("x" * 301), "x" * 299 + "\u2026"),
        (
            str(formats.ago(now - timedelta(minutes=14), now)),
            '<time datetime="2026-11-28T11:46:00+00:00" title="2026-11-28 11:46:00 UTC" data-ago>14 min ago</time>',
        ),
        (str(formats.ago(now - timedelta(seconds=0.9), now)).partition(" data-ago")[2], ">now</time>"),
        (str(formats.ago(now + timedelta(seconds=0.5), now)).partition(" data-ago")[2], ">now</time>"),
        (str(formats.ago(now + timedelta(seconds=1), now)).partition(" data-ago")[2], ">in 1 s</time>"),
        (
            str(formats.clock(now.astimezone(timezone(timedelta(hours=9))))),
            '<time datetime="2026-11-28T12:00:00.000+00:00">2026-11-28 12:00:00 UTC</time>',
        ),
        (str(formats.sha('"><b>')), '<code class="sha" title="&#34;&gt;&lt;b&gt;">&#34;&gt;&lt;b&gt;</code>'),
    ]


@pytest.mark.parametrize(("written", "expected"), values())
def test_how_values_are_written(written: str, expected: str) -> None:
    assert written == expected


def test_each_code_of_an_error_has_its_page() -> None:
    told = explanations.explanations()
    assert told.keys() == problems.CODES.keys() | errors.CODES.keys()
    for code, page in told.items():
        assert "<em>Cure:</em>" in page, code
    # Pages of the docs aren't the console's.
    assert {link.split("/")[1] for page in told.values() for link in re.findall('href="([^"]*)"', page)} == {"errors"}
    assert '<a href="/errors/history_mismatch"><code>history_mismatch</code></a>' in "".join(told.values())
