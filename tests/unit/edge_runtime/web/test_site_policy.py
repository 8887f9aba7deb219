"""Which requests of web pages are taken: the rule by itself, over whatever a browser may say."""

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from control.protocol.manifest import Cors, Manifest
from edge_runtime.web import site_policy
from edge_runtime.web.site_policy import PageRequest, PageRule

OWN = b"http://localhost:8087"
ORIGINS = st.sampled_from(
    [b"http://localhost:8087", b"http://localhost", b"https://localhost:8087", b"https://a.example", b"null", b"*", b""]
)
SITES = st.none() | st.sampled_from([b"same-origin", b"same-site", b"cross-site", b"none", b"", b"x"])
METHODS = st.sampled_from(["GET", "HEAD", "POST", "DELETE"])
LISTED = st.lists(st.sampled_from(["https://a.example", "https://b.example:1", "null"]), min_size=1, max_size=3)
CORS = st.builds(
    Cors,
    origins=st.just(["*"]) | LISTED,
    methods=st.lists(METHODS, min_size=1).map(tuple),
    credentials=st.booleans(),
)
RULES = st.builds(Manifest, cors=st.none() | CORS, navigation=st.booleans())
ASKED = st.builds(
    PageRequest,
    METHODS,
    st.none() | ORIGINS,
    preflight=st.booleans(),
    mode=st.sampled_from([b"", b"navigate", b"no-cors", b"cors"]),
    destination=st.sampled_from([b"", b"document", b"iframe", b"image"]),
)


@given(SITES, st.none() | ORIGINS)
def test_only_a_browser_can_be_foreign(site: bytes | None, origin: bytes | None) -> None:
    foreign = site_policy.foreign(site, origin, OWN)
    if site is None:
        assert foreign is (origin is not None and origin != OWN)
    else:
        assert foreign is (site not in (b"same-origin", b"none"))


@given(ASKED, RULES)
@example(PageRequest("GET", None, mode=b"navigate", destination=b"document"), Manifest(navigation=True))
def test_a_foreign_page_may_what_the_manifest_says_and_nothing_else(asked: PageRequest, manifest: Manifest) -> None:
    denied = site_policy.denied(asked, PageRule(manifest), OWN)
    cors = manifest.cors
    named = (
        cors is not None and asked.origin is not None and ("*" in cors.origins or asked.origin.decode() in cors.origins)
    )
    by_cors = named and cors is not None and (asked.preflight or asked.method in cors.methods)
    opens = (asked.mode, asked.destination) == (b"navigate", b"document") and asked.method in ("GET", "HEAD")
    by_link = manifest.navigation and opens and asked.origin is None
    assert (denied is None) is (by_cors or by_link)
    if denied is not None:
        assert denied.code == ("cross_site_refused" if asked.origin is None else "origin_refused")
        assert denied.message.endswith(".")


@given(ASKED)
def test_without_a_rule_no_foreign_page_may_anything(asked: PageRequest) -> None:
    assert site_policy.denied(asked, None, OWN) is not None


@given(CORS, st.sampled_from([b"https://a.example", b"https://b.example:1", b"null"]))
def test_a_page_is_told_what_its_browser_looks_for(cors: Cors, origin: bytes) -> None:
    rule = PageRule(Manifest(cors=cors))
    if not rule.shares(origin):
        return
    for lines in (rule.lines(origin), rule.preflight(origin)):
        told = [line.partition(": ") for line in lines.decode().split("\r\n") if line]
        assert lines.endswith(b"\r\n")
        assert len({name for name, _, _ in told}) == len(told)
        headers = {name: value for name, _, value in told}
        every = cors.origins == ["*"]
        assert headers["access-control-allow-origin"] == ("*" if every else origin.decode())
        # Caches keep answers for different origins apart, unless they are the same.
        assert headers.get("vary", "").startswith("origin") is not every
        assert ("access-control-allow-credentials" in headers) is (cors.credentials and not every)
        assert ("access-control-allow-methods" in headers) is (lines == rule.preflight(origin))


LINES = st.lists(
    st.sampled_from(
        [
            b"Access-Control-Allow-Origin: *\r\n",
            b"access-control-allow-credentials: true\r\n",
            b"Access-Control-Allow-Methods: PUT\r\n",
            b"content-type: text/plain\r\n",
            b"vary: accept\r\n",
        ]
    ),
    max_size=5,
)


@given(LINES, st.booleans())
def test_a_functions_own_word_on_who_may_read_it_does_not_count(lines: list[bytes], foreign: bool) -> None:
    rule = PageRule(Manifest(cors=Cors(["https://a.example"])))
    ours = rule.lines(b"https://a.example") if foreign else rule.always
    kept = [line for line in lines if not (foreign and line.lower().startswith(site_policy._OURS))]
    assert site_policy.merged(b"".join(lines), ours) == b"".join(kept) + ours


def test_rules_are_kept_of_those_functions_that_have_some() -> None:
    manifests = {"a": Manifest(), "b": Manifest(navigation=True), "c": Manifest(cors=Cors(["*"]))}
    assert list(site_policy.rules(manifests)) == ["b", "c"]
    stored = msgspec.to_builtins(manifests["c"])
    assert stored == {"cors": {"origins": ["*"]}}
