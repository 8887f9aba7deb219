"""Functions of the ABI `direct` on a real node: from a client's bytes to the guest, and back."""

import asyncio
from pathlib import Path

import orjson

from tests.guests.build import guest
from tests.support.edge import node

ITEMS = "CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT, price REAL); INSERT INTO items VALUES (7, 'oil', 2.5);"
ECHO = (guest("direct_echo"), {"abi": "direct"})
ALL = (guest("direct"), {"abi": "direct", "config": {"GREETING": "ü"}})
QUERY = (guest("query"), {"abi": "direct", "sql": "read"})


async def test_a_request_goes_in_and_an_answer_comes_out(tmp_path: Path) -> None:
    async with node(tmp_path / "state") as edge:
        await edge.release({"echo": ECHO, "all": ALL, "query": QUERY}, [ITEMS])
        for size in (0, 1, 256, 100_000, 3_000_000):
            body = bytes(i * 7 % 256 for i in range(size % 1000)) + bytes(size - size % 1000)
            status, headers, answer = await edge.call("echo", body)
            assert (status, answer) == (200, body)
            assert headers["content-type"] == "application/octet-stream"
            assert headers["content-length"] == str(size)
        status, _, answer = await edge.call("all/echo?x=%20", method="PUT", headers={"X-Thing": "7"})
        lines = answer.decode().splitlines()
        assert status == 200
        for line in ("method PUT", "path /echo", "query x=%20", "script /functions/all", "x-thing 7"):
            assert line in lines
        assert (await edge.call("all/env?name=GREETING"))[2] == "ü".encode()
        assert (await edge.call("query?id=7", b"x"))[2] == b'[["oil",2.5]]'
        assert (await edge.call("query?id=8"))[2] == b"[]"
        assert (await edge.call("query?id=x"))[0] == 400
        assert orjson.loads((await edge.call("all/sql", b'{"sql":"SELECT 1"}'))[2])["error"]["code"] == "not_granted"
        assert await edge.problem("all/trap") == (502, "guest_trap")
        assert await edge.problem("all/exit?code=3") == (502, "guest_exit")
        assert await edge.problem("all/status?code=99") == (502, "guest_response_invalid")


async def test_what_is_kept_of_a_call_is_not_given_to_another(tmp_path: Path) -> None:
    """Calls whose heads are the same, differ a little, or are those of another release."""
    async with node(tmp_path / "state") as edge:
        await edge.release({"echo": ECHO, "all": ALL})

        some = asyncio.Semaphore(16)

        async def one(number: int) -> None:
            async with some:
                await checked(number)

        async def checked(number: int) -> None:
            body = b"%d" % (number * 12_345 % 99_991)
            if number % 3:
                assert (await edge.call("echo", body))[2] == body
            else:
                said = (await edge.call("all/echo", headers={"X-Thing": str(number % 5)}))[2]
                assert b"\nx-thing %d\n" % (number % 5) in said

        await asyncio.gather(*[one(number) for number in range(400)])
        await edge.release({"echo": ALL, "all": ECHO}, version=2)
        assert (await edge.call("echo", b"same"))[0] == 404
        assert (await edge.call("all/echo", b"same"))[2] == b"same"
