"""What must not leave the machine where a function is built is found in a memory, and nothing else is."""

import pytest

from edge_runtime.oneshot.leaks import guarded, leaked

ENVIRONMENT = {
    "API_KEY": "k3y-of-the-shop",
    "DATABASE": "postgres://me:hunter2@db.example/x",
    "STRIPE_TOKENS": "tokentoken",
    "DEPLOYMENT": "three-monkeys",
    "USER": "developer",
    "HOME": "/home/developer",
    "NODE_ENV": "production",
    "TERM": "xterm-256color",
    "PATH": "/usr/local/bin:/usr/bin",
    "LC_ALL": "en_US.UTF-8",
    "SHORT_TOKEN": "a1b2c3d",
}


@pytest.mark.parametrize(
    ("memory", "what"),
    [
        ("", ""),
        ("xxk3y-of-the-shopxx", "the value of the variable API_KEY"),
        ("postgres://me:hunter2@db.example/xyz", "the value of the variable DATABASE"),
        ("tokentokentoken", "the value of the variable STRIPE_TOKENS"),
        ("the tokentoke", ""),
        ("a three-monkeys.", "the value of the variable DEPLOYMENT"),
        ("a three-monkeys-house", ""),
        ("by developer", "your name as a user"),
        ("by developers", ""),
        ("by web-developer", ""),
        ("/home/developer/x.c", "the path of your home folder"),
        ("/home/developer2/x.c", ""),
        ("in production on xterm-256color with en_US.UTF-8 /usr/local/bin:/usr/bin", ""),
        ("a1b2c3d", ""),
        ("(/srv/code/shop)", "the path of the project's folder"),
        ("/srv/code/shop-2", ""),
        ("host buildbox-17.", "this machine's name"),
        ("[secret of the function]", "the secret SIGNING"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_a_value_is_found_where_it_counts(memory: str, what: str, encoding: str) -> None:
    values = list(guarded(ENVIRONMENT, {"SIGNING": "secret of the function"}, "/srv/code/shop", "buildbox-17", ()))
    found = leaked(b"\0\0" + memory.encode(encoding) + b"\0\0", values)
    assert (found.what if found else "") == what


def test_an_allowed_value_may_be_there() -> None:
    allowed = ["API_KEY", "USER", "HOME", "PROJECT", "HOST", "SIGNING"]
    memory = b"k3y-of-the-shop developer /home/developer /srv/code/shop buildbox-17 secret of it three-monkeys"
    secrets = {"SIGNING": "secret of it"}
    values = list(guarded(ENVIRONMENT, secrets, "/srv/code/shop", "buildbox-17", allowed))
    found = leaked(memory, values)
    assert found
    assert found.name == "DEPLOYMENT"
    assert leaked(memory, [each for each in values if each.name != "DEPLOYMENT"]) is None


def test_a_machine_without_a_name_of_its_own() -> None:
    assert leaked(b"http://localhost/", list(guarded({}, {}, "/srv/code/shop", "localhost", ()))) is None


def test_a_value_that_is_no_utf_8() -> None:
    values = list(guarded({"API_KEY": "caf\udce9-caf\udce9"}, {}, "", "", ()))
    assert leaked(b"x caf\xe9-caf\xe9", values)
