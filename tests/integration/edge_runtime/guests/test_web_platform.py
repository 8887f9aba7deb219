"""JavaScript's engine beside the web platform's own tests (tests/guests/wpt): how many of each area pass.

The files are those that Debian's source package of Node.js has in test/fixtures/wpt, unchanged, with their licence.
"""

import re
from collections import Counter
from pathlib import Path

import orjson
import pytest

from edge_runtime.guests.guest import CallLimits, CallServices, Request
from tests.guests.build import ROOT
from tests.integration.edge_runtime.guests.test_javascript import made, script
from tests.support.functions import loading

pytestmark = pytest.mark.timeout(600)

WPT = ROOT / "tests" / "guests" / "wpt"
HARNESS = WPT / "resources" / "testharness.js"
META = re.compile(r"^// META: script=(\S+)", re.MULTILINE)
FILES = [path.relative_to(WPT).as_posix() for path in sorted(WPT.rglob("*.any.js"))]
PAGE = ROOT / "docs" / "javascript.md"
FAILING = {
    "WebCryptoAPI/sign_verify/hmac.https.any.js": 8,
    "dom/abort/event.any.js": 1,
    "dom/events/Event-isTrusted.any.js": 1,
    "dom/events/EventTarget-removeEventListener.any.js": 1,
    "encoding/encodeInto.any.js": 55,
    "encoding/streams/decode-attributes.any.js": 1,
    "encoding/streams/decode-non-utf8.any.js": 7,
    "encoding/textdecoder-copy.any.js": 1,
    "encoding/textdecoder-labels.any.js": 190,
    "encoding/textdecoder-streaming.any.js": 16,
    "encoding/textencoder-constructor-non-utf.any.js": 35,
    "html/webappapis/structured-clone/structured-clone.any.js": 1,
    "url/url-constructor.any.js": 10,
    "url/url-setters.any.js": 11,
    "url/urlsearchparams-delete.any.js": 2,
}
"""How many tests of a file fail, where any do: by what isn't there (docs/javascript.md), and in url by ada, which
follows a newer text of the standard than these files."""


def asked(name: str) -> bytes:
    """What the function needs to run a file: its scripts, and the files of its folder."""
    path = WPT / name
    text = path.read_text("utf-8")
    more = [WPT / given[1:] if given.startswith("/") else path.parent / given for given in META.findall(text)]
    scripts = [each.read_text("utf-8") for each in (HARNESS, *more)]
    folders = [path.parent / "resources", WPT / "fetch" / "data-urls" / "resources"]
    files = {each.name: each.read_text("utf-8") for folder in folders for each in folder.glob("*.json")}
    return orjson.dumps({"scripts": [*scripts, text], "files": files})


async def test_the_files_pass_as_the_docs_say(tmp_path: Path) -> None:
    wasm = await made(tmp_path / "project", script())
    passed, failed, failing, told = Counter[str](), Counter[str](), {}, {}
    with loading(tmp_path, abi="direct") as load:
        loaded = load(wasm, CallLimits(memory_pages=2048))
        for name in FILES:
            answer = loaded.call(Request("POST", "/scripts", body=asked(name)), CallServices())
            assert answer.status == 200, (name, answer.log)
            found = orjson.loads(answer.body)
            area = name.partition("/")[0]
            passed[area] += found["passed"]
            failed[area] += len(found["failed"])
            if found["failed"] or found["status"]:
                failing[name], told[name] = len(found["failed"]) or -1, found["failed"][:5]
    assert failing == FAILING, told
    page = PAGE.read_text("utf-8")
    for area in passed:
        assert f"| {area} | {passed[area]:,} of {passed[area] + failed[area]:,} |" in page, (passed, failed)
