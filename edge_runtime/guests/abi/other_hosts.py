"""Which other host a module was made for, and what to do to run such a program on a node. Pure.

Toolchains for JavaScript, Python and browsers build modules that need their own host around them. They are recognized
by the names of their imports and exports, a component or a text by its bytes.
"""

import codecs
import re
from dataclasses import dataclass

from edge_runtime.guests.abi.binary import Shape

LANGUAGES = "TypeScript, JavaScript, C, Rust, Zig, Go and AssemblyScript"
"""The languages of `skerry function new`."""
JAVASCRIPT = (
    "For JavaScript and TypeScript, `skerry function new NAME --lang ts` (or js) makes a project, with an engine that "
    "nodes run: move the program's sources there."
)
PYTHON = f"Nodes don't run Python: write the function in another language ({LANGUAGES}), `skerry function new NAME`."
_OTHER = "`skerry function new NAME` makes a project that nodes can run."
_TEXT = 4096
"""Bytes by which a text is recognized."""


@dataclass(frozen=True)
class _Host:
    what: str
    """What such a module is, as in «It is …»."""
    cure: str
    imports: str = ""
    """A regular expression for the beginning of `module.name(parameters)` of one of its imports."""
    exports: str = ""
    """A regular expression for the beginning of the name of one of its exports. A module with `_start` isn't judged by
    its exports: nodes can run it."""


_HOSTS = (
    _Host("a JavaScript program built by Javy", JAVASCRIPT, r"javy[-_]", r"(initialize|compile)[-_](runtime|src)$"),
    _Host("StarlingMonkey, the engine in which componentize-js runs JavaScript", JAVASCRIPT, exports=r"coreabi_"),
    _Host("a CPython interpreter (such as Pyodide)", PYTHON, exports=r"_?Py[A-Z_]"),
    _Host(
        "made by wasm-bindgen for a JavaScript host: a browser, Node.js or Cloudflare Workers",
        "Build a program with a `main` for wasm32-wasip1, without wasm-bindgen; `skerry function new NAME --lang rust` "
        f"makes such a project. {JAVASCRIPT}",
        r"__wbindgen_|wbg\.|[^(]*_bg\.js|[^(]*\.__(wbindgen|wbg)_",
        r"__(wbindgen|wbg)_",
    ),
    _Host(
        "a Go program for a JavaScript host",
        "Build it with GOOS=wasip1 GOARCH=wasm (TinyGo: -target=wasip1); `skerry function new NAME --lang go` makes "
        "such a project.",
        r"gojs\.|go\.(runtime|syscall)",
    ),
    _Host(
        "an AssemblyScript program for a JavaScript host",
        "Build it as the project of `skerry function new NAME --lang assemblyscript` is built, with "
        "`--exportStart _start --use abort=skerry/abort`.",
        r"env\.abort\(iiii\)",
    ),
    _Host("an add-on for Node.js", _OTHER, r"env\.napi_"),
    _Host(
        "made by Emscripten for a JavaScript host",
        "Build a program with a `main` for WASI preview 1; `skerry function new NAME --lang c` makes such a project.",
        r"env\.(_?emscripten_|__syscall_|invoke_[a-z]+\(|_embind_|_emval_|__cxa_)|GOT\.(mem|func)\.",
    ),
    _Host("made for Fastly Compute", f"{_OTHER} {JAVASCRIPT}", r"fastly_|env\.xqd_"),
    _Host("made for Spin", f"{_OTHER} {JAVASCRIPT}", r"(fermyon:)?spin\b", r"handle-http-request$|spin-sdk-"),
    _Host("made for WASIX, which Wasmer runs", "Build it for WASI preview 1.", r"wasix_"),
)
_EMSCRIPTEN = next(host for host in _HOSTS if "Emscripten" in host.what)
_MINIFIED = re.compile(r"a\.[\w$]{1,2}\(")
"""Emscripten's imports if it has shortened their names."""


def recognized(shape: Shape) -> str:
    """Return which host's module this is, and what to do; '' if it isn't known."""
    imports = [f"{each.module}.{each.name}({each.signature[0] if each.signature else ''})" for each in shape.imports]
    exports = [] if "_start" in shape.exports else list(shape.exports)
    for host in _HOSTS:
        if _any(host.imports, imports) or _any(host.exports, exports):
            return _told(host)
    if imports and exports and all(map(_MINIFIED.match, imports)):
        return _told(_EMSCRIPTEN)
    return ""


def component(wasm: bytes) -> str:
    """Return what a component was made of, and what to do instead."""
    for marks, what, cure in (
        ((b"componentize-py", b"libpython"), "a Python program", PYTHON),
        ((b"StarlingMonkey", b"componentize-js", b"componentize-qjs"), "a JavaScript program", JAVASCRIPT),
    ):
        if any(mark in wasm for mark in marks):
            return f"It is {what} as a component (component model), which WasmEdge can't run. {cure}"
    return (
        "It is a component (component model), which WasmEdge can't run: build a core module for WASI preview 1, "
        f"as with the target wasm32-wasip1. {JAVASCRIPT}"
    )


def text(wasm: bytes) -> str:
    """Return what to do with a text that isn't a module; '' if the bytes aren't text."""
    try:
        # Not final, since the last character may be cut.
        begin, _ = codecs.utf_8_decode(wasm[:_TEXT], "strict", False)
    except UnicodeDecodeError:
        return ""
    if not begin.strip() or "\0" in begin:
        return ""
    if begin.lstrip().startswith("(module"):
        return "It is a module in WebAssembly's text format: make a binary of it, as `wat2wasm` does."
    return (
        "It is a text and no WebAssembly module: the source of a program has to be built first. "
        f"`skerry function new NAME` makes a project with all that is needed for it, in {LANGUAGES}. "
        "Nodes don't run Python."
    )


def _any(pattern: str, names: list[str]) -> bool:
    return bool(pattern) and any(re.match(pattern, name) for name in names)


def _told(host: _Host) -> str:
    return f"It is {host.what}, and nodes aren't such a host. {host.cure}"
