"""The law of the house: which part of the program may import which, held by reading the source.

Every import counts: at the top of a module, inside a function, and under TYPE_CHECKING.
"""

import ast
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.statements import statements

ROOT = Path(__file__).parents[3]
Graph = dict[str, set[str]]
"""Each module of ours, and the modules that it imports: ours by their full names, others by their first two parts."""

SHARED = "control.protocol"
"""What both packages import: messages, the manifest, findings and so on. It imports nothing else of ours."""

# What each folder may import of its own package, beside itself and the modules at the package's top; `edge_runtime` is
# what the package does when it is imported: it has compiled modules found.
LAW: dict[str, set[str]] = {
    "control.protocol": set(),
    "control.storage": set(),
    "control.sync": {"storage"},
    "control.access": {"storage", "sync"},
    "control.telemetry": {"storage", "sync"},
    "control.rollouts": {"storage", "sync", "telemetry"},
    "control.backups": {"access", "storage", "sync", "telemetry"},
    "control.api": {"access", "backups", "rollouts", "storage", "sync", "telemetry"},
    "control.local": set(),
    "control.console": {"access", "api", "backups", "rollouts", "storage", "sync", "telemetry"},
    "control.web": {"access", "api", "backups", "console", "rollouts", "storage", "sync", "telemetry"},
    "control.cli": {"access", "api", "backups", "console", "local", "rollouts", "storage", "sync", "telemetry", "web"},
    "edge_runtime": {"built"},
    "edge_runtime.built": {"native"},
    "edge_runtime.ipc": set(),
    "edge_runtime.native": set(),
    "edge_runtime.sandbox": set(),
    "edge_runtime.wasmedge": set(),
    "edge_runtime.sql": {"ipc"},
    "edge_runtime.guests": {"ipc", "native", "wasmedge"},
    "edge_runtime.backup": {"ipc", "sql", "sync"},
    "edge_runtime.children": {"backup", "guests", "ipc", "native", "sandbox", "sql", "wasmedge"},
    "edge_runtime.oneshot": {"children", "egress", "guests", "ipc", "sandbox", "sql", "telemetry", "wasmedge", "web"},
    "edge_runtime.telemetry": {"ipc"},
    "edge_runtime.sync": {"ipc", "telemetry"},
    "edge_runtime.dispatch": {"ipc", "telemetry"},
    "edge_runtime.web": {"dispatch", "ipc", "telemetry"},
    "edge_runtime.egress": {"dispatch", "ipc", "telemetry"},
    "edge_runtime.schedules": {"dispatch", "ipc", "telemetry"},
    "edge_runtime.release": {"backup", "dispatch", "ipc", "telemetry"},
    "edge_runtime.cli": {
        *("built", "children", "dispatch", "egress", "guests", "ipc", "oneshot", "release"),
        *("sandbox", "sql", "sync", "telemetry", "wasmedge", "web"),
    },
}
# Modules at a package's top that put its folders together: they import folders, and no folder but `cli` imports them.
ABOVE = {"edge_runtime.front", "edge_runtime.metrics", "edge_runtime.node_health", "edge_runtime.status"}

FRONT = (
    "edge_runtime.web",
    "edge_runtime.dispatch",
    "edge_runtime.egress",
    "edge_runtime.release",
    "edge_runtime.schedules",
    "edge_runtime.telemetry",
    "edge_runtime.front",
)
"""The process on the network. It maps neither WasmEdge nor libsql, and parses nothing that others made."""
BEHIND = (
    *("edge_runtime.sql", "edge_runtime.children", "edge_runtime.guests", "edge_runtime.wasmedge"),
    *("libsql_experimental", "apsw"),
)
"""What the front imports neither itself nor through others."""

PURE = (
    *(
        "control.audit_chain",
        "control.protocol.cron",
        "control.protocol.manifest",
        "control.protocol.ticks",
        "control.manifest_rules",
        "control.protocol.wire",
        "control.problems",
    ),
    *("control.protocol.histogram", "control.protocol.findings"),
    *("control.sync.plan", "control.sync.requirements", "control.sync.standing", "control.storage.owner_mark"),
    *("control.rollouts.policy", "control.rollouts.rules"),
    *("control.backups.objects", "control.backups.chain", "control.backups.retention"),
    "edge_runtime.backup.upload_rules",
    *("edge_runtime.dispatch.breaker", "edge_runtime.sync.plan_check", "edge_runtime.sync.retries"),
    *("edge_runtime.sync.known_engines", "edge_runtime.code_section"),
    "edge_runtime.schedules.tick_rules",
    *("edge_runtime.web.routes", "edge_runtime.web.site_policy", "edge_runtime.disk_space"),
    *("edge_runtime.token_bucket", "edge_runtime.cli.doctor.running_node"),
    *("edge_runtime.ipc.request_head", "edge_runtime.ipc.http_messages", "edge_runtime.guests.http_json"),
    *("edge_runtime.sql.allowed_names", "edge_runtime.sql.schema_change", "edge_runtime.sql.tokenizer"),
    *("edge_runtime.sql.values", "edge_runtime.oneshot.change_effects", "edge_runtime.oneshot.leaks"),
    "edge_runtime.guests.abi.snapshot",
)
"""Rules over values: what they decide can be tested without anything that runs."""
IO = {
    *("asyncio", "io", "mmap", "os", "pathlib", "select", "selectors", "shutil", "signal", "socket", "sqlite3", "ssl"),
    *("subprocess", "tempfile", "threading", "aiohttp", "asyncpg", "aioboto3", "libsql_experimental"),
    *("cffi", "_cffi_backend", "apsw"),
}


def name_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, known: Iterable[str]) -> set[str]:
    """What the source imports: of `from a import b` the module a.b where there is one, else a."""
    found: set[str] = set()
    tree = ast.parse(source)
    # Calls are looked for where there may be one.
    nodes = ast.walk(tree) if "import_module" in source or "__import__" in source else statements(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute: one form to search for"
            assert node.module
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in full}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            found |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return found


def read(root: Path) -> Graph:
    paths = {name_of(p, root): p for package in ("control", "edge_runtime") for p in (root / package).rglob("*.py")}
    return {name: imported(path.read_text(), paths) for name, path in paths.items()}


def within(name: str, packages: Iterable[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def folder(name: str) -> str:
    """`edge_runtime.guests` of `edge_runtime.guests.abi.wagi`; a module at the top stands for itself."""
    return ".".join(name.split(".")[:2])


def broken(graph: Graph) -> list[str]:
    """The imports that the table doesn't allow."""
    found = []
    for module, imports in graph.items():
        package, mine = module.split(".")[0], folder(module)
        for name in sorted(imports):
            other = folder(name)
            if name.split(".")[0] not in ("control", "edge_runtime") or other == mine:
                continue
            if mine == SHARED:
                allowed = False
            elif other == SHARED:
                allowed = True
            elif not within(name, [package]):
                allowed = False
            elif other in LAW:
                allowed = mine in ABOVE or other.split(".")[1] in LAW.get(mine, set())
            else:
                allowed = other not in ABOVE or mine in ABOVE or mine.endswith(".cli")
            if not allowed:
                found.append(f"{module} imports {name}")
    return found


def reached(graph: Graph, module: str) -> dict[str, str]:
    """Everything that a module imports, through others too, each with the module that imports it."""
    found: dict[str, str] = {}
    todo = [module]
    while todo:
        one = todo.pop()
        for name in graph.get(one, ()):
            # Its packages are imported with it.
            for part in (".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 2)):
                if part not in found:
                    found[part] = one
                    todo.append(part)
    return found


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, if there are any."""
    try:
        TopologicalSorter({m: {n for n in names if n in graph and n != m} for m, names in graph.items()}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def folders(graph: Graph) -> Graph:
    found: Graph = {}
    for module, imports in graph.items():
        ours = {folder(n) for n in imports if n.split(".")[0] in ("control", "edge_runtime") and "." in n}
        found.setdefault(folder(module), set()).update(ours)
    return found


def impure(graph: Graph) -> list[str]:
    # How modules are found isn't what they do.
    graph = {**graph, "edge_runtime": set()}
    return [
        f"{module} reaches {name} through {by}"
        for module in PURE
        for name, by in reached(graph, module).items()
        if name.split(".")[0] in IO
    ]


def behind(graph: Graph) -> list[str]:
    return [
        f"{module} reaches {name} through {by}"
        for module in graph
        if within(module, FRONT)
        for name, by in reached(graph, module).items()
        if within(name, BEHIND)
    ]


@pytest.fixture(scope="module")
def graph() -> Graph:
    return read(ROOT)


def test_each_folder_imports_what_the_table_allows(graph):
    assert broken(graph) == []


def is_package(name: str) -> bool:
    """A folder without it may be left of a checkout's earlier commit."""
    return (ROOT / name.replace(".", "/") / "__init__.py").is_file()


def test_the_table_has_each_folder(graph):
    there = {folder(name) for name in graph if is_package(name)}
    assert there - {"control"} == set(LAW)


def test_the_front_reaches_nothing_that_runs_guests_or_opens_the_database(graph):
    assert behind(graph) == []


def test_nothing_imports_in_a_circle(graph):
    assert circle(graph) == []
    assert circle(folders(graph)) == []


def test_the_rules_do_no_input_or_output(graph):
    assert set(PURE) <= set(graph)
    assert impure(graph) == []


def test_control_runs_no_guest_and_opens_no_libsql_database(graph):
    native = ("cffi", "_cffi_backend", "libsql_experimental", "libsql", "wasmtime")
    assert [m for m, names in graph.items() if within(m, ["control"]) and any(within(n, native) for n in names)] == []


def test_no_part_of_a_node_has_pythons_own_sqlite(graph):
    """It has the WAL-reset bug on Debian 13 (docs/adr/0071)."""
    assert [m for m, names in graph.items() if within(m, ["edge_runtime"]) and "sqlite3" in names] == []


def test_each_package_says_what_it_is(graph):
    for package in filter(is_package, graph):
        about = ast.get_docstring(ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text())) or ""
        assert len(about) > 60, f"{package}/__init__.py says what the package is and where to start reading"


def letters_apart(one: str, other: str) -> bool:
    """Whether a letter put in, taken out or changed makes one of the other."""
    short, long = sorted((one, other), key=len)
    if len(long) - len(short) > 1 or short == long:
        return False
    at = next((i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    return short[at + (len(short) == len(long)) :] == long[at + 1 :]


def test_no_two_modules_have_nearly_the_same_name(graph):
    """But a command's, which has the name of its verb, and two standards that are called so."""
    for package in ("control", "edge_runtime"):
        modules = (n for n in graph if within(n, [package]) and not is_package(n))
        names = sorted({n.rpartition(".")[2] for n in modules if n.rpartition(".")[0] != f"{package}.cli"})
        pairs = [(a, b) for a in names for b in names if a < b and letters_apart(a, b)]
        assert [pair for pair in pairs if pair != ("wagi", "wasi")] == []


def classes(root: Path) -> dict[str, list[str]]:
    """The modules that have a class of each name, of both packages together."""
    found: dict[str, list[str]] = {}
    for path in sorted(p for package in ("control", "edge_runtime") for p in (root / package).rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(name_of(path, root))
    return found


def test_no_two_classes_have_one_name():
    assert {name: where for name, where in classes(ROOT).items() if len(where) > 1} == {}


# The test of the test: a small house in which each rule is broken once.


def house(root: Path, **more: str) -> Graph:
    """A checkout with a module in each folder, and these texts in modules (`edge_runtime__sql__call` and so on)."""
    files = {f"{name}.m.py": "" for name in (*LAW, *ABOVE, *PURE)}
    for name in files:
        path = root / (name.removesuffix(".py").replace(".", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    for name, text in more.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return read(root)


LAZY = "def f():\n    from {} import {}\n"
TYPED = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from {} import {}\n"


def test_a_sound_house_passes(tmp_path):
    made = house(
        tmp_path,
        edge_runtime__web__m="from edge_runtime.dispatch import m\nfrom control.protocol import m\n",
        control__storage__m="from control.protocol import m\n",
    )
    assert (broken(made), behind(made), circle(made), impure(made)) == ([], [], [], [])


@pytest.mark.parametrize("form", ["from {} import {}\n", "import {}.{}\n", LAZY, TYPED])
@pytest.mark.parametrize(
    ("module", "package", "name"),
    [
        ("edge_runtime__web__m", "edge_runtime.sql", "m"),
        ("edge_runtime__ipc__m", "edge_runtime.dispatch", "m"),
        ("control__storage__m", "control.sync", "m"),
        ("control__sync__m", "control.web", "m"),
        ("control__api__m", "edge_runtime.ipc", "m"),
        ("edge_runtime__sync__m", "control.storage", "m"),
        ("control__protocol__m", "control.api", "m"),
        ("control__protocol__m", "control.problems", "m"),
        ("edge_runtime__web__m", "edge_runtime.front", "m"),
    ],
)
def test_a_broken_law_is_found(tmp_path, module, package, name, form):
    made = house(tmp_path, **{module: form.format(package, name)})
    assert broken(made) == [f"{module.replace('__', '.')} imports {package}.{name}"]


def test_the_front_is_found_to_reach_through_others(tmp_path):
    made = house(
        tmp_path,
        edge_runtime__web__m="from edge_runtime.ipc import m\n",
        edge_runtime__ipc__m=LAZY.format("edge_runtime.children", "m"),
    )
    assert "edge_runtime.web.m reaches edge_runtime.children.m through edge_runtime.ipc.m" in behind(made)


def test_a_circle_is_found(tmp_path):
    made = house(
        tmp_path,
        edge_runtime__web__a="from edge_runtime.web import b\n",
        edge_runtime__web__b=TYPED.format("edge_runtime.web", "a"),
    )
    assert set(circle(made)) == {"edge_runtime.web.a", "edge_runtime.web.b"}
    made = house(
        tmp_path,
        edge_runtime__web__b="",
        edge_runtime__ipc__n="from edge_runtime.web import b\n",
        edge_runtime__web__m="from edge_runtime.ipc import m\n",
    )
    assert circle(made) == []
    assert circle(folders(made))


def test_input_and_output_in_a_rule_is_found(tmp_path):
    made = house(
        tmp_path, control__sync__plan="from control.sync import n\n", control__sync__n="import os.path\nimport re\n"
    )
    assert "control.sync.plan reaches os.path through control.sync.n" in impure(made)


def test_two_classes_of_one_name_are_found(tmp_path):
    house(tmp_path, control__web__m="class Server: ...\n", edge_runtime__web__m="class Server: ...\n")
    assert classes(tmp_path) == {"Server": ["control.web.m", "edge_runtime.web.m"]}


def test_names_a_letter_apart_are_found():
    assert letters_apart("node", "nodes")
    assert letters_apart("code", "node")
    assert not letters_apart("poll", "pools")
    assert not letters_apart("server", "server")
