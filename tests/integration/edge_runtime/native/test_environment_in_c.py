"""A call's arguments and environment, made in C and in Python: the same for any request that the front sends, whatever
is in it. `SKERRY_TEST_GUESTS` is how many requests are tried."""

import os
import random
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.ipc import request_head
from edge_runtime.native import library
from tests.guests.build import guest
from tests.support.both_ways import both_ways

pytestmark = [
    pytest.mark.never_retry,
    pytest.mark.skipif(bool(library.unusable()), reason=f"the C library isn't used: {library.unusable()}"),
    pytest.mark.timeout(900),
]
COUNT = int(os.environ.get("SKERRY_TEST_GUESTS", "300"))
SEED = os.environ.get("SKERRY_TEST_SEED", "skerry")

NAMES = [
    *(b"accept", b"cookie", b"content-type", b"content-length", b"connection", b"transfer-encoding", b"proxy", b"x_y"),
    *(b"x-y", b"x--1", b"X-Y", b"x.y", b"te", b"accept-encoding", b"\xe9", b"x!"),
]
HOSTS = [b"a.example", b"a.example:1", b"[::1]", b"[::1]:8080", b"a:", b"a:b", b"a:99999999999", b"", b":80"]
TEXT = "abc/%&=+ ;:é\xff._-~!*"


def text(chance: random.Random, most: int = 20) -> str:
    return "".join(
        chance.choice([chance.choice(TEXT), f"%{chance.choice('0123456789aAfF')}{chance.choice('123456789abcdefGX')}"])
        for _ in range(chance.randrange(most))
    )


def request(number: int) -> dict[str, Any]:
    """A request as `encode_head` takes it: all that can come from the front, and some that can't."""
    chance = random.Random(f"{SEED} environment {number}")
    headers = [(b"host", chance.choice(HOSTS))] if chance.random() < 0.9 else []
    for _ in range(chance.choice([0, 1, 3, 10, 100])):
        value = text(chance).encode("latin-1")
        headers.append((chance.choice(NAMES), value))
    chance.shuffle(headers)
    caller = chance.choice(["", "", "till-3", "ställe", "a b~"])
    names = chance.choice([[], ["id"], ["id", "x"], ["a", "b", "c_1"], ["same", "same"]])
    query = "&".join(text(chance) for _ in range(chance.choice([0, 1, 3, 10, 600])))
    return {
        "via": request_head.Via(chance.choice(["http", "https"]), caller, "Bearer" if caller else ""),
        "method": chance.choice(["GET", "POST", "HEAD", "PURGE"]),
        "path": chance.choice(["", "/"]) and "/" + text(chance),
        "query": query.encode("latin-1"),
        "headers": headers,
        "script": chance.choice(["/functions/env", "/a/b", "/"]),
        "route": chance.choice(["", "/a/b/{id}", "/..."]),
        "params": [(name, text(chance)) for name in names],
        "client": chance.choice(["127.0.0.1", "::1", ""]),
    }


def test_any_request_becomes_the_same_environment(tmp_path: Path) -> None:
    config = {"config": {"GREETING": "hällo", "EMPTY": "", "ALSO": "a=b"}}
    functions = {
        "env": (guest("env"), config),
        "odd": (guest("env"), config),
        "direct": (guest("direct"), {"abi": "direct", **config}),
    }
    different = {}
    with both_ways(tmp_path, functions) as run:
        for number in range(COUNT):
            head = request(number)
            body = b"x" * (number % 3)
            # What the library leaves to Python, as it does then with the function's next hundred calls.
            odd = head["query"].count(b"&") > 400 or len({name for name, _ in head["params"]}) < len(head["params"])
            name = "odd" if odd else "env"
            if number % 10 == 9:
                name = "direct"
                variable = random.Random(number).choice(["AUTH_TYPE", "REMOTE_USER", "GREETING", "EMPTY", "NONE"])
                head |= {"path": "/env", "query": f"name={variable}".encode()}
            ours, theirs = run.said(name, body, **head)
            if ours != theirs:
                different[number] = (head, ours, theirs)
    assert not different, (len(different), next(iter(different.items())))
    assert run.by_python["env"] < COUNT * 0.5, "most are the library's"
