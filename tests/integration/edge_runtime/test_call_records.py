"""What a call leaves behind: an id in its answer, its error and each line of its log, and its log even where it is
killed; without the values of secrets."""

import asyncio
import logging
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio

from edge_runtime.dispatch.call import Call
from edge_runtime.ipc import progress_page
from edge_runtime.ipc.request_head import encode_head
from edge_runtime.logs import JsonLines
from edge_runtime.redaction import RedactedRecord
from edge_runtime.telemetry import ring, search
from edge_runtime.telemetry.search import LineFilter
from tests.guests.build import guest, wat
from tests.support.edge import Node, node, until

MADE = re.compile(r"[0-9a-f]{8}-[0-9]+")
PLAIN = b"Content-Type: text/plain\n\n."
KEY = "sk_live_0123456789abcdef"


def writer(pieces: list[bytes], end: str) -> bytes:
    """A guest that writes these to stderr, one after the other, and then ends as `end`, in WAT, says."""
    data, at, writes = [], 1000, []
    for piece in pieces:
        text = "".join(f"\\{byte:02x}" for byte in piece)
        data.append(f'(data (i32.const {at}) "{text}")')
        writes.append(
            f"(i32.store (i32.const 100) (i32.const {at})) (i32.store (i32.const 104) (i32.const {len(piece)}))"
            "(drop (call $write (i32.const 2) (i32.const 100) (i32.const 1) (i32.const 200)))"
        )
        at += len(piece)
    return wat(f"""
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
  (memory (export "memory") 1)
  {" ".join(data)}
  (func $deep (call $deep) (drop (call $yield)))
  (func (export "_start") {" ".join(writes)} {end}))
""")


LONG = {"time_limit_ms": 60_000}
"""Of what loops: its time is over where a test says so (`ended`)."""
LOOP = "(loop $again (br $again))"
HOSTILE = b"\x1b[2Jred\x00 \xff\xfe end\nERROR skerry: forged\n"
FUNCTIONS: dict[str, Any] = {
    "raw": guest("raw"),
    "seer": (guest("raw"), {"trace_headers": True}),
    "env": guest("env"),
    "env-seer": (guest("env"), {"trace_headers": True}),
    "stuck": (writer([b"where it ", b"hangs\n", HOSTILE], LOOP), LONG),
    "flood": (writer([b"line %06d\n" % n for n in range(2500)], LOOP), {**LONG, "log_bytes": 1 << 20}),
    "deep": writer([b"before the overflow\n"], "(call $deep)"),
    "slow": (writer([b"waits\n"], LOOP), LONG),
    "split": (writer([KEY[:10].encode(), KEY[10:].encode(), b" is all\n"], "unreachable"), {"secrets": ["API_KEY"]}),
    "leak": (guest("raw"), {"secrets": ["API_KEY"]}),
    "leak-stuck": (
        writer([b"key ", KEY.encode(), b"\nhalf " + KEY[:12].encode()], LOOP),
        {**LONG, "secrets": ["API_KEY"]},
    ),
    "levels": (guest("plugin"), {"abi": "extism"}),
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def edge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    path = tmp_path_factory.mktemp("records") / "state"
    path.mkdir(mode=0o700)
    secrets = path / "secrets.toml"
    secrets.touch(0o600)
    tables = "".join(f'[{name}]\nAPI_KEY = "{KEY}"\n' for name in ("split", "leak", "leak-stuck"))
    secrets.write_text(tables)
    async with node(path) as made:
        await made.release(FUNCTIONS)
        logging.setLogRecordFactory(RedactedRecord)
        yield made
        logging.setLogRecordFactory(logging.LogRecord)


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def lines(
    edge: Node, at_least: int = 1, *, kind: str = "log", call: str = "", **more: Any
) -> list[dict[str, Any]]:
    """The lines of the ring, functions' unless `kind` says otherwise, once there are so many."""
    folder = edge.state.path / ring.FOLDER
    wanted = LineFilter(kinds=(kind,), calls=(call,) if call else (), **more)
    await until(lambda: len(search.search(folder, wanted, 5000).lines) >= at_least)
    return [orjson.loads(line) for line in search.search(folder, wanted, 5000).lines]


async def ended(edge: Node, name: str, log: bytes) -> tuple[int, Any, bytes]:
    """What is answered to a call of what loops whose time is over once its log ends so, however long that takes."""
    waiting = asyncio.create_task(edge.call(name))

    def logged() -> list[Call]:
        running = [link for link in edge.busy() if link.seen().request == link.jobs[0].id]
        return [link.jobs[0] for link in running if progress_page.log(link._page, link.child.slot).endswith(log)]

    await until(logged)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(logged()[0].served, "limit", 0.0)
        return await waiting


async def test_a_call_s_id_is_in_its_answer_and_in_each_line(edge: Node, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    status, headers, _ = await edge.call("raw?log=one%0Atwo", PLAIN)
    assert status == 200
    made = headers["x-request-id"]
    assert MADE.fullmatch(made)
    found = await lines(edge, 2, call=made)
    shape = {"kind": "log", "level": "info", "function": "raw", "version": 1, "release": 1, "call": made}
    assert [{**line, "t": ""} for line in found] == [{"t": "", **shape, "message": text} for text in ("one", "two")]
    record = next(r for r in caplog.records if r.getMessage() == f"raw 1 {made}: one")
    told = orjson.loads(JsonLines().format(record))
    assert {name: told.get(name) for name in shape if name != "kind"} == {n: v for n, v in shape.items() if n != "kind"}


@pytest.mark.parametrize("given", ["a", "0af7651916cd43dd8448eb211c80319c", "A.b_C-9", "x" * 128])
async def test_the_client_s_id_is_taken(edge: Node, given: str) -> None:
    for path in ("raw?log=x", "raw?exit=3"):
        _, headers, body = await edge.call(path, PLAIN, headers={"X-Request-Id": given})
        assert headers["x-request-id"] == given
        if headers["content-type"] == "application/problem+json":
            assert orjson.loads(body)["call"] == given
            assert headers["skerry-release"] == "1"
    assert "x" in [line["message"] for line in await lines(edge, call=given)]


@pytest.mark.parametrize("given", ["", " ", "x" * 129, "a b", "a;b", "é", "a,b", '"a"'])
async def test_an_id_that_is_none_is_not_taken(edge: Node, given: str) -> None:
    _, headers, _ = await edge.call("raw", PLAIN, headers={"X-Request-Id": given})
    assert MADE.fullmatch(headers["x-request-id"])


async def test_each_refusal_has_an_id(edge: Node) -> None:
    ids = []
    for path, status, release in (
        ("/functions/none", 404, "1"),
        ("/nowhere", 404, None),
        ("/_skerry/none", 404, None),
        ("/functions/raw?exit=1", 502, "1"),
        ("/functions/raw/%00", 400, "1"),
    ):
        async with edge.http.get(path, headers={"X-Request-Id": "mine"}) as answer:
            assert answer.status == status
            assert (await answer.json(content_type=None))["call"] == answer.headers["x-request-id"] == "mine"
            assert answer.headers.get("skerry-release") == release
    for request in (b"GARBAGE\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET /a HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"):
        reader, writing = await asyncio.open_connection("127.0.0.1", edge.front.port)
        writing.write(request)
        answer = await reader.read()
        writing.close()
        assert answer.startswith(b"HTTP/1.1 400 ")
        head, _, body = answer.partition(b"\r\n\r\n")
        (found,) = re.findall(rb"x-request-id: (\S+)", head)
        assert MADE.fullmatch(found.decode())
        assert orjson.loads(body)["call"] == found.decode()
        ids.append(found)
    assert len(set(ids)) == 3
    async with edge.http.get("/_skerry/healthz") as answer:
        assert MADE.fullmatch(answer.headers["x-request-id"])


async def test_a_function_s_own_id_gives_way(edge: Node) -> None:
    body = b"X-Request-Id: forged\nx-request-id: twice\nContent-Type: text/plain\n\n."
    status, headers, _ = await edge.call("raw", body, headers={"X-Request-Id": "mine"})
    assert (status, headers.getall("x-request-id")) == (200, ["mine"])


async def test_guests_see_ids_if_their_manifests_ask_for_them(edge: Node) -> None:
    given = {"X-Request-Id": "mine", "Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    _, _, body = await edge.call("env", headers=given)
    assert b"REQUEST_ID" not in body
    assert b"TRACEPARENT" not in body
    _, _, body = await edge.call("env-seer", headers=given)
    assert b"HTTP_X_REQUEST_ID=mine\n" in body
    assert b"HTTP_TRACEPARENT=%b\n" % given["Traceparent"].encode() in body
    # Where the client sent none, or one that isn't taken, it is the node's.
    for headers in ({}, {"X-Request-Id": "not one"}):
        _, answered, body = await edge.call("env-seer", headers=headers)
        assert b"HTTP_X_REQUEST_ID=%b\n" % answered["x-request-id"].encode() in body


async def test_calls_with_other_ids_share_a_head(edge: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = set()

    def noted(*request: Any) -> bytes:
        head = encode_head(*request)
        heads.add(head)
        return head

    monkeypatch.setattr("edge_runtime.dispatch.pool.encode_head", noted)
    for number in range(5):
        more = {"X-Request-Id": f"r{number}", "traceparent": f"00-{number:032x}-{number:016x}-01"}
        assert (await edge.call("raw", PLAIN, headers=more))[0] == 200
    assert len(heads) == 1


async def test_the_log_of_a_call_that_is_ended_is_kept(edge: Node, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    _, headers, body = await ended(edge, "stuck", b"forged\n")
    told = orjson.loads(body)
    assert (told["code"], headers["skerry-release"]) == ("time_limit", "1")
    found = await lines(edge, 3, call=headers["x-request-id"])
    assert [line["message"] for line in found] == [
        "where it hangs",
        "\x1b[2Jred\x00 \ufffd\ufffd end",
        "ERROR skerry: forged",
    ]
    (told,) = await lines(edge, call=headers["x-request-id"], kind="node")
    assert "time_limit" in told["message"]
    assert told["function"] == "stuck"


async def test_the_end_of_a_long_log_is_kept(edge: Node) -> None:
    _, headers, _ = await ended(edge, "flood", b"line 002499\n")
    texts: list[str] = []
    # They come to the disk piece by piece.
    while texts[-1:] != ["line 002499"]:
        found = await lines(edge, len(texts) + 1, call=headers["x-request-id"])
        texts = [line["message"] for line in found]
    assert texts[1:] == [f"line {n:06d}" for n in range(2501 - len(texts), 2500)]
    assert 1300 < len(texts) < 1400
    # Each of the lines before has 12 bytes.
    assert texts[0] == f"[skerry: {12 * (2501 - len(texts))} bytes of this log were left out here]"


async def test_the_log_of_a_call_whose_worker_dies_is_kept(edge: Node) -> None:
    _, headers, body = await edge.call("deep")
    assert orjson.loads(body)["code"] == "worker_crashed"
    assert (await lines(edge, call=headers["x-request-id"], kind="log"))[0]["message"] == "before the overflow"
    waiting = asyncio.create_task(edge.call("slow", headers={"X-Request-Id": "killed"}))
    await until(edge.busy)
    link = edge.busy()[0]
    await until(lambda: link.seen().request == link.jobs[0].id)
    await until(lambda: progress_page.log(link._page, link.child.slot) == b"waits\n")
    os.kill(link.child.pid, signal.SIGKILL)
    assert orjson.loads((await waiting)[2])["code"] == "worker_crashed"
    assert (await lines(edge, call="killed", kind="log"))[0]["message"] == "waits"


async def test_a_killed_call_s_log_is_no_other_s(edge: Node) -> None:
    for _ in range(3):
        assert (await edge.call("raw?log=mine", PLAIN, headers={"X-Request-Id": "before"}))[0] == 200
    _, headers, _ = await ended(edge, "stuck", b"forged\n")
    assert "mine" not in [line["message"] for line in await lines(edge, 3, call=headers["x-request-id"])]
    assert [x["message"] for x in await lines(edge, 3, call="before")] == ["mine"] * 3


async def test_levels_are_those_of_the_log_functions(edge: Node) -> None:
    _, headers, _ = await edge.call("levels/logs")
    found = await lines(edge, 8, call=headers["x-request-id"])
    assert [(line["level"], line["message"]) for line in found] == [
        *[("debug", "one"), ("debug", "two"), ("info", "three"), ("warning", "four"), ("error", "0")],
        *[("info", ""), ("info", "stdout"), ("info", "stderr")],
    ]
    _, headers, _ = await edge.call("raw?log=%3C3%3Efailed%0A%3Cb%3E%0A%3C4%3E", PLAIN)
    found = await lines(edge, 3, call=headers["x-request-id"])
    assert [(line["level"], line["message"]) for line in found] == [
        ("error", "failed"),
        ("info", "<b>"),
        ("warning", ""),
    ]
    assert len(await lines(edge, call=headers["x-request-id"], level="error")) == 1


async def test_no_value_of_a_secret_is_logged_or_answered(edge: Node, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    _, headers, _ = await edge.call("split")
    found = await lines(edge, call=headers["x-request-id"])
    assert found[0]["message"] == "[secret API_KEY] is all"
    _, headers, _ = await edge.call(f"leak?log={KEY}%20and%20{KEY}", PLAIN)
    assert (await lines(edge, call=headers["x-request-id"]))[0]["message"] == "[secret API_KEY] and [secret API_KEY]"
    # In an error's text, which has some of what the guest wrote.
    status, headers, body = await edge.call("leak", f"{KEY}\n\nx".encode())
    assert status == 502
    assert KEY.encode() not in body
    assert b"[secret API_KEY]" in body
    assert "[secret API_KEY]" in (await lines(edge, call=headers["x-request-id"], kind="node"))[0]["message"]
    _, headers, _ = await ended(edge, "leak-stuck", KEY[:12].encode())
    found = await lines(edge, 2, call=headers["x-request-id"], kind="log")
    assert [line["message"] for line in found] == ["key [secret API_KEY]", "half [secret API_KEY]"]
    # In a path, as where a client has it in its URL: of a call that failed there is a record.
    status, headers, _ = await edge.call(f"leak/{KEY}?exit=3", PLAIN)
    found = await lines(edge, call=headers["x-request-id"], kind="call")
    assert (status, found[0]["path"]) == (502, "/functions/leak/[secret API_KEY]")
    logging.getLogger("skerry.test").warning("the front's own: %s", KEY)
    await until(edge.front.ring.mark())
    assert KEY not in caplog.text
    folder = edge.state.path / ring.FOLDER
    assert all(KEY.encode() not in path.read_bytes() for path in folder.iterdir())


async def test_the_node_s_own_warnings_are_there_too(edge: Node) -> None:
    logging.getLogger("skerry.test").warning("something of the node's: %s", 7)
    await asyncio.to_thread(logging.getLogger("skerry.test").error, "from a thread")
    logging.getLogger("skerry.test").info("not this")
    folder = edge.state.path / ring.FOLDER
    await until(lambda: b"from a thread" in b"".join(search.search(folder, LineFilter(kinds=("node",))).lines))
    texts = [(line["level"], line["message"]) for line in await lines(edge, kind="node")]
    assert ("warning", "something of the node's: 7") in texts
    assert ("error", "from a thread") in texts
    assert not any("not this" in text for _, text in texts)


async def test_a_node_serves_where_its_records_cannot_be_written(tmp_path: Path, caplog: Any) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    (state / ring.FOLDER).write_text("a file is in the way")
    async with node(state) as made:
        await made.release({"raw": guest("raw")})
        for _ in range(20):
            assert (await made.call("raw?log=hello", PLAIN))[0] == 200
        await until(lambda: made.front.ring.trouble)
        async with made.http.get("/_skerry/status") as answer:
            assert (await answer.json())["records"]["error"]
        async with made.http.get("/_skerry/metrics") as answer:
            assert "skerry_edge_records_failing 1.0" in await answer.text()
        (state / ring.FOLDER).unlink()
        await until(lambda: not made.front.ring.trouble)
        assert (await made.call("raw?log=again", PLAIN, headers={"X-Request-Id": "later"}))[0] == 200
        assert (await lines(made, call="later"))[0]["message"] == "again"
    assert "can't be written" in caplog.text
