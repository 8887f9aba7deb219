"""`skerry-edge call`: one call of a module without a server, as the command."""

import orjson
import pytest
from click.testing import CliRunner

from edge_runtime.cli.main import main
from tests.guests.build import guest
from tests.integration.edge_runtime.cli.test_call_sql import writer


@pytest.mark.parametrize("how", [(), ("--interpret",)])
async def test_a_call_is_answered(call, tmp_path, how):
    done = await call(guest("echo"), "--body", "hé\n", *how)
    assert done.status == 0, done.err
    head, _, body = done.out.partition(b"\n\n")
    assert body == "hé\n".encode()
    assert head.startswith(b"200 OK\n")
    # Compiled once, for its user alone; nothing where it is interpreted.
    compiled = list(tmp_path.glob("cache/skerry/aot/*.so"))
    assert len(compiled) == (0 if how else 1)
    assert all(file.stat().st_mode & 0o077 == 0 for file in (*compiled, *tmp_path.glob("cache/skerry/aot")))


async def test_a_header_is_read_as_its_standard_says(call):
    """With any space behind the colon, or none, as WAGI's own examples write it."""
    body = "Status: 200\nContent-Type:text/plain\nX-Empty:\nX-Wide: \t a:b \nX-A:1\nX-A: 2\n\nhi"
    headers = [["Content-Type", "text/plain"], ["X-Empty", ""], ["X-Wide", "a:b"], ["X-A", "1"], ["X-A", "2"]]
    done = await call(guest("raw"), "--body", body, "--json")
    assert (done.status, done.json()["headers"]) == (0, headers), done.err
    done = await call(guest("raw"), "--body", body)
    lines = "".join(f"{name}: {value}\n" for name, value in headers)
    assert (done.status, done.out.decode()) == (0, f"200 OK\n{lines}\nhi")


async def test_the_request_is_what_the_options_say(call, tmp_path):
    (tmp_path / "body").write_bytes(b"\0\xff")
    given = ["--method", "put", "--path", "/a%20b?x=1&y", "--header", "X-One: 1", "--header", "X-Two:é"]
    done = await call(guest("env"), *given, "--body-file", tmp_path / "body", "--config", "MODE=test=1", "--json")
    told = done.json()
    assert told["status"] == 200
    assert set(told["body"].splitlines()) >= {
        "REQUEST_METHOD=PUT", "PATH_INFO=/a b", "QUERY_STRING=x=1&y", "HTTP_X_ONE=1", "HTTP_X_TWO=é", "MODE=test=1",
        "CONTENT_LENGTH=2",
    }  # fmt: skip
    assert told["seconds"] > 0
    echoed = await call(guest("echo"), "--body-file", tmp_path / "body", "--json")
    assert echoed.json()["body"] == {"$blob": "AP8="}


async def test_a_call_by_its_route_is_as_on_a_node(call, tmp_path):
    manifest = tmp_path / "function.toml"
    manifest.write_text(
        'name = "till"\nmodule = "f.wasm"\n[manifest]\nroute = { path = "/orders/{id}/{rest...}", methods = ["GET"] }\n'
    )
    done = await call(guest("env"), "--manifest", manifest, "--route", "/orders/a%20b/lines/1?x=1")
    assert set(done.out.decode().splitlines()) >= {
        "SCRIPT_NAME=/orders", "PATH_INFO=/a b/lines/1", "X_MATCHED_ROUTE=/orders/{id}/{rest...}", "PATH_PARAM_ID=a b",
        "PATH_PARAM_REST=lines/1", "QUERY_STRING=x=1",
    }  # fmt: skip
    for given, told in (
        (("--route", "/order/7"), "GET /orders/{id}/{rest...}, doesn't take GET /order/7"),
        (("--route", "/orders/7/", "--method", "PUT"), "doesn't take PUT"),
        (("--route", "/orders/7/", "--path", "/x"), "one or the other"),
    ):
        done = await call(guest("env"), "--manifest", manifest, *given)
        assert (done.status, told in done.err) == (2, True), done
    done = await call(guest("env"), "--route", "/orders/7/")
    assert "the manifest has no route" in done.err


async def test_a_call_by_a_route_for_hosts_names_one_of_them(call, tmp_path):
    manifest = tmp_path / "function.toml"
    route = 'route = { path = "/orders/{id}", hosts = ["shop.example", "*.shop.example"] }'
    manifest.write_text(f'name = "till"\nmodule = "f.wasm"\n[manifest]\n{route}\n')
    for given, host in (
        (("--route", "http://www.shop.example:8080/orders/7?x=1"), "www.shop.example:8080"),
        (("--route", "/orders/7?x=1", "--header", "Host: Shop.example"), "Shop.example"),
    ):
        done = await call(guest("env"), "--manifest", manifest, *given)
        assert set(done.out.decode().splitlines()) >= {f"HTTP_HOST={host}", "PATH_PARAM_ID=7", "QUERY_STRING=x=1"}
    for given, told in (
        (("--route", "/orders/7"), "for shop.example, *.shop.example, and the request for localhost: give a URL"),
        (("--route", "http://other.example/orders/7"), "and the request for other.example"),
        (("--route", "http://shop.example/x"), "doesn't take GET /x"),
        (("--route", "http://shop.example/orders/7", "--header", "Host: x"), "it names its host 2 times"),
        (("--route", "http://a@shop.example/orders/7"), "'a@shop.example' in the URL is no host"),
        (("--path", "http://shop.example/x"), "--path: 'http://shop.example/x' doesn't begin with a slash"),
        (("--route", "shop.example/orders/7"), "--route: 'shop.example/orders/7' is no path, /orders/7, and no URL"),
    ):
        done = await call(guest("env"), "--manifest", manifest, *given)
        assert (done.status, told in done.err.replace("\n", " ")) == (2, True), done


async def test_requests_that_are_not_made_are_told_so(call, tmp_path):
    wanted = ("--body", '{"url":"https://api.example/"}')
    done = await call(guest("fetch"), *wanted)
    assert "Note: HTTP: No request was made" in done.err
    manifest = tmp_path / "manifest.json"
    manifest.write_text("{}")
    done = await call(guest("fetch"), *wanted, "--manifest", manifest)
    assert "Note: HTTP: This function's manifest grants it no HTTP" in done.err


async def test_a_secret_that_is_missing_is_named(call, tmp_path):
    manifest, secrets = tmp_path / "function.toml", tmp_path / "secrets.toml"
    manifest.write_text('name = "till"\nmodule = "f.wasm"\n[manifest]\nsecrets = ["KEY", "OTHER"]\n')
    done = await call(guest("env"), "--manifest", manifest, "--secret", "OTHER=x")
    assert done.status == 1
    assert "the secret KEY, which" in done.err
    assert "--secret KEY=VALUE" in done.err
    assert "[secret_missing]" in done.err
    secrets.write_text('[tll]\nKEY = "opens"\n')
    given = ("--manifest", manifest, "--secret", "OTHER=x", "--secrets", secrets)
    assert "[secrets_unfit]" in (await call(guest("env"), *given)).err
    secrets.chmod(0o600)
    done = await call(guest("env"), *given)
    assert f"put it into {secrets}, in the table [till]" in done.err
    secrets.write_text('[till]\nKEY = "opens"\n')
    done = await call(guest("env"), *given)
    assert {b"KEY=opens", b"OTHER=x"} <= set(done.out.splitlines())
    # Of its project's file it has its name, too.
    assert b"SCRIPT_NAME=/functions/till" in done.out.splitlines()
    assert (await call(guest("env"), "--manifest", manifest, "--secrets", tmp_path / "scerets.toml")).status == 2
    assert not (tmp_path / "scerets.toml").exists()


async def test_no_value_of_a_secret_is_in_what_is_said_of_a_failure(call, tmp_path):
    secret = ("--secret", "KEY=opensesame")
    manifest = tmp_path / "manifest.toml"
    manifest.write_text('entry = "fail"\n')
    done = await call(guest("plugin"), "--manifest", manifest, "--body", "opensesame fails", *secret)
    assert done.status == 1
    assert "[secret KEY] fails" in done.err
    body = '{"sql":"SELECT * FROM opensesame"}'
    asked = await call(guest("sql"), "--sql", ":memory:", "--body", body, *secret)
    assert "no such table: [secret KEY]" in asked.err
    assert "opensesame" not in done.err + asked.err


async def test_an_answer_that_is_an_error_is_the_exit_status_where_that_is_wished(call, database):
    """As curl has it: 0 for any answer, 22 with --fail, which prints no answer."""
    given = ("--method", "POST", "--sql", database)
    for status, phrase in ((404, "Not Found"), (500, "Internal Server Error")):
        done = await call(writer(status), *given)
        assert (done.status, done.out) == (0, f"{status} {phrase}\n\n".encode())
        done = await call(writer(status), *given, "--fail")
        assert (done.status, done.out) == (22, b"")
        assert f"Error: the function answered {status} {phrase}\n" in done.err
    done = await call(writer(500), *given, "--fail", "--json")
    assert (done.status, orjson.loads(done.out)["status"]) == (22, 500)
    assert (await call(writer(200), *given, "--fail")).status == 0
    assert (await call(guest("divide"), "--fail")).status == 1


async def test_what_no_node_would_run_is_refused(call, tmp_path):
    done = await call(b"\0asm\1\0\0\0")
    assert done.status == 1
    assert "memory_missing" in done.err or "abi_unknown" in done.err
    assert (await call(b"")).status == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--path", "orders"], "slash"),
        (["--header", "novalue"], "NAME:VALUE"),
        (["--config", "1=1"], "config"),
        (["--body", "x", "--body-file", "-"], "one or the other"),
        (["--query", "é"], "percent-encoded"),
        (["--time-limit", "1"], "time_limit_ms"),
        (["--query", "?x=1"], "question mark"),
        (["--path", "/a?x=1", "--query", "y=2"], "in the path already"),
        (["--query", "x=a b"], "percent-encoded"),
        (["--header", "a b: c"], "no header"),
        (["--method", "G-T"], "no method"),
        (["--manifest", "LIST"], "no table"),
        (["--manifest", "WORD"], "WORD.toml isn't valid"),
    ],
)
def test_a_wrong_call_is_told(arguments, told, tmp_path):
    files = {"LIST": tmp_path / "LIST.json", "WORD": tmp_path / "WORD.toml"}
    files["LIST"].write_text("[1]")
    files["WORD"].write_text("config = 'word'")
    arguments = [str(files.get(argument, argument)) for argument in arguments]
    done = CliRunner().invoke(main, ["call", __file__, *arguments])
    assert done.exit_code == 2
    assert told in done.output
