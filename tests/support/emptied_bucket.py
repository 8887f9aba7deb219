"""A bucket of the artifact store, emptied by requests that are signed here: botocore takes 3 ms for each."""

import hmac
import http.client
import re
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from hashlib import md5, sha256
from html import unescape
from urllib.parse import quote, unquote, urlsplit

SECONDS = 10.0
"""For which the store may not answer."""
PAGE = 1000
"""Objects or uploads that one answer names."""


def empty(url: str) -> None:
    """Delete all objects and uploads in the bucket ``http://KEY:SECRET@HOST:PORT/BUCKET``, to which nobody writes."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    with closing(kind(parts.hostname or "", parts.port, timeout=SECONDS)) as connection:

        def ask(method: str, path: str, body: str = "", **query: str) -> str:
            headers = {"content-md5": b64encode(md5(body.encode()).digest()).decode()} if body else {}
            connection.request(method, _signed(url, method, path, query), body.encode(), headers)
            answer = connection.getresponse()
            text = answer.read().decode()
            assert answer.status < 300, (method, path, query, answer.status, text)
            return text

        while keys := re.findall("<Key>(.*?)</Key>", ask("GET", parts.path, **{"list-type": "2"}), re.DOTALL):
            # A key is as in the listing, with what XML has escaped.
            objects = "".join(f"<Object><Key>{key}</Key></Object>" for key in keys)
            told = ask("POST", parts.path, f"<Delete><Quiet>true</Quiet>{objects}</Delete>", delete="")
            assert "<Error>" not in told, told
            if len(keys) < PAGE:
                break
        for key, upload in _uploads(ask("GET", parts.path, uploads="")):
            ask("DELETE", f"{parts.path}/{quote(key)}", uploadId=upload)


def _uploads(page: str) -> Iterator[tuple[str, str]]:
    """The keys and ids that a list of uploads names."""
    for upload in re.findall("<Upload>(.*?)</Upload>", page, re.DOTALL):
        key, number = (re.search(f"<{name}>(.*?)</{name}>", upload, re.DOTALL) for name in ("Key", "UploadId"))
        assert key is not None
        assert number is not None
        yield unescape(key[1]), unescape(number[1])


def _signed(url: str, method: str, path: str, query: dict[str, str]) -> str:
    """The target of a request, signed by AWS's version 4 in its query, with a body that isn't signed."""
    parts = urlsplit(url)
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = (now[:8], "us-east-1", "s3", "aws4_request")
    words = {
        **query,
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": "/".join((unquote(parts.username or ""), *scope)),
        "X-Amz-Date": now,
        "X-Amz-Expires": "600",
        "X-Amz-SignedHeaders": "host",
    }
    asked = "&".join(f"{quote(name, '')}={quote(value, '')}" for name, value in sorted(words.items()))
    host = f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname
    request = f"{method}\n{path}\n{asked}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
    text = "\n".join(("AWS4-HMAC-SHA256", now, "/".join(scope), sha256(request.encode()).hexdigest()))
    key = f"AWS4{unquote(parts.password or '')}".encode()
    for word in scope:
        key = hmac.digest(key, word.encode(), "sha256")
    return f"{path}?{asked}&X-Amz-Signature={hmac.digest(key, text.encode(), 'sha256').hex()}"
