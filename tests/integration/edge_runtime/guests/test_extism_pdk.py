"""A plug-in built by an official PDK: AssemblyScript's, the one that a registry of packages has with its compiler.

What the other PDKs build was checked by hand: docs/adr/0014-extism.md.
"""

import subprocess

import pytest

from edge_runtime.guests.guest import GuestFault, Request
from edge_runtime.oneshot.check import check_module
from tests.guests.build import HERE
from tests.support.functions import function
from tests.support.projects import NPM

PACKAGES = NPM.parent


@pytest.fixture(scope="module", params=["-O", "--runtime=stub --exportStart=_initialize"], ids=["start", "_initialize"])
def wasm(request, tmp_path_factory):
    if not (NPM / "asc").exists() or not (PACKAGES / "@extism" / "as-pdk").exists():
        pytest.skip("AssemblyScript and @extism/as-pdk aren't installed: just toolchains")
    made = tmp_path_factory.mktemp("asc") / "plugin.wasm"
    command = [NPM / "asc", "plugin.ts", "--outFile", made, "--path", PACKAGES, "--use", "abort=plugin/abort"]
    ran = subprocess.run([*command, *request.param.split()], cwd=HERE, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return made.read_bytes()


def test_a_plugin_by_the_official_pdk(wasm, tmp_path):
    found = check_module(wasm)
    assert found["abi"] == "extism"
    loaded = function(wasm, tmp_path, config={"thing": "config"}, abi="extism")

    def call(name, body=b""):
        return loaded.call(Request("POST", f"/{name}", body=body))

    for size in (0, 5, 8, 100_003):
        body = (b"aeiou bcd\x00\xff" * 10_000)[:size]
        assert call("echo", body).body == body
    assert call("count_vowels", "hello, wörld EIO".encode()).body == b'{"count":5,"begun":7}'
    answer = call("everything")
    assert (answer.body, answer.log) == (b"config, this is var a", b"<4>a warning\n")
    with pytest.raises(GuestFault, match="returned 3"):
        call("fail")
    loaded.close()
