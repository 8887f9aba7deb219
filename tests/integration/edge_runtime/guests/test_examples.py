"""The examples: their manifests, schemas and sources are good, and what is prebuilt is what the source gives."""

import sqlite3

import msgspec
import orjson
import pytest

from control.protocol.manifest import Manifest
from edge_runtime.guests.guest import CallLimits, CallServices, Request
from edge_runtime.oneshot.check import check_module
from edge_runtime.sql import database
from edge_runtime.sql.call_sql import CallSql, Session
from edge_runtime.sql.queries import load
from tests.guests.build import EXAMPLES, example
from tests.support.functions import function

NAMES = ["hello", "visits"]


def manifest(name):
    return msgspec.json.decode((EXAMPLES / name / "manifest.json").read_bytes(), type=Manifest)


def statements(script):
    """SQLite says where each ends."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    assert not statement.strip()


@pytest.fixture
def call(tmp_path):
    """Calls an example on a database with its schema, each call a transaction of its own as a worker makes it."""
    opened = {}

    def called(name, request):
        if name not in opened:
            folder = tmp_path / name
            folder.mkdir()
            file = database.connect(folder / "skerry.db")
            for statement in statements((EXAMPLES / name / "schema.sql").read_text()):
                file.rows(statement)
            file.rows(load("write_release"), ("r", 1, "7", database.now()))
            asked = manifest(name)
            limits = CallLimits(asked.memory_pages, asked.response_limit)
            opened[name] = file, Session(file), function(example(name), folder, limits, asked.config, name)
        _, session, loaded = opened[name]
        sql = CallSql(session, manifest(name).sql, 7)
        response = loaded.call(request, CallServices(sql))
        sql.commit()
        return response.status, orjson.loads(response.body)

    yield called
    for file, _, loaded in opened.values():
        loaded.close()
        file.close()


@pytest.mark.parametrize("name", NAMES)
def test_the_prebuilt_module_is_its_sources(name):
    prebuilt = (EXAMPLES / name / f"{name}.wasm").read_bytes()
    assert prebuilt == example(name), "build it again: just guests"


@pytest.mark.parametrize("name", NAMES)
def test_nodes_can_run_it_with_its_manifest(name):
    asked = manifest(name)
    found = check_module(example(name), pages_limit=asked.memory_pages)
    assert found["abi"] == asked.abi
    assert found["sql"] == (asked.sql != "none")


@pytest.mark.parametrize("name", NAMES)
def test_its_probe_passes(call, name):
    probe = manifest(name).probe
    assert probe is not None
    assert call(name, Request(probe.method, probe.path, body=probe.body.encode()))[0] == probe.status


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "Hello, world!"),
        ("name=Ada", "Hello, Ada!"),
        ("name=Ada&language=de", "Hallo, Ada!"),
        ("language=ja&name=%E3%82%A8%E3%82%A4%E3%83%80", "こんにちは, エイダ!"),
        ("name=%22quo%5Cte%22%0A%01", 'Hello, "quo\\te"\n\x01!'),
        ("name=a+b%2", "Hello, a b%2!"),
        ("surname=x&name=", "Hello, !"),
    ],
)
def test_hello(call, query, message):
    status, answer = call("hello", Request("GET", "/", query))
    assert (status, answer["message"]) == (200, message)


def test_hello_in_an_unknown_language(call):
    assert call("hello", Request("GET", "/", "language=xx")) == (404, {"error": "no greeting", "language": "xx"})


def test_hello_is_cut_where_its_room_ends(call):
    status, answer = call("hello", Request("GET", "/", "name=" + "x" * 1000))
    assert (status, answer["message"]) == (200, f"Hello, {'x' * 255}!")


def test_visits(call):
    for count in (1, 2, 3):
        assert call("visits", Request("POST", "/ada")) == (200, {"name": "ada", "count": count})
    assert call("visits", Request("GET", "/ada")) == (200, {"name": "ada", "count": 3})
    assert call("visits", Request("GET", '/"x"')) == (200, {"name": '"x"', "count": 0})
    assert call("visits", Request("POST", "/"))[0] == 404
    assert call("visits", Request("POST", "/" + "x" * 300))[0] == 404


class Answer:
    def __init__(self, answer):
        self.answer = answer

    def execute(self, _request):
        return self.answer


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (b'"Hi"', "Hi"),
        (b'"a\\"b\\\\c\\n\\t\\/"', 'a"b\\c\n\t/'),
        (b'"\\u00e9\\u3042\\ud83d\\ude00"', "éあ😀"),
        ('"éあ😀"'.encode(), "éあ😀"),
        (b"-12.5e3", "-12.5e3"),
        (b'"[1,2]},"', "[1,2]},"),
    ],
)
def test_cells_in_c(tmp_path, cell, text):
    """skerry.h reads every kind of cell that an answer can have, whatever stands before it."""
    hello = function(example("hello"), tmp_path)
    answer = b'{"columns":["text"],"rows":[[' + cell + b',{"$blob":"aGk="}],["x"]],"changes":0,"last_id":null}'
    response = hello.call(Request("GET"), CallServices(Answer(answer)))
    assert orjson.loads(response.body)["message"] == f"{text}, world!"


@pytest.mark.parametrize(
    "answer", [b'{"error":{"code":"x","message":"\\"rows\\":[[1]]"}}', b'{"columns":[],"rows":[]}']
)
def test_no_cell_in_c(tmp_path, answer):
    response = function(example("hello"), tmp_path).call(Request("GET"), CallServices(Answer(answer)))
    assert response.status == (500 if b"error" in answer else 404)
