"""The C library under the checks that only clang has: its tests with ASan and UBSan, libFuzzer at its frame boundary,
and static analysis. All run in processes of their own, outside the fence; `just test-native` and `just faults` have
them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_runtime.native import library
from tests.support import native_build

SECONDS = int(os.environ.get("SKERRY_TEST_FUZZ_SECONDS", "0"))
pytestmark = [
    pytest.mark.skipif(not SECONDS, reason="`just test-native` runs the C library under clang's checks"),
    pytest.mark.skipif(bool(native_build.missing("clang-19")), reason=native_build.missing("clang-19")),
    pytest.mark.timeout(2400),
]
LOOP = Path(__file__).resolve().parents[1] / "integration" / "edge_runtime"
FUZZ_RUNS = 2_000_000


@pytest.mark.skipif(bool(library.unusable()), reason=f"the C library isn't used: {library.unusable()}")
@pytest.mark.parametrize(
    "tests",
    [
        "native/test_generated_in_c.py", "native/test_wasi_in_c.py", "native/test_environment_in_c.py",
        "native/test_same_as_python.py", "children/test_plain_calls.py", "children/test_sql_in_c.py",
    ],
)  # fmt: skip
def test_the_loops_tests_pass_with_asan_and_ubsan(tmp_path: Path, tests: str) -> None:
    environment = native_build.sanitized(tmp_path / "built")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", str(LOOP / tests)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-8000:]
    assert "passed" in ran.stdout
    assert "skipped" not in ran.stdout


def test_asan_watches_the_library(tmp_path: Path) -> None:
    """It is loaded, and a write behind the end of what the library has allocated ends the process."""
    environment = native_build.sanitized(tmp_path / "built")
    program = (
        "from pathlib import Path; from edge_runtime.native import library; import os\n"
        "library.BUILT = Path(os.environ['SKERRY_TEST_NATIVE']); opened = library.opened()\n"
        "loop = opened.skerry_loop_new(library.ffi.new('Setup *')); opened.skerry_loop_free(loop)\n"
        "opened.skerry_loop_give(loop, b'x', 1)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert ran.returncode != 0
    assert "heap-use-after-free" in ran.stderr
    assert library.LIBRARY in ran.stderr


def test_no_input_from_the_front_or_a_guest_breaks_it(tmp_path: Path) -> None:
    """What breaks it is printed as hex, a line for tests/native/corpus.hex, which each later run begins with."""
    native_build.fuzzer(tmp_path / "fuzz")
    corpus, found = tmp_path / "corpus", tmp_path / "found"
    corpus.mkdir()
    found.mkdir()
    for number, line in enumerate(native_build.CORPUS.read_text().split()):
        (corpus / str(number)).write_bytes(bytes.fromhex(line))
    limits = [f"-max_total_time={SECONDS}", f"-runs={FUZZ_RUNS}", "-seed=1", "-max_len=4096", "-timeout=60"]
    ran = subprocess.run(
        [tmp_path / "fuzz", *limits, f"-artifact_prefix={found}/", corpus], capture_output=True, text=True
    )
    inputs = [path.read_bytes().hex() for path in found.iterdir()]
    assert ran.returncode == 0, f"{ran.stderr[-6000:]}\ninputs:\n" + "\n".join(inputs)
    assert "DONE" in ran.stderr


@pytest.mark.skipif(bool(native_build.missing("clang-tidy-19")), reason=native_build.missing("clang-tidy-19"))
def test_static_analysis_finds_nothing() -> None:
    ran = native_build.analyzed()
    assert ran.returncode == 0, ran.stdout
