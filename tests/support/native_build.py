"""The C library with its own tests (tests/native), built by Zig's compiler or by clang."""

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

from edge_runtime.native import library
from scripts import compile_native

SOURCES = Path(__file__).resolve().parents[1] / "native"
CORPUS = SOURCES / "corpus.hex"
CLANG = "clang-19"
CHECKS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
_STRICT = [flag for flag in compile_native.FLAGS if flag.startswith("-W")]
_COMMON = ("-std=c11", "-g", "-O1", "-fno-omit-frame-pointer", f"-I{library.FOLDER}")


def _library() -> list[Path]:
    return sorted(library.FOLDER.glob("*.c"))


def c_tests(made: Path, target: str) -> None:
    """Build the tests with the library, linked with all that they need, by Zig's compiler."""
    static = ["-static"] if "musl" in target else []
    flags = ["-std=c11", "-O1", "-g", *static, f"-I{library.FOLDER}", *_STRICT, "-Wno-missing-field-initializers"]
    compile_native.zig("cc", "-target", target, *flags, *sorted(SOURCES.glob("*.c")), *_library(), "-o", made)


def fuzzer(made: Path) -> None:
    """Build the driver with libFuzzer, ASan and UBSan."""
    driver = [path for path in sorted(SOURCES.glob("*.c")) if path.name not in ("main.c", "cases.c")]
    clang(*_COMMON, "-fsanitize=fuzzer", *CHECKS, *driver, *_library(), "-o", made)


def sanitized(folder: Path) -> dict[str, str]:
    """Build the library with ASan and UBSan into `folder`, with all that `library` wants to find there; return the
    variables of the environment of a process that loads it.

    The engine's functions are called by types of ours, so that check is left out.
    """
    folder.mkdir()
    made = folder / library.LIBRARY
    clang(
        *_COMMON, *CHECKS, "-fno-sanitize=function", "-shared-libasan", "-shared", "-fPIC", *_library(), "-o", made
    )  # fmt: skip
    shutil.copyfile(library.BUILT / library.OUTER, folder / library.OUTER)
    (folder / library.STAMP).write_text(json.dumps(library.stamp_of(folder)))
    runtime = clang(f"-print-file-name=libclang_rt.asan-{platform.machine()}.so").strip()
    # What guests' traps are made of is WasmEdge's, and Python frees little at its end.
    options = "detect_leaks=0:handle_segv=0:handle_sigbus=0:handle_sigfpe=0:allow_user_segv_handler=1"
    return {
        **os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": options, "SKERRY_TEST_NATIVE": str(folder),
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }  # fmt: skip


def analyzed() -> subprocess.CompletedProcess[str]:
    """What clang-tidy says of the library, by the rules of tests/native/.clang-tidy."""
    files = _library()
    command = ["clang-tidy-19", f"--config-file={SOURCES / '.clang-tidy'}", "--quiet", *map(str, files)]
    return subprocess.run([*command, "--", "-std=c11", f"-I{library.FOLDER}"], capture_output=True, text=True)


def clang(*arguments: str | Path) -> str:
    """Run clang; return what it prints."""
    ran = subprocess.run([CLANG, *map(str, arguments)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def missing(program: str) -> str:
    """Why a test that needs a program is skipped; empty where it is there."""
    return "" if shutil.which(program) else f"{program} isn't installed; `scripts/native-tools` installs it"
